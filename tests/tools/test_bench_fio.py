"""fio's command line as planned, and its JSON as read."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from metadata.errors import Unavailable
from tools.bench_fio import Amount, Job, parse_output, plan_arguments

READ = Job(rw="randread", block_bytes=4096, depth=16)
WRITE = Job(rw="randwrite", block_bytes=4096, depth=1, direct=False)
DISK = Path("/mnt/disk")


def direction(**facts: int) -> dict[str, int]:
    return {"total_ios": 0, "io_bytes": 0, "runtime": 0, **facts}


def output(*jobs: dict[str, Any]) -> str:
    return json.dumps({"fio version": "fio-3.33", "jobs": list(jobs)})


def job(*, read: dict[str, int] | None = None, write: dict[str, int] | None = None, error: int = 0) -> Any:
    return {"error": error, "read": read or direction(), "write": write or direction()}


def test_direct_jobs_queue_with_libaio_and_buffered_ones_call_read_and_write() -> None:
    direct = plan_arguments(READ, [DISK], amount=Amount(span_bytes=1 << 30), seed=1)
    buffered = plan_arguments(WRITE, [DISK], amount=Amount(span_bytes=1 << 30), seed=1)
    assert {"--direct=1", "--ioengine=libaio", "--iodepth=16"} <= set(direct)
    assert {"--direct=0", "--ioengine=psync"} <= set(buffered)


def test_no_job_touches_the_page_cache_or_makes_a_file() -> None:
    arguments = plan_arguments(WRITE, [DISK], amount=Amount(span_bytes=4096), seed=1)
    assert {"--invalidate=0", "--allow_file_create=0", "--fallocate=none"} <= set(arguments)


def test_a_timed_reading_job_goes_round_and_a_timed_writing_one_ends_with_its_span() -> None:
    amount = Amount(span_bytes=1 << 30, seconds=1.5)
    reading = plan_arguments(READ, [DISK], amount=amount, seed=1)
    writing = plan_arguments(WRITE, [DISK], amount=amount, seed=1)
    assert "--runtime=1500ms" in reading
    assert "--runtime=1500ms" in writing
    assert "--time_based=1" in reading
    assert "--time_based=1" not in writing


def test_a_reading_job_may_open_the_file_as_a_writing_one_does() -> None:
    arguments = plan_arguments(
        dataclasses.replace(READ, opens_for_writing=True), [DISK], amount=Amount(span_bytes=4096), seed=1
    )
    assert {"--rw=randrw", "--rwmixread=100"} <= set(arguments)


def test_a_count_of_operations_is_passed_on() -> None:
    assert "--number_ios=100" in plan_arguments(
        READ, [DISK], amount=Amount(span_bytes=1 << 30, operations=100), seed=1
    )


def test_an_amount_of_random_writes_keeps_no_map_of_the_whole_span() -> None:
    arguments = plan_arguments(
        WRITE, [DISK], amount=Amount(span_bytes=1 << 40, written_bytes=1 << 33), seed=1
    )
    assert {f"--size={1 << 40}", f"--io_size={1 << 33}", "--norandommap=1"} <= set(arguments)


def test_each_file_gets_its_own_job_and_a_colon_in_its_name_does_not_split_it() -> None:
    arguments = plan_arguments(READ, [DISK, Path("/mnt/a:b")], amount=Amount(span_bytes=4096), seed=7)
    assert arguments[-4:] == ["--name=bench", "--filename=/mnt/disk", "--name=bench", "--filename=/mnt/a\\:b"]
    assert "--randseed=7" in arguments


def test_a_job_s_figures_are_operations_and_bytes_over_its_time() -> None:
    text = output(job(read=direction(total_ios=20_000, io_bytes=81_920_000, runtime=400)))
    [figures] = parse_output(text)
    assert (figures.iops, figures.megabytes_per_s) == (50_000.0, 204.8)


def test_the_jobs_figures_come_in_the_order_of_the_files() -> None:
    text = output(
        job(read=direction(total_ios=1, io_bytes=4096, runtime=1000)),
        job(write=direction(total_ios=2, io_bytes=8192, runtime=1000)),
    )
    assert [figures.operations for figures in parse_output(text)] == [1, 2]


def test_remarks_before_the_json_are_skipped() -> None:
    text = "note: both iodepth >= 1 and synchronous I/O engine are selected\n"
    [figures] = parse_output(text + output(job(write=direction(total_ios=1, io_bytes=4096, runtime=10))))
    assert figures.bytes_done == 4096


def test_a_job_too_short_for_its_clock_is_not_infinitely_fast() -> None:
    [figures] = parse_output(output(job(write=direction(total_ios=1, io_bytes=4096, runtime=0))))
    assert figures.iops == 1000.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not the JSON expected"),
        ("fio: file not found\n", "not the JSON expected"),
        ('{"jobs": []', "not the JSON expected"),
        ('{"jobs": [{"error": 0}]}', "not the JSON expected"),
        ('{"jobs": [7]}', "not the JSON expected"),
        (output(job(error=5, read=direction(total_ios=1, io_bytes=1, runtime=1))), "errno=5"),
        (output(job()), "did nothing"),
    ],
)
def test_output_that_is_no_result_is_refused(text: str, message: str) -> None:
    with pytest.raises(Unavailable, match=message):
        parse_output(text)
