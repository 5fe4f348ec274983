"""Says how much of the four packages the tests run, by line and by branch; fails below the floor. Used by make coverage.

python -m tests.coverage_floor REPORT.json        as ``coverage json`` writes it
"""

import json
import pathlib
import sys
from collections.abc import Mapping

BRANCHES_MIN = 92.0
"""Percent. A daemon that is killed takes along what it knew, so a little more is run than is counted."""


def shares(totals: Mapping[str, int]) -> tuple[float, float]:
    """Percent of lines and of branches that were run."""
    return (
        100 * totals["covered_lines"] / totals["num_statements"],
        100 * totals["covered_branches"] / totals["num_branches"],
    )


def main(arguments: list[str]) -> int:
    """The exit code."""
    (path,) = arguments
    lines, branches = shares(json.loads(pathlib.Path(path).read_text())["totals"])
    print(f"lines {lines:.1f} %, branches {branches:.1f} %")
    if branches < BRANCHES_MIN:
        print(f"too few branches: at least {BRANCHES_MIN:g} % must be run")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
