"""When a flush returns: what a vdisk says of itself, else what the root says of all others."""

import pytest

from metadata.catalog import ROOT_ID
from metadata.durability import ATTRIBUTE, flushes_here
from metadata.errors import NotFound
from metadata.namespace import Inode, Kind

V = 20


class Names:
    """A namespace in which the root, and perhaps the vdisk, have an attribute."""

    def __init__(self, **said: bytes | None) -> None:
        self._said = {ROOT_ID: said.get("root"), V: said.get("vdisk")}
        self._gone = {V} if "vdisk" not in said else set()

    def inode(self, number: int) -> Inode:
        if number in self._gone:
            raise NotFound("no such inode")
        value = self._said[number]
        xattrs = ((b"user.other", b"node"), *(((ATTRIBUTE, value),) if value is not None else ()))
        kind = Kind.DIRECTORY if number == ROOT_ID else Kind.FILE
        return Inode(kind, 0o644, 0, 0, 0, 0, 0, xattrs=xattrs)


@pytest.mark.parametrize(
    ("root", "vdisk", "here"),
    [
        (None, None, False),
        (b"node", None, True),
        (b"pool", None, False),
        (None, b"node", True),
        (b"pool", b"node", True),
        (b"node", b"pool", False),
        (b"node", b"nonsense", True),
        (b"nonsense", None, False),
        (None, b"nonsense", False),
        (b"node", b"", True),
    ],
)
def test_a_vdisk_s_own_word_counts_then_the_root_s_then_the_pool(
    root: bytes | None, vdisk: bytes | None, here: bool
) -> None:
    assert flushes_here(Names(root=root, vdisk=vdisk), V) is here  # type: ignore[arg-type]


def test_a_vdisk_without_an_inode_goes_by_the_root() -> None:
    assert flushes_here(Names(root=b"node"), V)  # type: ignore[arg-type]
    assert not flushes_here(Names(root=b"pool"), V)  # type: ignore[arg-type]
