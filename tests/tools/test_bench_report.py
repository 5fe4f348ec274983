"""The benchmark's arithmetic: medians, ratios, verdicts, the table's lines and the JSON."""

import json

import pytest

from tools.bench_report import (
    RowResult,
    Verdict,
    format_figure,
    format_header,
    format_row,
    format_summary,
    format_target,
    plan_json,
)
from tools.bench_rows import FULL, OURS, QCOW2, ROWS, Measure, Row, Stage, Target

CONTENDERS = ("raw", QCOW2, OURS)
RATIO_ROW = Row("reading", "", Stage.READ, Measure.IOPS, Target(2.0, QCOW2))
LIMIT_ROW = Row("waiting", "", Stage.MOUNT, Measure.SECONDS, Target(2.0))
OPEN_ROW = Row("watching", "", Stage.READ, Measure.IOPS)


def result_of(row: Row, **samples: list[float]) -> RowResult:
    return RowResult(row, samples=samples)


def test_a_median_is_not_moved_by_one_sample_gone_wrong() -> None:
    assert result_of(RATIO_ROW, vdiskfs=[100.0, 90.0, 1.0]).median(OURS) == 90.0


def test_a_ratio_is_our_median_over_the_other_s() -> None:
    result = result_of(RATIO_ROW, vdiskfs=[30.0, 10.0, 20.0], qcow2=[5.0, 4.0, 3.0])
    assert result.ratio(QCOW2) == 5.0


def test_a_ratio_to_somebody_who_was_not_measured_is_unknown() -> None:
    assert result_of(RATIO_ROW, vdiskfs=[30.0]).ratio(QCOW2) is None
    assert result_of(RATIO_ROW, qcow2=[30.0]).ratio(QCOW2) is None


@pytest.mark.parametrize(
    ("row", "samples", "verdict"),
    [
        (RATIO_ROW, {"vdiskfs": [20.0], "qcow2": [10.0]}, Verdict.REACHED),
        (RATIO_ROW, {"vdiskfs": [19.9], "qcow2": [10.0]}, Verdict.SHORT),
        (RATIO_ROW, {"vdiskfs": [19.9]}, Verdict.OPEN),
        (LIMIT_ROW, {"vdiskfs": [2.0]}, Verdict.REACHED),
        (LIMIT_ROW, {"vdiskfs": [2.01]}, Verdict.SHORT),
        (LIMIT_ROW, {"qcow2": [1.0]}, Verdict.OPEN),
        (OPEN_ROW, {"vdiskfs": [1.0], "qcow2": [2.0]}, Verdict.OPEN),
    ],
)
def test_a_verdict_compares_our_median_with_the_target(
    row: Row, samples: dict[str, list[float]], verdict: Verdict
) -> None:
    assert RowResult(row, samples=samples).verdict() is verdict


def test_a_row_that_failed_is_never_reached() -> None:
    assert RowResult(OPEN_ROW, failure="fio failed").verdict() is Verdict.FAILED


@pytest.mark.parametrize(
    ("value", "measure", "text"),
    [
        (None, Measure.IOPS, "-"),
        (152_300.0, Measure.IOPS, "152k"),
        (19_049.0, Measure.IOPS, "19.0k"),
        (431.0, Measure.IOPS, "431"),
        (1807.6, Measure.MEGABYTES_PER_S, "1808"),
        (7.345, Measure.CPU_US, "7.34"),
        (12.06, Measure.CPU_US, "12.1"),
        (0.214, Measure.INDEX_PERCENT, "0.21"),
    ],
)
def test_a_figure_keeps_three_digits(value: float | None, measure: Measure, text: str) -> None:
    assert format_figure(value, measure) == text


def test_a_target_says_whether_it_is_a_ratio_or_a_limit() -> None:
    assert format_target(Target(0.9, "raw"), Measure.IOPS) == ">= 0.9 x raw"
    assert format_target(Target(250), Measure.MEMORY_MIB) == "<= 250 MiB"
    assert format_target(None, Measure.IOPS) == "-"


def test_the_table_s_columns_stand_under_their_heads() -> None:
    header = format_header(CONTENDERS)
    line = format_row(result_of(RATIO_ROW, qcow2=[50_000.0], vdiskfs=[152_000.0]), CONTENDERS)
    for head, cell in ((QCOW2, "50.0k"), (OURS, "152k"), ("ratio", "3.04")):
        assert header.index(head) + len(head) == line.index(cell) + len(cell)
    assert header.index("target") == line.index(">= 2.0 x qcow2")
    assert header.index("verdict") == line.index("reached")


def test_every_row_s_name_and_target_fit_their_columns() -> None:
    header = format_header(CONTENDERS)
    for row in ROWS:
        line = format_row(RowResult(row), CONTENDERS)
        assert line.index(row.measure.value) == header.index("unit")
        assert len(format_target(row.target, row.measure)) < header.index("verdict") - header.index("target")


def test_notes_and_the_reason_of_a_failure_follow_their_row() -> None:
    result = RowResult(LIMIT_ROW, notes=["not cold"], failure="ls failed")
    assert format_row(result, CONTENDERS).splitlines()[1:] == ["    not cold", "    ls failed"]


def test_the_summary_names_what_fell_short_and_what_failed() -> None:
    results = [
        result_of(RATIO_ROW, vdiskfs=[3.0], qcow2=[1.0]),
        result_of(LIMIT_ROW, vdiskfs=[3.0]),
        RowResult(OPEN_ROW, failure="it broke"),
    ]
    assert format_summary(results).splitlines() == [
        "3 rows, 1 of 2 targets reached",
        "short: waiting",
        "failed: watching",
    ]


def test_the_json_holds_every_sample_and_the_plan() -> None:
    result = result_of(RATIO_ROW, vdiskfs=[3.0, 1.0, 2.0], qcow2=[1.0])
    report = json.loads(json.dumps(plan_json([result], machine={"cores": 2}, plan=FULL)))
    assert (report["format"], report["machine"], report["plan"]["rounds"]) == (1, {"cores": 2}, FULL.rounds)
    [row] = report["rows"]
    assert row["samples"] == {"vdiskfs": [3.0, 1.0, 2.0], "qcow2": [1.0]}
    assert row["medians"] == {"vdiskfs": 2.0, "qcow2": 1.0}
    assert (row["ratios"], row["verdict"]) == ({"qcow2": 2.0}, "reached")
    assert row["target"] == {"bound": 2.0, "against": "qcow2"}
