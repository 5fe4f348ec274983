"""A soak as one HTML page that loads nothing from anywhere: a drawing for each quantity, a line for each subject. Pure."""

import html
from collections.abc import Sequence

from tests.soak.samples import MIB, Finding, Sample, series_of

WIDTH, HEIGHT = 980, 230
LEFT, RIGHT, TOP, BOTTOM = 64, 130, 24, 26
COLOURS = ("#0b6fa4", "#d1495b", "#2e8b57", "#e09f3e", "#7b5ea7", "#5c677d", "#00a6a6", "#8c564b")
POINTS_MAX = 1000
"""Of a line: more are thinned out."""
QUANTITIES = {
    "resident_bytes": "resident memory, MiB",
    "descriptors": "open descriptors",
    "threads": "threads",
    "state_bytes": "state directories, MiB",
    "pool_bytes": "pool, MiB",
}
STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2em;max-width:1100px}pre{background:#f4f4f4;padding:1em;overflow:auto}"
    "svg{display:block;margin:1em 0}svg text{font:11px system-ui,sans-serif;fill:#444}"
)

Mark = tuple[float, str]
"""When something was done to the nodes, and what."""


def page(
    title: str, samples: Sequence[Sample], *, marks: Sequence[Mark], findings: Sequence[Finding], facts: str
) -> str:
    """The page."""
    series = series_of(samples)
    end_s = max((sample.seconds for sample in samples), default=1.0) or 1.0
    drawings = []
    for quantity, label in QUANTITIES.items():
        lines = {subject: points for (subject, what), points in series.items() if what == quantity}
        if lines:
            divisor = MIB if quantity.endswith("_bytes") else 1
            drawings.append(_drawing(label, lines, marks=marks, end_s=end_s, divisor=divisor))
    verdicts = "\n".join(map(str, findings))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1><pre>{html.escape(facts)}</pre>"
        f"{''.join(drawings)}<pre>{html.escape(verdicts)}</pre></html>\n"
    )


def _drawing(
    label: str,
    lines: dict[str, list[tuple[float, int]]],
    *,
    marks: Sequence[Mark],
    end_s: float,
    divisor: int,
) -> str:
    top = max(value for points in lines.values() for _, value in points) / divisor * 1.05 or 1.0
    across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(seconds: float) -> float:
        return LEFT + across * seconds / end_s

    def y(value: float) -> float:
        return TOP + up * (1 - value / top)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}">']
    parts.append(f'<text x="{LEFT}" y="14" font-weight="bold">{html.escape(label)}</text>')
    for seconds, what in marks:
        parts.append(
            f'<line x1="{x(seconds):.1f}" x2="{x(seconds):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#eee">'
            f"<title>{html.escape(what)}</title></line>"
        )
    for part in range(5):
        value = top * part / 4
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>'
            f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.0f}</text>'
            f'<text x="{x(end_s * part / 4):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{end_s * part / 240:.0f} min</text>'
        )
    for number, (subject, points) in enumerate(sorted(lines.items())):
        colour = COLOURS[number % len(COLOURS)]
        thinned = points[:: max(1, len(points) // POINTS_MAX)]
        path = " ".join(f"{x(seconds):.1f},{y(value / divisor):.1f}" for seconds, value in thinned)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        at = TOP + 12 + 15 * number
        parts.append(
            f'<rect x="{WIDTH - RIGHT + 8}" y="{at - 8}" width="9" height="9" fill="{colour}"/>'
            f'<text x="{WIDTH - RIGHT + 22}" y="{at}">{html.escape(subject)}</text>'
        )
    return "".join(parts) + "</svg>"
