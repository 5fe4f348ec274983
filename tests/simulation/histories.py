"""What clients saw of vdisks on several nodes, and whether it is a history that the promises allow.

Every write bears a value of its own, so a read says which write it saw. Times are points of one clock that all
operations share; an operation is somewhere between its begin and its end. A write that failed, or whose node died
meanwhile, has no end: it may take effect at any time, or never, or be seen and then lost, as what was not flushed may be.
A forwarded write during which the vdisk got another owner, or its owner another daemon, may have been done twice: the
first answer was lost.

Linearizability of one block is decided by zones (Gibbons and Korach, "Testing Shared Memories", 1997): the
operations on one value must fit into one stretch of time apart from those on another.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

NEVER = math.inf


@dataclass(slots=True, eq=False)
class Write:
    """One block written by one client, and committed: it is durable from its end on."""

    block: int
    value: int
    begin: float
    end: float = NEVER
    is_repeated: bool = False
    """It may have been done twice."""


@dataclass(slots=True, eq=False)
class Read:
    """One block read through one handle; value 0: nobody's."""

    block: int
    value: int
    begin: float
    end: float
    node: str = ""


@dataclass(slots=True, eq=False)
class Opening:
    """A frozen view: one open file of a peer, and what was read through it."""

    node: str
    begin: float
    end: float
    reads: list[Read] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Moment:
    """What a snapshot, or a clone as it began, holds: block by block, what the vdisk held at one moment of a call."""

    what: str
    begin: float
    end: float
    content: dict[int, int]


@dataclass(slots=True)
class History:
    """Of one vdisk, from when its content was known: new, just cloned, or rolled back."""

    writes: list[Write] = field(default_factory=list)
    shared_reads: list[Read] = field(default_factory=list)
    """By handles that read the head: at the owner, or forwarded."""
    openings: list[Opening] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    initial: dict[int, int] = field(default_factory=dict)
    """Values of blocks at its beginning; others were nobody's."""

    def violations(self) -> list[str]:
        """What no promise allows, in words; empty if all is well."""
        values = {write.value: write for write in self.writes}
        found = self._unwritten(values)
        if found:
            return found
        blocks = sorted({write.block for write in self.writes})
        for block in blocks:
            found += self._not_linearizable(block)
        for opening in self.openings:
            found += _thawed(opening)
            found += self._stale(opening, values)
            content = {read.block: read.value for read in opening.reads}
            view = Moment(f"a view on {opening.node}", -NEVER, opening.end, content)
            found += self._mixed(view, values)
        for moment in self.moments:
            found += self._mixed(moment, values)
        return found + self._backwards(values) + self._steps_back(values)

    def _reads(self) -> Iterable[Read]:
        yield from self.shared_reads
        for opening in self.openings:
            yield from opening.reads
        for moment in self.moments:
            yield from (
                Read(block, value, moment.begin, moment.end) for block, value in moment.content.items()
            )

    def _unwritten(self, values: dict[int, Write]) -> list[str]:
        found = []
        for read in self._reads():
            if read.value != self.initial.get(read.block, 0):
                write = values.get(read.value)
                if write is None or write.block != read.block:
                    found.append(f"block {read.block}: {read.value} was read, which nobody wrote there")
                elif read.end < write.begin:
                    found.append(f"block {read.block}: {read.value} was read before it was written")
        return found

    def _last(self, block: int, value: int, values: dict[int, Write]) -> float:
        """When the block held the value at the latest: then another one had been committed that came after it."""
        seen = values.get(value)
        later = (
            write.end
            for write in self.writes
            if write.block == block and (seen is None or (seen.end < write.begin and not seen.is_repeated))
        )
        return min(later, default=NEVER)

    def _mixed(self, moment: Moment, values: dict[int, Write]) -> list[str]:
        """There must be one moment at which all blocks held what was seen."""
        first, last = moment.begin, moment.end
        for block, value in moment.content.items():
            write = values.get(value)
            first = max(first, write.begin if write is not None else -NEVER)
            last = min(last, self._last(block, value, values))
        if first <= last:
            return []
        return [
            f"{moment.what} of {moment.begin:.4f} to {moment.end:.4f} is of no one moment: {moment.content}, "
            f"not before {first:.4f}, not after {last:.4f}"
        ]

    def _steps_back(self, values: dict[int, Write]) -> list[str]:
        """I9 for the vdisk as a whole: what came before something that a node saw, it sees in every later opening."""
        found = []
        seen: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for opening in sorted(self.openings, key=lambda opening: opening.end):
            known = max((begin for end, begin in seen[opening.node] if end < opening.begin), default=-NEVER)
            for read in opening.reads:
                last = self._last(read.block, read.value, values)
                if last < known:
                    found.append(
                        f"block {read.block}: an opening at {opening.begin:.4f} on {opening.node} saw {read.value} "
                        f"of before {last:.4f}, an earlier one what was written at {known:.4f}"
                    )
            writes = [values[read.value] for read in opening.reads if read.value in values]
            seen[opening.node].append((opening.end, max((write.begin for write in writes), default=-NEVER)))
        return found

    def _not_linearizable(self, block: int) -> list[str]:
        vague = {write.value for write in self.writes if write.is_repeated or write.end == NEVER}
        reads = [read for read in self.shared_reads if read.block == block and read.value not in vague]
        writes = [write for write in self.writes if write.block == block and write.value not in vague]
        return [
            f"block {block}: reads and writes of values {one} and {other} cannot be put in an order"
            for one, other in conflicts(writes, reads, initial=self.initial.get(block, 0))
        ]

    def _stale(self, opening: Opening, values: dict[int, Write]) -> list[str]:
        """Promise 2: an opening sees what was durable and published before it began."""
        found = []
        for read in opening.reads:
            newer = self._surely_newer(read, values, before=opening.begin)
            if newer is not None:
                found.append(
                    f"block {read.block}: an opening at {opening.begin:.4f} on {opening.node} saw {read.value}, "
                    f"but {newer.value} had been committed at {newer.end:.4f}"
                )
            seen = values.get(read.value)
            if seen is not None and seen.begin > opening.end:
                found.append(
                    f"block {read.block}: a frozen view saw {read.value}, written after it was opened"
                )
        return found

    def _surely_newer(self, read: Read, values: dict[int, Write], *, before: float) -> Write | None:
        """A write committed before ``before`` that came after what the read saw, whatever the order."""
        seen = values.get(read.value)
        for write in self.writes:
            newer = seen is None or (seen.end < write.begin and not seen.is_repeated)
            if write.block == read.block and write.end < before and newer:
                return write
        return None

    def _backwards(self, values: dict[int, Write]) -> list[str]:
        """I9: a later opening of a node does not see what is older than what an earlier one saw."""
        found = []
        newest: dict[tuple[str, int], tuple[float, Read]] = {}
        for opening in sorted(self.openings, key=lambda opening: opening.end):
            for read in opening.reads:
                before = newest.get((opening.node, read.block))
                if before is not None and before[0] < opening.begin:
                    earlier, now = values.get(before[1].value), values.get(read.value)
                    if earlier is not None and (
                        now is None or (now.end < earlier.begin and not now.is_repeated)
                    ):
                        found.append(
                            f"block {read.block}: {opening.node} saw {before[1].value}, and opening again {read.value}"
                        )
                newest[opening.node, read.block] = (opening.end, read)
        return found


def _thawed(opening: Opening) -> list[str]:
    """Promise 3: a view never changes."""
    seen: dict[int, int] = {}
    return [
        f"block {read.block}: a frozen view showed {seen[read.block]}, then {read.value}"
        for read in opening.reads
        if seen.setdefault(read.block, read.value) != read.value
    ]


def conflicts(writes: Sequence[Write], reads: Sequence[Read], *, initial: int = 0) -> list[tuple[int, int]]:
    """Pairs of values that no order of one block's operations explains.

    Args:
        writes: of one block, each with a value of its own.
        reads: of that block, each of a value in ``writes``, or the first one.
        initial: what the block held before.
    """
    begins: dict[int, float] = defaultdict(lambda: -NEVER)
    ends: dict[int, float] = defaultdict(lambda: NEVER)
    ends[initial], begins[initial] = -NEVER, -NEVER
    seen = {read.value for read in reads}
    for operation in (*writes, *reads):
        value = operation.value
        if isinstance(operation, Write) and operation.end == NEVER and value not in seen:
            continue  # it may never have happened
        begins[value] = max(begins[value], operation.begin)
        ends[value] = min(ends[value], operation.end)
    values = set(begins) | set(ends)
    forward = sorted((ends[value], begins[value], value) for value in values if ends[value] < begins[value])
    backward = [(begins[value], ends[value], value) for value in values if ends[value] >= begins[value]]
    found = []
    reached, holder = -NEVER, -1
    for begin, end, value in forward:
        if begin < reached:
            found.append((holder, value))
        if end > reached:
            reached, holder = end, value
    for begin, end, value in backward:
        found += [(other, value) for low, high, other in forward if low < begin and end < high]
    return found
