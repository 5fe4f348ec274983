"""The soak's own judgement: what leaks is found, what does not is not accused; and one of seconds, on real mounts."""

import os
import pathlib
import random

import pytest

from tests.soak.guest import BLOCK, block_of, count_in
from tests.soak.picture import page
from tests.soak.run import soak
from tests.soak.samples import MIB, Sample, from_csv, judge, to_csv

HOUR_S = 3600
SHORT_S = 6.0


def every_ten_seconds(quantity: str, value: "list[int]", subject: str = "a daemon") -> list[Sample]:
    return [Sample(10.0 * at, subject, quantity, one) for at, one in enumerate(value)]


def verdicts(samples: list[Sample], *killed: str) -> list[bool]:
    return [finding.is_flat for finding in judge(samples, killed=killed)]


def test_a_daemon_that_warms_up_and_breathes_is_flat() -> None:
    chance = random.Random(1)
    warm = [min(150, 60 + at * 2) * MIB + chance.randrange(8 * MIB) for at in range(360)]
    assert verdicts(every_ten_seconds("resident_bytes", warm)) == [True]
    assert verdicts(every_ten_seconds("descriptors", [40 + chance.randrange(9) for _ in warm])) == [True]


@pytest.mark.parametrize(
    ("quantity", "each_s"), [("resident_bytes", 20_000), ("descriptors", 0.03), ("threads", 0.03)]
)
def test_what_grows_with_every_second_is_found_within_the_hour(quantity: str, each_s: float) -> None:
    grows = [int(100 * (MIB if quantity == "resident_bytes" else 1) + each_s * 10 * at) for at in range(360)]
    assert verdicts(every_ten_seconds(quantity, grows)) == [False]


def test_a_daemon_that_is_killed_is_judged_by_its_largest() -> None:
    saw = [(60 + at % 40) * MIB for at in range(360)]
    assert verdicts(every_ten_seconds("resident_bytes", saw, "b daemon"), "b daemon") == [True]
    grows = [(60 + at % 40 + at // 4) * MIB for at in range(360)]
    assert verdicts(every_ten_seconds("resident_bytes", grows, "b daemon"), "b daemon") == [False]


def test_a_series_that_says_nothing_is_not_judged() -> None:
    assert judge([]) == []
    assert judge(every_ten_seconds("threads", [1, 2, 3])) == []


def test_samples_come_back_from_their_file() -> None:
    samples = every_ten_seconds("threads", [4, 5]) + every_ten_seconds("pool_bytes", [1 << 40], "pool")
    assert from_csv(to_csv(samples)) == samples


def test_the_page_draws_every_quantity_and_loads_nothing() -> None:
    samples = every_ten_seconds("resident_bytes", [MIB] * 20) + every_ten_seconds("threads", [3] * 20, "<c>")
    drawn = page("soaked", samples, marks=[(30.0, "a & b")], findings=judge(samples), facts="seed 1")
    assert drawn.count("<svg") == drawn.count("</svg>") == 2
    assert drawn.count("<polyline") == 2
    assert "&lt;c&gt;" in drawn
    assert "a &amp; b" in drawn
    assert "://" not in drawn


def test_a_guest_believes_no_block_that_is_another_s_or_torn() -> None:
    assert count_in(block_of(5, 3), 5) == 3
    assert count_in(bytes(BLOCK), 5) == 0
    for wrong in (block_of(6, 3), block_of(5, 3)[:2048] + block_of(5, 4)[2048:]):
        with pytest.raises(AssertionError):
            count_in(wrong, 5)


@pytest.mark.root
def test_some_seconds_of_it_find_nothing(tmp_path: pathlib.Path, seed: int) -> None:
    outcome = soak(SHORT_S, tmp_path / "soaked", seed=seed, period_s=1.0)
    print(*outcome.guests, *outcome.marks, sep="\n")
    assert outcome.problems == []
    assert outcome.marks
    assert {sample.quantity for sample in from_csv((tmp_path / "soaked/samples.csv").read_text())} >= {
        "resident_bytes",
        "descriptors",
        "threads",
        "pool_bytes",
    }
    assert (tmp_path / "soaked/soak.html").stat().st_size > 1000
    assert len(os.listdir(tmp_path / "soaked")) == 6
