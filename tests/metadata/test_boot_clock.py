"""The machine's own clock and the number of its start."""

from metadata import boot_clock


def test_the_boot_s_number_fits_a_row_and_its_clock_goes_on() -> None:
    assert boot_clock.boot_number() == boot_clock.boot_number()
    assert 0 < boot_clock.boot_number() < 2**63
    before = boot_clock.boot_time_ns()
    assert before <= boot_clock.boot_time_s() * 1e9 + 1e6
    assert before <= boot_clock.boot_time_ns()
