"""Mount options, and real mounts as root and as somebody else."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import pytest

import fusefs
from fusefs import mounting, state_directory
from metadata.errors import Exists, InvalidRequest, NotFound, Unavailable
from tests.fusefs.fake_mount import FakeMount


def test_options_become_what_the_kernel_takes() -> None:
    options = mounting.parse_options(("ro", "noatime", "suid", "x-systemd.automount", "nofail"), uid=0)
    assert options.flags == 1 | 4 | 1024
    assert options.read_only
    assert options.kernel_words == ("default_permissions", "allow_other")
    assert not mounting.parse_options(("ro", "rw"), uid=0).read_only
    assert mounting.parse_options((), uid=1000).kernel_words == ("default_permissions",)


def test_an_unknown_option_is_refused_and_the_known_ones_told() -> None:
    with pytest.raises(InvalidRequest, match=r"'rwx'; known: ro, rw,"):
        mounting.parse_options(("rwx",), uid=0)


def test_a_machine_without_the_fuse_device_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounting, "FUSE_DEVICE", "/dev/no-such-device")
    with pytest.raises(Unavailable, match="modprobe fuse"):
        mounting.check_device()


def test_an_unmount_of_nothing_is_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OSError, match=str(tmp_path)):
        mounting.unmount(str(tmp_path))


SENDS = """#!{python}
import os, socket, sys
open({said!r}, "w").write("\\n".join(sys.argv[1:]))
with socket.socket(fileno=int(os.environ["_FUSE_COMMFD"])) as end:
    socket.send_fds(end, [b"x"], [0] if {sends} else [])
sys.stderr.write({complaint!r})
sys.exit({code})
"""


@pytest.fixture
def fusermount(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pathlib.Path]:
    """As an ordinary user, with a helper that does as the test says; where it writes its arguments."""

    def make(*, sends: bool = True, complaint: str = "", code: int = 0) -> pathlib.Path:
        helper, said = tmp_path / "helper", tmp_path / "said"
        text = SENDS.format(
            python=sys.executable, said=str(said), sends=sends, complaint=complaint, code=code
        )
        helper.write_text(text)
        helper.chmod(0o755)
        monkeypatch.setattr(mounting, "FUSERMOUNT", str(helper))
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        return said

    return make


OPTIONS = mounting.parse_options(("ro",), uid=1000)


def test_an_ordinary_user_gets_the_descriptor_from_the_helper(
    fusermount: Callable[..., pathlib.Path],
) -> None:
    said = fusermount()
    fuse_fd = mounting.mount("/a,pool\\x", "/mnt", OPTIONS)
    assert not os.get_inheritable(fuse_fd)
    os.close(fuse_fd)
    words = "ro,default_permissions,subtype=vdiskfs,fsname=/a\\,pool\\\\x"
    assert said.read_text().splitlines() == ["-o", words, "--", "/mnt"]


@pytest.mark.parametrize(
    ("sends", "complaint", "code", "reason"),
    [
        (False, "a line\nit is not allowed\n", 1, "cannot mount on /mnt: it is not allowed"),
        (True, "", 1, "failed without a word"),
        (False, "", 0, "failed without a word"),
    ],
)
def test_a_helper_that_fails_says_why_and_leaves_no_descriptor(
    fusermount: Callable[..., pathlib.Path], sends: bool, complaint: str, code: int, reason: str
) -> None:
    fusermount(sends=sends, complaint=complaint, code=code)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Unavailable, match=reason):
        mounting.mount("/pool", "/mnt", OPTIONS)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_helper_that_is_missing_is_told(
    fusermount: Callable[..., pathlib.Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fusermount()
    monkeypatch.setattr(mounting, "FUSERMOUNT", "/missing/helper")
    with pytest.raises(Unavailable, match="cannot run /missing/helper"):
        mounting.mount("/pool", "/mnt", OPTIONS)
    monkeypatch.setattr(mounting, "FUSE_DEVICE", "/dev/null")
    with pytest.raises(Unavailable, match="apt install fuse3"):
        mounting.check_device()


def test_a_mountpoint_must_be_a_free_directory(fake_mount: FakeMount) -> None:
    os.rmdir(fake_mount.mountpoint)
    with pytest.raises(NotFound, match="mkdir -p"):
        fake_mount.launch()
    pathlib.Path(fake_mount.mountpoint).touch()
    with pytest.raises(InvalidRequest, match="not a directory"):
        fake_mount.launch()
    os.unlink(fake_mount.mountpoint)
    os.mkdir(fake_mount.mountpoint)
    fake_mount.launch()
    with pytest.raises(Exists, match="is busy"):
        fake_mount.launch()
    fake_mount.end()
    with pytest.raises(NotFound, match="not a vdiskfs mount"):
        fake_mount.end()


def test_a_mount_shows_its_pool_and_options(fake_mount: FakeMount) -> None:
    fake_mount.launch(options=("ro", "noatime"))
    entry = fake_mount.entry()
    assert entry is not None
    assert (entry.filesystem_type, entry.source, entry.owner_uid) == (
        "fuse.vdiskfs",
        str(fake_mount.pool),
        os.geteuid(),
    )
    assert os.statvfs(fake_mount.mountpoint).f_flag & os.ST_RDONLY
    fake_mount.end()


def test_the_default_node_is_the_same_again_and_another_elsewhere() -> None:
    facts = {"host": "Host.example.org", "mountpoint": "/srv/vm disks", "pool_id": "abc"}
    name = state_directory.default_node(**facts)
    assert name == state_directory.default_node(**facts)
    assert name.startswith("Host-vm-disks-")
    others = [{"host": "other"}, {"mountpoint": "/mnt/vm disks"}, {"pool_id": "abd"}]
    assert len({name, *(state_directory.default_node(**{**facts, **other}) for other in others)}) == 4
    extremes = [
        state_directory.default_node(host=host, mountpoint=mountpoint, pool_id="")
        for host in ("", "x" * 300, "\udcff", "-.-")
        for mountpoint in ("/", "/" + "y" * 300, "/\udcff")
    ]
    assert all(state_directory.check_node(node) == node for node in extremes)


@pytest.mark.parametrize("node", ["", ".", "..", "a/b", "-x", "x" * 65, "a b", "é", "a\n"])
def test_a_node_name_that_is_no_file_name_is_refused(node: str) -> None:
    with pytest.raises(InvalidRequest):
        state_directory.check_node(node)


def test_the_state_directory_is_where_its_user_keeps_state() -> None:
    home = {"XDG_STATE_HOME": "/home/u/state"}
    assert state_directory.default_folder("n", uid=0, environment=home) == "/var/lib/vdiskfs/n"
    assert state_directory.default_folder("n", uid=1000, environment=home) == "/home/u/state/vdiskfs/n"
    relative = state_directory.default_folder("n", uid=1000, environment={"XDG_STATE_HOME": "state"})
    assert relative == os.path.expanduser("~/.local/state/vdiskfs/n")


def test_a_long_log_is_put_aside(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_directory, "LOG_BYTES_MAX", 3)
    for content in ("first", "second"):
        log_fd = state_directory.open_log(str(tmp_path))
        os.write(log_fd, content.encode())
        os.close(log_fd)
    assert (tmp_path / "log").read_text() == "second"
    assert (tmp_path / "log.1").read_text() == "first"


@pytest.fixture
def open_folder() -> Iterator[pathlib.Path]:
    """A folder that anybody may enter, unlike pytest's own, with the code in it."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="vdiskfs-test-", dir="/tmp"))
    folder.chmod(0o755)
    source = pathlib.Path(fusefs.__file__).parents[1]
    for package in (source / "fusefs", source / "metadata", pathlib.Path(__file__).parents[1]):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package, folder / "code" / package.name, ignore=ignore)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


USER_SCRIPT = """
import os, pathlib, sys
from tests.fusefs.fake_mount import FakeMount
mount = FakeMount(pathlib.Path(sys.argv[1]))
try:
    mount.launch()
    record, entry = mount.record(), mount.entry()
    print(os.statvfs(mount.mountpoint).f_blocks, entry.owner_uid, record.uid)
    mount.kill(record.daemon)
    print(os.statvfs(mount.mountpoint).f_blocks, mount.record().restarts)
    record = mount.record()
    mount.kill(record.keeper, record.daemon)
    mount.launch()
    mount.end()
    mount.launch("deaf")
    mount.end(force=True)
    print(mount.entry(), mount.is_registered())
finally:
    mount.tear_down()
"""
NOBODY = 65534


@pytest.mark.root
def test_an_ordinary_user_mounts_through_fusermount(open_folder: pathlib.Path) -> None:
    as_nobody = [
        "setpriv",
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--clear-groups",
        "env",
        f"HOME={open_folder}",
        f"XDG_RUNTIME_DIR={open_folder}/home",
    ]
    # The interpreter of the tests may lie in root's home.
    runs = [
        path
        for path in (sys.executable, "/usr/bin/python3")
        if subprocess.run([*as_nobody, path, "-c", ""], capture_output=True, check=False).returncode == 0
    ]
    home = open_folder / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    script = open_folder / "script.py"
    script.write_text(USER_SCRIPT)
    # Some machines leave /dev/fuse to root; in a mount namespace of its own the script has one for everybody.
    device = f"mknod -m 666 {open_folder}/fuse c 10 229 && mount --bind {open_folder}/fuse /dev/fuse"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{device} && exec "$@"', "sh", *as_nobody, runs[0], script, home],
        env={**os.environ, "PYTHONPATH": str(open_folder / "code"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.splitlines(), done.stderr) == (
        [f"1000 {NOBODY} {NOBODY}", "1000 1", "None False"],
        "",
    )
