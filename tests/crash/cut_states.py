"""The states that a power cut at one moment may leave of what was recorded, each of them or a bounded choice.

Of few unsynced pieces every subset; of more: none, all, each beginning, all but one, one alone, all but two. Torn: pages
of which only some sectors arrived. The index and the journal are of now, of before, or lost; which, goes round with
the subsets, and where all or nothing has been written every combination is there.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from tests.crash.disk_model import PAGE, SECTOR, Change, Keep, Recording, Tree, Write, build
from tests.crash.recorded_calls import Recorder, Samples, newest

SUBSETS_EXHAUSTIVE = 6
"""So many pieces give 64 subsets."""
PAIRS_MAX = 30
TORN_MAX = 6
_SECTORS = ((0, 1, 2, 3), (4, 5, 6, 7), (0,), (7,))

Piece = tuple[int, int]
"""Index among the pending changes, page of it; -1: the size alone."""


@dataclass(frozen=True, slots=True)
class State:
    """What the next daemon finds."""

    what: str
    tree: Tree
    catalog: dict[bytes, object]
    index: dict[bytes, bytes]
    journal: bytes

    def key(self) -> int:
        """The same for equal states."""
        files = tuple(sorted((path, hash(data)) for path, data in self.tree.files.items()))
        held = (files, hash(self.journal), tuple(sorted((key, hash(row)) for key, row in self.index.items())))
        return hash((held, tuple(sorted((key, hash(row)) for key, row in self.catalog.items()))))


def states(recorder: Recorder, at: int) -> Iterator[State]:
    """Those of a power cut at this tick."""
    catalog = recorder.catalog[newest(recorder.catalog, at)][1]
    indexes, journals = _choices(recorder.index, at, {}), _choices(recorder.journal, at, b"")
    both = list(itertools.product(indexes, journals))
    for number, (what, tree) in enumerate(trees(recorder.recording, at)):
        chosen = both if number < 2 else [both[number % len(both)]]
        for (index_name, index), (journal_name, journal) in chosen:
            name = f"{what}; index {index_name}, journal {journal_name}"
            yield State(name, tree, catalog, index, journal)


def _choices(samples: Samples, at: int, lost: object) -> list[tuple[str, object]]:
    last = newest(samples, at)
    found: dict[str, object] = {"lost": lost}
    if last >= 0:
        found["of now"] = samples[last][1]
    if last >= 1:
        found["of before"] = samples[last - 1][1]
    if last >= 3:
        found["old"] = samples[last // 2][1]
    return list(found.items())


def trees(recording: Recording, at: int) -> Iterator[tuple[str, Tree]]:
    """What may be in the pool: nothing and all that is pending first."""
    _, pending = recording.pending(at)
    pieces = list(_pieces(pending))
    for kept in _subsets(pieces):
        chosen = set(kept)
        yield (
            f"{len(chosen)} of {len(pieces)} pieces {sorted(chosen) if len(chosen) < 9 else ''}",
            build(recording, at, keep=lambda index, _, fragment, chosen=chosen: (index, fragment) in chosen),
        )
    pages = [piece for piece in pieces if isinstance(pending[piece[0]], Write) and piece[1] >= 0]
    for torn in pages[-TORN_MAX:]:
        for sectors, others in itertools.product(_SECTORS, (True, False)):
            yield (
                f"{torn} torn to sectors {sectors}, others {'there' if others else 'lost'}",
                build(recording, at, keep=_torn(torn, sectors, others), unit=SECTOR),
            )


def _torn(torn: Piece, sectors: tuple[int, ...], others: bool) -> Keep:
    per_page = PAGE // SECTOR

    def keep(index: int, change: Change, fragment: int) -> bool:
        if isinstance(change, Write) and (index, fragment // per_page) == torn and fragment >= 0:
            return fragment % per_page in sectors
        return others or (index == torn[0] and fragment < 0)

    return keep


def _pieces(pending: list[Change]) -> Iterator[Piece]:
    for index, change in enumerate(pending):
        if isinstance(change, Write):
            yield from ((index, page) for page in range(-(-len(change.data) // PAGE)))
        else:
            yield index, 0


def _subsets(pieces: list[Piece]) -> Iterator[tuple[Piece, ...]]:
    yield ()
    if not pieces:
        return
    yield tuple(pieces)
    count = len(pieces)
    if count <= SUBSETS_EXHAUSTIVE:
        for size in range(1, count):
            yield from itertools.combinations(pieces, size)
        return
    for end in range(1, count):
        yield tuple(pieces[:end])
        yield tuple(pieces[end:])
    for number in range(count):
        yield tuple(pieces[:number] + pieces[number + 1 :])
        yield (pieces[number],)
    for pair in itertools.islice(itertools.combinations(pieces[-9:], 2), PAIRS_MAX):
        yield tuple(piece for piece in pieces if piece not in pair)
