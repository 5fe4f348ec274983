"""What is measured while nodes are soaked, as lines of a CSV file; and whether it is flat. Pure.

**The bound.** The first WARM_UP_S (or the first third, of a short run) does not count. Of what follows, the median of the
last quarter may lie above that of the first by no more than the quantity's allowance, or a tenth: whoever leaks a page or a
descriptor with each of some thousand requests is far beyond that within half an hour, and whoever does not stays below it
for ever. Processes that the soak kills begin anew each time: for these the largest values of the two quarters are compared.
So they are for what lies on disks, which breathes with collection.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields

WARM_UP_S = 600.0
SHARE_MAX = 0.10
MIB = 1 << 20
ALLOWANCES = {
    "resident_bytes": 32 * MIB,
    "descriptors": 32,
    "threads": 32,
    "state_bytes": 128 * MIB,
    "pool_bytes": 256 * MIB,
}
"""Growth that is none, by quantity. Threads: those that wait for disks are started as work comes, up to limits, and stay.
Memory: the index's own caches fill with work, not with time, to 48 MiB."""
BREATHING = {"state_bytes", "pool_bytes"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One quantity of one process or place at one time."""

    seconds: float
    """Since the beginning."""
    subject: str
    """Such as "a daemon", "c keeper", "pool"."""
    quantity: str
    value: int


@dataclass(frozen=True, slots=True)
class Finding:
    """Of one series: what it was at first and at last, and whether that is flat."""

    subject: str
    quantity: str
    first: float
    last: float
    is_flat: bool

    def __str__(self) -> str:
        unit, divisor = ("MiB", MIB) if self.quantity.endswith("_bytes") else ("", 1)
        verdict = "flat" if self.is_flat else "GROWS"
        return (
            f"{self.subject:10} {self.quantity:15} {self.first / divisor:9.1f} -> {self.last / divisor:9.1f} "
            f"{unit:3} {verdict}"
        )


def to_csv(samples: Iterable[Sample]) -> str:
    """With a line of heads."""
    heads = ",".join(field.name for field in fields(Sample))
    return "\n".join([heads, *(",".join(map(str, astuple(sample))) for sample in samples)]) + "\n"


def from_csv(text: str) -> list[Sample]:
    """As ``to_csv`` wrote it."""
    rows = [line.split(",") for line in text.splitlines()[1:]]
    return [Sample(float(row[0]), row[1], row[2], int(row[3])) for row in rows]


def series_of(samples: Iterable[Sample]) -> dict[tuple[str, str], list[tuple[float, int]]]:
    """Points in order of time, by subject and quantity."""
    found: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for sample in samples:
        found.setdefault((sample.subject, sample.quantity), []).append((sample.seconds, sample.value))
    return found


def judge(samples: Sequence[Sample], *, killed: Iterable[str] = ()) -> list[Finding]:
    """A finding for each series that is long enough to say anything.

    Args:
        samples: all of a soak.
        killed: subjects that were begun anew again and again.
    """
    end_s = max((sample.seconds for sample in samples), default=0.0)
    warm_s = min(WARM_UP_S, end_s / 3)
    reborn = set(killed)
    findings = []
    for (subject, quantity), points in series_of(samples).items():
        values = [value for seconds, value in points if seconds >= warm_s]
        if len(values) < 4:
            continue
        quarter = len(values) // 4
        middle = max if quantity in BREATHING or subject in reborn else statistics.median
        first, last = float(middle(values[:quarter])), float(middle(values[-quarter:]))
        limit = first + max(ALLOWANCES[quantity], SHARE_MAX * first)
        findings.append(Finding(subject, quantity, first, last, last <= limit))
    return findings
