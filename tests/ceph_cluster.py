"""A real Ceph cluster, small: monitor, manager, OSDs on plain files, CephFS if wanted; Debian's packages, some 10 s to start.

apt-get install --no-install-recommends ceph-mon ceph-mgr ceph-osd ceph-common [ceph-mds ceph-fuse]
"""

import json
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

from tests.mounted_pool import wait_gone

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
osd_pool_default_size = {copies}
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_allow_pool_delete = true
mon_osd_min_down_reporters = 1
osd_heartbeat_grace = 6
osd_heartbeat_interval = 2
mon_data_avail_warn = 1
mon_data_avail_crit = 1
mds_cache_memory_limit = 134217728
osd_map_cache_size = 50
osd_min_pg_log_entries = 50
osd_max_pg_log_entries = 200
mon_warn_on_pool_no_redundancy = false
osd_crush_chooseleaf_type = 0
mon_data = {folder}/mon
mgr_data = {folder}/mgr
mgr_initial_modules =
osd_data = {folder}/osd$id
osd_objectstore = bluestore
bluestore_block_size = {osd_bytes}
bluestore_block_db_size = 0
bluestore_fsck_on_mount = false
osd_memory_target = 939524096
ms_bind_ipv6 = false
[client]
admin_socket =
pid_file =
"""


def free_port() -> int:
    """One that nobody on this machine has."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class CephCluster:
    """Used with ``with``; each OSD can be killed and started again."""

    def __init__(
        self, folder: pathlib.Path, *, osds: int = 1, copies: int = 1, osd_bytes: int = 4 << 30
    ) -> None:
        self.folder, self._osds, self._copies, self._osd_bytes = folder, osds, copies, osd_bytes
        self.configuration = folder / "ceph.conf"
        self._clients: dict[pathlib.Path, pathlib.Path] = {}
        """Mountpoints, and the files that name their processes."""

    def __enter__(self) -> "CephCluster":
        for name in ("mon", "mgr", "run", "log", "mds", *(f"osd{number}" for number in range(self._osds))):
            (self.folder / name).mkdir(parents=True)
        fsid = str(uuid.uuid4())
        facts = {"folder": self.folder, "copies": self._copies, "osd_bytes": self._osd_bytes}
        text = _CONFIGURATION.format(fsid=fsid, mon=free_port(), old_mon=free_port(), **facts)
        self.configuration.write_text(text)
        try:
            self._start(fsid)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for mountpoint in self._clients:
            subprocess.run(["fusermount3", "-uz", mountpoint], check=False, capture_output=True)
        for file in (self.folder / "run").glob("*.pid"):
            self._kill(file)
        shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def _kill(file: pathlib.Path) -> None:
        with suppress(ProcessLookupError, ValueError, FileNotFoundError):
            pid = int(file.read_text())
            os.kill(pid, signal.SIGKILL)
            wait_gone(pid)

    @property
    def environment(self) -> dict[str, str]:
        """In which Ceph's programs find the cluster."""
        return {**os.environ, "CEPH_ARGS": f"-c {self.configuration}"}

    def run(self, command: str) -> None:
        """Insists on success."""
        log = self.folder / "log" / "commands"
        with log.open("ab") as output:  # no pipe: what goes on in the background would hold it
            done = subprocess.run(
                shlex.split(command), env=self.environment, stdout=output, stderr=output, timeout=COMMAND_S
            )
        assert done.returncode == 0, f"{command}: {log.read_text()[-1000:]}"

    def ask(self, command: str) -> dict:
        """The answer of a ``ceph`` command."""
        asked = ["ceph", *shlex.split(command), "-f", "json"]
        done = subprocess.run(asked, env=self.environment, capture_output=True, timeout=COMMAND_S, check=True)
        answer: dict = json.loads(done.stdout)
        return answer

    def _start(self, fsid: str) -> None:
        ring = f"{self.folder}/keyring"
        allow = '--cap mon "allow *" --cap osd "allow *" --cap mds "allow *" --cap mgr "allow *"'
        self.run(f'ceph-authtool --create-keyring {ring} --gen-key -n mon. --cap mon "allow *"')
        self.run(f"ceph-authtool {ring} --gen-key -n client.admin {allow}")
        self.run(f"ceph-authtool {ring} --gen-key -n mgr.x {allow}")
        lines = self.configuration.read_text().splitlines()
        host = next(line for line in lines if line.startswith("mon_host")).partition("= ")[2]
        self.run(f"monmaptool --create --clobber --fsid {fsid} --addv a {host} {self.folder}/monmap")
        self.run(f"ceph-mon --mkfs -i a --monmap {self.folder}/monmap --keyring {ring}")
        self.run("ceph-mon -i a")
        self.run("ceph-mgr -i x")
        for number in range(self._osds):
            osd = str(uuid.uuid4())
            self.run(f"ceph osd new {osd} {number}")
            key = f"{self.folder}/osd{number}/keyring"
            self.run(f"ceph-osd -i {number} --mkfs --osd-uuid {osd} --mkkey --keyring {key} --no-mon-config")
            self.run(f'ceph auth add osd.{number} osd "allow *" mon "allow *" -i {key}')
            self.start_osd(number)

    def start_osd(self, number: int) -> None:
        """Returns when its process runs; the cluster takes it in soon."""
        self.run(f"ceph-osd -i {number} --keyring {self.folder}/osd{number}/keyring")

    def kill_osd(self, number: int) -> None:
        """SIGKILL."""
        self._kill(self.folder / "run" / f"osd.{number}.pid")

    def wait_up(self, osds: int) -> None:
        """Until so many OSDs serve."""
        deadline = time.monotonic() + READY_S
        while self.ask("osd stat")["num_up_osds"] != osds:
            assert time.monotonic() < deadline, "the OSDs do not come up"

    def make_pool(self, name: str) -> None:
        """As an administrator does it: the project makes none."""
        self.run(f"ceph osd pool create {name} 8 8")
        self.run(f"ceph osd pool application enable {name} vdiskfs")

    def make_user(self, name: str, *, caps: str) -> None:
        """A user ``client.NAME``, its key in the cluster's keyring."""
        ring = self.folder / "keyring"
        self.run(f"ceph auth get-or-create client.{name} {caps} -o {self.folder}/{name}.keyring")
        with ring.open("a") as file:
            file.write((self.folder / f"{name}.keyring").read_text())

    # ---- CephFS

    def make_filesystem(self) -> None:
        """With one metadata server; returns when it serves."""
        for pool in ("names", "bytes"):
            self.run(f"ceph osd pool create {pool} 8 8")
        self.run("ceph fs new files names bytes")
        allow = 'mon "allow profile mds" osd "allow rwx" mds "allow" mgr "allow profile mds"'
        self.run(f"ceph auth get-or-create mds.a {allow} -o {self.folder}/mds.keyring")
        self.start_mds()

    def start_mds(self) -> None:
        """Returns when it serves."""
        self.run(f"ceph-mds -i a --mds-data {self.folder}/mds --keyring {self.folder}/mds.keyring")
        deadline = time.monotonic() + READY_S
        while "up:active" not in json.dumps(self.ask("mds stat")):
            assert time.monotonic() < deadline, "the metadata server does not serve"

    def kill_mds(self) -> None:
        """SIGKILL."""
        self._kill(self.folder / "run" / "mds.a.pid")

    def mount(self, mountpoint: pathlib.Path) -> None:
        """A client of its own, ceph-fuse."""
        mountpoint.mkdir(parents=True, exist_ok=True)
        pid = self.folder / "run" / f"client{len(self._clients)}.pid"
        self._clients[mountpoint] = pid
        self.run(f"ceph-fuse -n client.admin --pid-file {pid} {mountpoint}")

    def kill_client(self, mountpoint: pathlib.Path) -> None:
        """SIGKILL, as a lost host does; what is mounted there is gone too."""
        self._kill(self._clients[mountpoint])
        subprocess.run(["fusermount3", "-uz", mountpoint], check=False, capture_output=True)
