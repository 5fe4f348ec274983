"""A real S3 server: Ceph's radosgw on a small cluster of its own; some 20 s to start.

apt-get install --no-install-recommends ceph-mon ceph-mgr ceph-osd ceph-common radosgw curl
"""

import pathlib
import subprocess
import time

from tests.ceph_cluster import READY_S, CephCluster, free_port

ACCESS, SECRET = "AKTEST", "SKTEST"


class ObjectServer:
    """Used with ``with``; the gateway can be killed and started again while the store behind it stays."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._cluster, self._folder, self.port = CephCluster(folder), folder, free_port()
        self._gateway: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "ObjectServer":
        self._cluster.__enter__()
        try:
            gateway = 'auth get-or-create client.rgw.a mon "allow *" osd "allow *"'
            self._cluster.run(f"ceph {gateway} -o {self._folder}/rgw.keyring")
            self.start()
            user = "radosgw-admin user create --uid=t --display-name=t"
            self._cluster.run(f"{user} --access-key={ACCESS} --secret-key={SECRET}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._cluster.__exit__()

    def start(self) -> None:
        """Starts the gateway; returns when it answers."""
        self._gateway = subprocess.Popen(
            [
                "radosgw",
                "-f",
                "-n",
                "client.rgw.a",
                "--keyring",
                f"{self._folder}/rgw.keyring",
                "--rgw-frontends",
                f"beast endpoint=127.0.0.1:{self.port}",
                "--rgw_data",
                f"{self._folder}/rgw",
            ],
            env=self._cluster.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + READY_S
        while subprocess.run(["curl", "-s", "-o", "/dev/null", self.endpoint]).returncode:
            assert time.monotonic() < deadline, "the gateway does not answer"
            assert self._gateway.poll() is None, "the gateway has ended"

    def kill(self) -> None:
        """SIGKILL of the gateway."""
        if self._gateway is not None:
            self._gateway.kill()
            self._gateway.wait()
            self._gateway = None

    def make_bucket(self, name: str) -> None:
        """As an administrator does it: the project makes none."""
        done = subprocess.run(
            [
                *("curl", "-sf", "-X", "PUT", "--user", f"{ACCESS}:{SECRET}"),
                *("-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"),
                *("--aws-sigv4", "aws:amz:us-east-1:s3", f"{self.endpoint}/{name}"),
            ]
        )
        assert done.returncode == 0
