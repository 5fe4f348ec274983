"""What the samples amount to: medians, ratios, verdicts, the table's lines and the JSON. Pure."""

import dataclasses
import enum
import statistics
from collections.abc import Sequence

from tools.bench_rows import OURS, Measure, Plan, Row, Target

NAME_WIDTH = 32
FIGURE_WIDTH = 10
TARGET_WIDTH = 20


class Verdict(enum.Enum):
    """What became of a row's target."""

    REACHED = "reached"
    SHORT = "short"
    OPEN = "-"
    FAILED = "failed"


@dataclasses.dataclass(slots=True)
class RowResult:
    """A row's samples by contender, filled while it is measured. A row that failed has none and says why."""

    row: Row
    samples: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    failure: str | None = None

    def median(self, contender: str) -> float | None:
        """The median of a contender's samples; None: it was not measured."""
        samples = self.samples.get(contender)
        return statistics.median(samples) if samples else None

    def ratio(self, against: str) -> float | None:
        """Our median over another's."""
        ours, other = self.median(OURS), self.median(against)
        return ours / other if ours is not None and other else None

    def verdict(self) -> Verdict:
        """Whether the target is reached; open where there is none or too little was measured."""
        if self.failure is not None:
            return Verdict.FAILED
        target = self.row.target
        if target is None:
            return Verdict.OPEN
        if target.against is not None:
            ratio = self.ratio(target.against)
            return Verdict.OPEN if ratio is None else _judge(ratio >= target.bound)
        ours = self.median(OURS)
        return Verdict.OPEN if ours is None else _judge(ours <= target.bound)


def _judge(reached: bool) -> Verdict:
    return Verdict.REACHED if reached else Verdict.SHORT


def format_figure(value: float | None, measure: Measure) -> str:
    """A median for the table, three or four digits of it."""
    if value is None:
        return "-"
    if measure is Measure.IOPS and value >= 1000:
        return f"{value / 1000:.0f}k" if value >= 100_000 else f"{value / 1000:.1f}k"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def format_target(target: Target | None, measure: Measure) -> str:
    """A target in words, such as ``>= 2.0 x qcow2``."""
    if target is None:
        return "-"
    if target.against is not None:
        return f">= {target.bound:.1f} x {target.against}"
    return f"<= {target.bound:g} {measure.value}"


def format_header(contenders: Sequence[str]) -> str:
    """The table's first line."""
    figures = "".join(f"{name:>{FIGURE_WIDTH}}" for name in contenders)
    return f"{'row':{NAME_WIDTH}}{'unit':6}{figures}{'ratio':>8}  {'target':{TARGET_WIDTH}}verdict"


def format_row(result: RowResult, contenders: Sequence[str]) -> str:
    """A row's line, and one more for each note and for a failure."""
    row = result.row
    figures = "".join(
        f"{format_figure(result.median(name), row.measure):>{FIGURE_WIDTH}}" for name in contenders
    )
    against = row.target.against if row.target is not None else None
    ratio = result.ratio(against) if against is not None else None
    lines = [
        f"{row.name:{NAME_WIDTH}}{row.measure.value:6}{figures}"
        f"{'-' if ratio is None else f'{ratio:.2f}':>8}"
        f"  {format_target(row.target, row.measure):{TARGET_WIDTH}}{result.verdict().value}"
    ]
    lines += [f"    {note}" for note in result.notes]
    if result.failure is not None:
        lines.append(f"    {result.failure}")
    return "\n".join(lines)


def format_summary(results: Sequence[RowResult]) -> str:
    """How many rows were measured, how many targets were reached, and which were not."""
    by_verdict = {verdict: [r.row.name for r in results if r.verdict() is verdict] for verdict in Verdict}
    reached, short, failed = (by_verdict[v] for v in (Verdict.REACHED, Verdict.SHORT, Verdict.FAILED))
    target_count = sum(result.row.target is not None for result in results)
    lines = [f"{len(results)} rows, {len(reached)} of {target_count} targets reached"]
    if short:
        lines.append("short: " + ", ".join(short))
    if failed:
        lines.append("failed: " + ", ".join(failed))
    return "\n".join(lines)


def format_machine(machine: dict[str, object]) -> str:
    """The lines above the table: where and when."""
    memory = machine["memory_bytes"]
    assert isinstance(memory, int)
    packages = machine["packages"]
    assert isinstance(packages, dict)
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    return "\n".join(
        [
            f"{machine['date']}, {machine['cores']} cores of {machine['cpu']}, {memory / 2**30:.0f} GiB, "
            f"Linux {machine['kernel']}, {machine['filesystem']}, load {machine['load_before']}",
            f"Python {machine['python']}, {versions}; {machine['fio']}; {machine['qemu']}",
        ]
    )


def plan_json(results: Sequence[RowResult], *, machine: dict[str, object], plan: Plan) -> dict[str, object]:
    """Everything measured, in the command line's envelope."""
    return {
        "format": 1,
        "machine": machine,
        "plan": dataclasses.asdict(plan),
        "rows": [_row_json(result) for result in results],
    }


def _row_json(result: RowResult) -> dict[str, object]:
    row = result.row
    others = [name for name in result.samples if name != OURS]
    return {
        "name": row.name,
        "title": row.title,
        "unit": row.measure.value,
        "target": dataclasses.asdict(row.target) if row.target is not None else None,
        "samples": result.samples,
        "medians": {name: result.median(name) for name in result.samples},
        "ratios": {name: result.ratio(name) for name in others},
        "verdict": result.verdict().value,
        "notes": result.notes,
        "failure": result.failure,
    }
