"""A real S3 server: Ceph's radosgw on a monitor, a manager and one OSD, from Debian's packages; some 20 s to start.

apt-get install --no-install-recommends ceph-mon ceph-mgr ceph-osd ceph-common radosgw curl
"""

import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import time
import uuid
from contextlib import suppress

ACCESS, SECRET = "AKTEST", "SKTEST"
READY_S = 90.0
COMMAND_S = 60.0

_CONFIGURATION = """
[global]
fsid = {fsid}
mon_initial_members = a
mon_host = [v2:127.0.0.1:{mon},v1:127.0.0.1:{old_mon}]
public_network = 127.0.0.0/8
auth_allow_insecure_global_id_reclaim = false
keyring = {folder}/keyring
run_dir = {folder}/run
admin_socket = {folder}/run/$name.asok
pid_file = {folder}/run/$name.pid
log_file = {folder}/log/$name.log
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
osd_crush_chooseleaf_type = 0
mon_data = {folder}/mon
mgr_data = {folder}/mgr
mgr_initial_modules =
osd_data = {folder}/osd
osd_objectstore = bluestore
bluestore_block_size = 4294967296
bluestore_block_db_size = 0
bluestore_fsck_on_mount = false
osd_memory_target = 939524096
ms_bind_ipv6 = false
"""


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class ObjectServer:
    """Used with ``with``; the gateway can be killed and started again while the store behind it stays."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder, self.port = folder, _free_port()
        self._gateway: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "ObjectServer":
        for name in ("mon", "mgr", "osd", "run", "log"):
            (self._folder / name).mkdir(parents=True)
        fsid = str(uuid.uuid4())
        text = _CONFIGURATION.format(fsid=fsid, folder=self._folder, mon=_free_port(), old_mon=_free_port())
        (self._folder / "ceph.conf").write_text(text)
        try:
            self._start_cluster(fsid)
            self.start()
            user = "radosgw-admin user create --uid=t --display-name=t"
            self._run(f"{user} --access-key={ACCESS} --secret-key={SECRET}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for file in (self._folder / "run").glob("*.pid"):
            with suppress(ProcessLookupError, ValueError):
                os.kill(int(file.read_text()), signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, command: str) -> None:
        log = self._folder / "log" / "commands"
        with log.open("ab") as output:  # no pipe: what goes on in the background would hold it
            done = subprocess.run(
                shlex.split(command),
                env={**os.environ, "CEPH_ARGS": f"-c {self._folder}/ceph.conf"},
                stdout=output,
                stderr=output,
                timeout=COMMAND_S,
            )
        assert done.returncode == 0, f"{command}: {log.read_text()[-1000:]}"

    def _start_cluster(self, fsid: str) -> None:
        ring, osd = f"{self._folder}/keyring", str(uuid.uuid4())
        allow = '--cap mon "allow *" --cap osd "allow *" --cap mds "allow *" --cap mgr "allow *"'
        self._run(f'ceph-authtool --create-keyring {ring} --gen-key -n mon. --cap mon "allow *"')
        self._run(f"ceph-authtool {ring} --gen-key -n client.admin {allow}")
        self._run(f"ceph-authtool {ring} --gen-key -n mgr.x {allow}")
        lines = (self._folder / "ceph.conf").read_text().splitlines()
        host = next(line for line in lines if line.startswith("mon_host")).partition("= ")[2]
        self._run(f"monmaptool --create --clobber --fsid {fsid} --addv a {host} {self._folder}/monmap")
        self._run(f"ceph-mon --mkfs -i a --monmap {self._folder}/monmap --keyring {ring}")
        self._run("ceph-mon -i a")
        self._run("ceph-mgr -i x")
        self._run(f"ceph osd new {osd} 0")
        key = f"{self._folder}/osd/keyring"
        self._run(f"ceph-osd -i 0 --mkfs --osd-uuid {osd} --mkkey --keyring {key} --no-mon-config")
        self._run(f'ceph auth add osd.0 osd "allow *" mon "allow *" -i {key}')
        self._run(f"ceph-osd -i 0 --keyring {key}")
        gateway = 'auth get-or-create client.rgw.a mon "allow *" osd "allow *"'
        self._run(f"ceph {gateway} -o {self._folder}/rgw.keyring")

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
            env={**os.environ, "CEPH_ARGS": f"-c {self._folder}/ceph.conf"},
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
