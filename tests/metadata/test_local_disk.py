"""The disk below the embedded catalog: that it is local, and the space set aside on it."""

import pathlib

import pytest

from metadata import local_disk
from metadata.errors import InvalidRequest, Unavailable
from metadata.local_disk import (
    RESERVE_BYTES,
    Reserve,
    filesystem_magic,
    free_bytes,
    refuse_network_filesystem,
)

NFS, EXT4 = 0x6969, 0xEF53


def test_a_network_filesystem_is_refused_by_name_and_a_local_one_is_not(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InvalidRequest, match=r"network filesystem \(nfs\)"):
        refuse_network_filesystem(tmp_path, magic=NFS)
    refuse_network_filesystem(tmp_path, magic=EXT4)
    refuse_network_filesystem(tmp_path, magic=filesystem_magic(tmp_path))


def test_a_filesystem_s_kind_is_the_kernel_s_word(tmp_path: pathlib.Path) -> None:
    assert filesystem_magic(pathlib.Path("/proc")) == 0x9FA0
    with pytest.raises(Unavailable, match="cannot look at"):
        filesystem_magic(tmp_path / "missing")


def test_free_space_is_said_or_none(tmp_path: pathlib.Path) -> None:
    assert free_bytes(tmp_path) > 0
    assert free_bytes(tmp_path / "missing") == 0


def test_the_reserve_is_space_that_is_given_up_once(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "reserve"
    reserve = Reserve(path)
    assert not reserve.give_up()
    reserve.fill()
    assert path.stat().st_size == RESERVE_BYTES
    assert path.stat().st_blocks * 512 >= RESERVE_BYTES  # taken, not promised
    assert path.stat().st_mode & 0o777 == 0o600
    assert reserve.give_up()
    assert path.stat().st_size == 0
    assert not reserve.give_up()
    reserve.fill()
    assert Reserve(path).give_up()  # of an earlier process


@pytest.mark.parametrize(("free", "size"), [(4 * RESERVE_BYTES - 1, 0), (4 * RESERVE_BYTES, RESERVE_BYTES)])
def test_a_disk_that_is_nearly_full_is_left_alone(
    free: int, size: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_disk, "free_bytes", lambda folder: free)
    path = tmp_path / "reserve"
    path.touch()
    Reserve(path).fill()
    assert path.stat().st_size == size


def test_a_reserve_that_does_not_fit_leaves_nothing_of_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(fd: int, offset: int, length: int) -> None:
        local_disk.os.ftruncate(fd, length // 2)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(local_disk.os, "posix_fallocate", fails)
        reserve = Reserve(tmp_path / "reserve")
        reserve.fill()
        assert (tmp_path / "reserve").stat().st_size == 0
    reserve.fill()  # later there is room
    assert (tmp_path / "reserve").stat().st_size == RESERVE_BYTES
