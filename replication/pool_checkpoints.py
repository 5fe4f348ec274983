"""Checkpoint files as pools keep them: an SST file, then magic and a checksum seeded with the checkpoint's name."""

import os
import struct
from typing import BinaryIO

from xxhash import xxh3_64

from metadata.errors import Corrupt

_END = struct.Struct("<8sQ")
_MAGIC = b"VDFSCKP1"
_PIECE_BYTES = 1 << 20


def pack_checkpoint(sst: BinaryIO, file: BinaryIO, *, seed: int) -> None:
    """Copies a finished SST file, with what shows that it is whole."""
    file.write(_END.pack(_MAGIC, _copy(sst, file, seed=seed)))


def unpack_checkpoint(file: BinaryIO, sst: BinaryIO, *, seed: int, name: str) -> None:
    """Copies the SST file out of a checkpoint.

    Raises:
        Corrupt: it is damaged, or another one.
    """
    length = max(0, os.fstat(file.fileno()).st_size - _END.size)
    check = _copy(file, sst, seed=seed, length=length)
    if file.read() != _END.pack(_MAGIC, check):
        raise Corrupt(f"a checkpoint fails its checksum file={name}")


def _copy(source: BinaryIO, target: BinaryIO, *, seed: int, length: int = -1) -> int:
    """Copies so many bytes, or all, and returns their checksum."""
    digest = xxh3_64(seed=seed)
    while length and (piece := source.read(_PIECE_BYTES if length < 0 else min(_PIECE_BYTES, length))):
        digest.update(piece)
        target.write(piece)
        length -= len(piece) if length > 0 else 0
    return digest.intdigest()
