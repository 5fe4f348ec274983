"""Where a vdisk's content comes from besides its own newest rows: its parent, and its rollbacks. Pure.

A vdisk's row in the catalog, vdisk/<id>, holds (fields that are absent count as zero or none):

    parent          (vdisk, version) that shows through where the vdisk has no blocks of its own
    absent          the place of blocks without a row: HOLE, or PARENT for a clone
    overlap, size   the vdisk's before its first commit: bytes of the parent that show through, and its size
    parent_overlap  the parent's own overlap at that version
    flattened       versions from which on, along their line of history, the parent is not read any more
    rollbacks       [(to, from), ...], oldest first: see below
    rolled_back     (size, own blocks, overlap) that the newest rollback restored, until a commit says so
    nameless        deleted, and kept for clones and open files

**Rollbacks.** A rollback at version R to S makes the rows of S the newest, by masking those written between: for a
reader at a version above R, rows of generations in (S, R] do not exist. Rows are never moved, so it costs the same at
any size. What a version sees is a few *spans* of generations, newest first; both S and R are borders between
generations for ever (replication/family.py), so that no row is on both sides of one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from metadata.errors import Corrupt
from metadata.ids import HOLE

_NEWEST = (1 << 64) - 1

Rollbacks = tuple[tuple[int, int], ...]
"""(to, from), oldest first."""

Spans = tuple[tuple[int, int], ...]
"""(above, up to): generations that a version sees, newest first."""


def visible_spans(version: int, rollbacks: Rollbacks) -> Spans:
    """The generations whose rows a reader at this version sees, of which the newest row of a vblock counts."""
    spans = []
    for to, at in sorted(rollbacks, key=lambda rollback: -rollback[1]):
        if at < version:
            spans.append((at, version))
            version = to
    return (*spans, (0, version))


def is_visible(generation: int, spans: Spans) -> bool:
    """Whether rows of this generation are seen."""
    return any(above < generation <= up_to for above, up_to in spans)


@dataclass(frozen=True, slots=True)
class Descent:
    """The fields above, of one vdisk."""

    parent: tuple[int, int] | None = None
    absent: int = HOLE
    overlap: int = 0
    size: int = 0
    parent_overlap: int = 0
    flattened: tuple[int, ...] = ()
    rollbacks: Rollbacks = ()
    rolled_back: tuple[int, int, int] | None = None
    nameless: bool = False

    def parent_at(self, version: int | None) -> tuple[int, int] | None:
        """The parent that a version reads; None stands for the head."""
        if self.flattened:
            spans = visible_spans(_NEWEST if version is None else version, self.rollbacks)
            if any(is_visible(border, spans) for border in self.flattened):
                return None
        return self.parent


_NOTHING = Descent()
_FIELDS = [one.name for one in fields(Descent)]


def read_descent(value: Mapping[str, object]) -> Descent:
    """The descent in a decoded ``vdisk/`` row.

    Raises:
        Corrupt: it is none.
    """

    if not any(map(value.get, _FIELDS)):  # of nearly all vdisks
        return _NOTHING

    def number(name: str) -> int:
        found = value.get(name, 0)
        if not isinstance(found, int):
            raise TypeError(name)
        return found

    def numbers(found: object, count: int) -> tuple[int, ...]:
        if not isinstance(found, list | tuple) or [type(item) for item in found] != [int] * count:
            raise TypeError(found)
        return tuple(found)

    try:
        parent, rolled_back = value.get("parent"), value.get("rolled_back")
        rollbacks, flattened = value.get("rollbacks") or [], value.get("flattened") or []
        if not isinstance(rollbacks, list | tuple) or not isinstance(flattened, list | tuple):
            raise TypeError(rollbacks, flattened)
        return Descent(
            parent=numbers(parent, 2) if parent else None,  # type: ignore[arg-type]
            absent=number("absent"),
            overlap=number("overlap"),
            size=number("size"),
            parent_overlap=number("parent_overlap"),
            flattened=numbers(flattened, len(flattened)),
            rollbacks=tuple(numbers(pair, 2) for pair in rollbacks),  # type: ignore[misc]
            rolled_back=numbers(rolled_back, 3) if rolled_back else None,  # type: ignore[arg-type]
            nameless=bool(value.get("nameless")),
        )
    except TypeError as exc:
        raise Corrupt(f"a damaged vdisk record in the catalog: {exc}") from exc
