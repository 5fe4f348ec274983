"""The floor under coverage: what is said, and when it fails."""

import json
import pathlib

import pytest

from tests.coverage_floor import main


@pytest.mark.parametrize(("covered", "code"), [(920, 0), (919, 1), (1000, 0)])
def test_it_fails_below_the_floor_of_branches_whatever_the_lines_are(
    covered: int, code: int, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    totals = {"covered_lines": 990, "num_statements": 1000, "covered_branches": covered, "num_branches": 1000}
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"totals": totals}))
    assert main([str(report)]) == code
    said = capsys.readouterr().out
    assert said.startswith(f"lines 99.0 %, branches {covered / 10:.1f} %\n")
    assert ("too few branches" in said) is bool(code)
