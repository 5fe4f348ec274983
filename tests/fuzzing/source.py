"""Values out of a fuzzer's bytes: numbers of every size, choices, pieces; when the bytes end, zeros. Pure."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

FOLDER_VARIABLE = "FUZZING_FOLDER"
"""Where targets that need files make them."""
U64_MAX = (1 << 64) - 1
_EDGES = (
    0,
    1,
    2,
    255,
    4095,
    4096,
    65535,
    65536,
    1 << 20,
    1 << 31,
    1 << 32,
    1 << 48,
    1 << 62,
    1 << 63,
    U64_MAX,
)


class Source:
    """One input, read from its beginning on."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        """The next bytes, as many as there are."""
        self._at += count
        return self._data[self._at - count : self._at]

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(max(0, len(self._data) - self._at))

    def below(self, limit: int) -> int:
        """A number from 0 on; limits up to 65536 take one byte or two."""
        return int.from_bytes(self.take(1 if limit <= 256 else 2 if limit <= 65536 else 8), "little") % limit

    def number(self) -> int:
        """64 bits: one of the edges, a small number, or any."""
        kind = self.below(4)
        if kind == 0:
            return self.below(256)
        if kind == 1:
            return _EDGES[self.below(len(_EDGES))]
        if kind == 2:
            return self.below(65536)
        return int.from_bytes(self.take(8), "little")

    def choice(self, among: Sequence[T]) -> T:
        """One of these."""
        return among[self.below(len(among))]

    def piece(self) -> bytes:
        """As many bytes as the next one says."""
        return self.take(self.below(256))
