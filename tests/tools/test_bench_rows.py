"""The table of rows: complete, selectable, and bounded in what it asks of a disk."""

import dataclasses

import pytest

from metadata.errors import InvalidRequest
from tools.bench_node_rows import MEASURES
from tools.bench_rows import (
    CHAIN_STAGES,
    CLIENT,
    DIRECTORY,
    FORWARDED,
    FULL,
    GIB,
    LOCAL,
    OURS,
    OWNER,
    QCOW2,
    QUICK,
    RAW,
    ROWS,
    SCRATCH_BYTES_MAX,
    Measure,
    Stage,
    Target,
    plan_scratch_bytes,
    plan_stages,
    select_rows,
)

TARGETS = {row.name: row.target for row in ROWS if row.target is not None}


def test_no_two_rows_share_a_name() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_the_targets_are_those_that_were_agreed() -> None:
    reading = {
        "randread-qd1": Target(1.0, QCOW2),
        "randread-qd16": Target(2.0, QCOW2),
        "seqread-qd4": Target(1.0, QCOW2),
        "buffered-randread": Target(0.9, RAW),
    }
    overwritten = {f"overwritten-{name}": target for name, target in reading.items()}
    assert {
        **reading,
        **overwritten,
        "overwritten-seqread-qd4": Target(0.5, QCOW2),
        "randwrite-qd1": Target(1.0, QCOW2),
        "randwrite-qd16": Target(2.0, QCOW2),
        "seqwrite-qd4": Target(1.0, QCOW2),
        "write-fdatasync": Target(0.8, RAW),
        "buffered-randwrite": Target(1.0, QCOW2),
        "buffered-seqwrite": Target(1.0, QCOW2),
        "cpu-read": Target(10),
        "cpu-write": Target(12),
        "memory": Target(250),
        "index-sequential": Target(0.3),
        "index-random": Target(2.0),
        "mount": Target(2.0),
        "pause-kill": Target(1000),
        "pause-upgrade": Target(300),
        **{
            f"{verb}-{size}": Target(20)
            for verb in ("snapshot", "clone", "rollback", "delete")
            for size in ("small", "large")
        },
        "behind-snapshots": Target(3.0, QCOW2),
        "snapshots-slow-down": Target(10),
        "clones-slow-down": Target(10),
        "diff": Target(1.0),
        "tree": Target(1.0),
        "gc-slows-down": Target(20),
        "peer-randread": Target(0.9, OWNER),
        "local-reads": Target(5.0, FORWARDED),
        "forwarded-write-qd1": Target(0.5, LOCAL),
        "forwarded-write-qd16": Target(0.5, LOCAL),
        "fsync-visible-p50": Target(2),
        "fsync-visible-p99": Target(5),
        "flush-subscribers": Target(3),
        "flush-unfollowed": Target(1.1),
        "hand-over": Target(50),
        "takeover": Target(500),
        "node-mount": Target(2.0),
        "node-memory": Target(150),
        "object-second-read": Target(0.95, DIRECTORY),
        "object-first-read": Target(0.9, CLIENT),
        "object-node-flush": Target(0.9, DIRECTORY),
        "object-count": Target(64),
    } == TARGETS


def test_everything_with_a_queue_or_a_cpu_figure_runs_a_job() -> None:
    throughput = {Measure.IOPS, Measure.MEGABYTES_PER_S, Measure.CPU_US}
    on_images = [row for row in ROWS if row.stage not in CHAIN_STAGES | {Stage.NODES, Stage.OBJECTS}]
    assert all((row.job is not None) == (row.measure in throughput) for row in on_images)


def test_rows_are_chosen_by_pattern_and_keep_the_table_s_order() -> None:
    assert [row.name for row in select_rows("memory,randread-*")] == [
        "randread-qd1",
        "randread-qd16",
        "memory",
    ]
    assert select_rows(None) == ROWS


def test_a_pattern_that_matches_nothing_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(InvalidRequest, match=r"'randraed'.*randread-qd1"):
        select_rows("memory,randraed")


def test_a_stage_s_rows_stay_together_and_every_row_is_in_one() -> None:
    stages = plan_stages(ROWS, FULL)
    assert [row for stage in stages for row in stage] == list(ROWS)
    assert all(len({row.stage for row in stage}) == 1 for stage in stages)


def test_the_overwritten_image_comes_after_every_row_of_the_fresh_one() -> None:
    for plan in (FULL, QUICK):
        for stage in plan_stages(ROWS, plan):
            reading = [row.overwritten for row in stage if row.job is not None and row.job.reads]
            assert reading == sorted(reading)


def test_the_quick_plan_runs_all_its_jobs_on_one_set_of_images() -> None:
    first, *others = plan_stages(ROWS, QUICK)
    assert {row.name for row in first} == {row.name for row in ROWS if row.job is not None}
    assert all(row.job is None for stage in others for row in stage)


def test_the_whole_benchmark_stays_within_its_disk_space() -> None:
    assert plan_scratch_bytes(ROWS, FULL, contender_count=4) <= SCRATCH_BYTES_MAX
    assert plan_scratch_bytes(ROWS, QUICK, contender_count=4) < 5 * GIB


def test_reading_needs_the_images_alone_and_each_writing_sample_may_add_one() -> None:
    reading = plan_scratch_bytes(select_rows("randread-qd1"), FULL, contender_count=4)
    writing = plan_scratch_bytes(select_rows("randwrite-qd1"), FULL, contender_count=4)
    assert (reading, writing) == (5 * GIB, 8 * GIB)


def test_more_rounds_than_the_disk_may_hold_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="fewer"):
        plan_scratch_bytes(ROWS, dataclasses.replace(FULL, rounds=30), contender_count=4)


def test_costs_are_ours_alone_and_ratios_are_to_somebody_else() -> None:
    assert all(target.against != OURS for target in TARGETS.values() if target is not None)


def test_every_row_about_several_nodes_is_measured_by_somebody() -> None:
    assert set(MEASURES) == {row.name for row in ROWS if row.stage is Stage.NODES}
