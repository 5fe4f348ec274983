"""The node's folder: its name, who holds it, and a log that does not grow for ever."""

import os
import pathlib

import pytest

from fusefs.state_directory import (
    LOG_BYTES_MAX,
    check_node,
    default_folder,
    default_node,
    lock,
    lock_for_keeper,
    log_path,
    make_folder,
    open_log,
)
from metadata.errors import InvalidRequest, Unavailable


@pytest.mark.parametrize("name", ["", "-a", ".a", "a/b", "a b", "x" * 65, "a\n"])
def test_what_is_no_folder_s_name_is_no_node_s(name: str) -> None:
    with pytest.raises(InvalidRequest):
        check_node(name)


def test_the_default_name_tells_pools_and_places_apart_and_can_be_a_node_s() -> None:
    names = {
        default_node(host="host.example", mountpoint=place, pool_id=pool)
        for place in ("/mnt/a", "/srv/a", "/")
        for pool in ("p1", "p2")
    }
    assert len(names) == 6
    assert {check_node(name) for name in names} == names
    assert all(name.startswith("host-") for name in names)
    assert default_node(host="", mountpoint="/", pool_id="p").startswith("host-root-")


def test_state_is_kept_where_its_user_may() -> None:
    assert default_folder("n", uid=0, environment={}) == "/var/lib/vdiskfs/n"
    assert default_folder("n", uid=5, environment={"XDG_STATE_HOME": "/state"}) == "/state/vdiskfs/n"
    for given in ("", "relative"):
        found = default_folder("n", uid=5, environment={"XDG_STATE_HOME": given})
        assert found == os.path.expanduser("~/.local/state/vdiskfs/n")


def test_one_mount_holds_it_and_whoever_comes_then_is_told_which(tmp_path: pathlib.Path) -> None:
    state = str(tmp_path / "state")
    make_folder(state)
    assert os.stat(state).st_mode & 0o777 == 0o700
    held = lock(state, "/mnt/one"), lock_for_keeper(state, "/mnt/one")
    for take in (lock, lock_for_keeper):
        with pytest.raises(Unavailable, match="in use by the mount on /mnt/one"):
            take(state, "/mnt/two")
    for lock_fd in held:
        os.close(lock_fd)
    os.close(lock(state, "/mnt/two"))


def test_what_cannot_be_made_or_locked_is_said(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    for fails in (
        lambda: make_folder(str(tmp_path / "file" / "state")),
        lambda: lock(str(tmp_path / "absent"), "/mnt"),
        lambda: open_log(str(tmp_path / "absent")),
    ):
        with pytest.raises(Unavailable):
            fails()


def test_a_log_that_is_too_long_is_put_aside_once(tmp_path: pathlib.Path) -> None:
    path = pathlib.Path(log_path(str(tmp_path)))
    path.write_bytes(b"x" * (LOG_BYTES_MAX + 1))
    log_fd = open_log(str(tmp_path))
    os.write(log_fd, b"new\n")
    os.close(log_fd)
    assert path.read_bytes() == b"new\n"
    assert path.with_name("log.1").stat().st_size == LOG_BYTES_MAX + 1
    os.close(open_log(str(tmp_path)))
    assert path.read_bytes() == b"new\n"
