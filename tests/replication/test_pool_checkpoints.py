"""Checkpoint files: what was packed comes out, and nothing that is damaged, cut or another's does."""

import io
import pathlib

import pytest

from metadata.errors import Corrupt
from replication.pool_checkpoints import pack_checkpoint, unpack_checkpoint

MIB = 1 << 20
SEED = 77


def packed(path: pathlib.Path, content: bytes) -> bytes:
    with path.open("w+b") as file:
        pack_checkpoint(io.BytesIO(content), file, seed=SEED)
    return path.read_bytes()


def unpacked(path: pathlib.Path, *, seed: int = SEED) -> bytes:
    found = io.BytesIO()
    with path.open("rb") as file:
        unpack_checkpoint(file, found, seed=seed, name="it")
    return found.getvalue()


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB])
def test_what_was_packed_comes_out_of_any_size(tmp_path: pathlib.Path, size: int) -> None:
    content = bytes(range(251)) * (size // 251) + bytes(size % 251)
    whole = packed(tmp_path / "file", content)
    assert len(whole) == size + 16
    assert unpacked(tmp_path / "file") == content


@pytest.mark.parametrize("at", [0, 500, 999, 1000, 1007, 1008, 1015])
def test_each_damaged_byte_is_found(tmp_path: pathlib.Path, at: int) -> None:
    whole = bytearray(packed(tmp_path / "file", bytes(1000)))
    whole[at] ^= 1
    (tmp_path / "file").write_bytes(whole)
    with pytest.raises(Corrupt, match="fails its checksum file=it"):
        unpacked(tmp_path / "file")


@pytest.mark.parametrize("length", [0, 5, 15, 16, 1000, 1015])
def test_one_that_was_cut_is_none(tmp_path: pathlib.Path, length: int) -> None:
    whole = packed(tmp_path / "file", b"x" * 1000)
    (tmp_path / "file").write_bytes(whole[:length])
    with pytest.raises(Corrupt):
        unpacked(tmp_path / "file")


def test_what_follows_it_makes_it_another(tmp_path: pathlib.Path) -> None:
    whole = packed(tmp_path / "file", b"x" * 1000)
    (tmp_path / "file").write_bytes(whole + b"\0")
    with pytest.raises(Corrupt):
        unpacked(tmp_path / "file")


def test_another_vdisk_s_or_version_s_is_refused(tmp_path: pathlib.Path) -> None:
    packed(tmp_path / "file", b"x" * 1000)
    with pytest.raises(Corrupt):
        unpacked(tmp_path / "file", seed=SEED + 1)
