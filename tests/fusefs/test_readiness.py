"""Whether this release can serve a pool with a state directory: whose it is, of which format, and cut-off files."""

import pathlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from fusefs.readiness import STATE_FORMAT, check_all, check_state
from fusefs.settings import NO_FD, NodeSettings
from metadata.errors import InvalidRequest, NoSpace, NotFound, Unavailable
from replication.pool import Pool
from replication.pools import format_pool, open_pool


@pytest.fixture
def pool(tmp_path: pathlib.Path) -> Iterator[Pool]:
    format_pool(str(tmp_path / "pool")).close()
    (tmp_path / "state").mkdir()
    opened = open_pool(str(tmp_path / "pool"))
    yield opened
    opened.close()


@pytest.fixture
def state(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "state"


def content(state: pathlib.Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in state.iterdir()}


def test_a_new_state_directory_is_marked_with_its_pool_and_format(pool: Pool, state: pathlib.Path) -> None:
    check_state(str(state), pool)
    assert content(state) == {"pool": f"{pool.pool_id}\n", "format": f"{STATE_FORMAT}\n"}
    check_state(str(state), pool)


@pytest.mark.parametrize("left", [b"", b"\n", bytes(30)])
def test_marks_that_a_power_failure_cut_off_are_written_again(
    pool: Pool, state: pathlib.Path, left: bytes
) -> None:
    for name in ("pool", "format"):
        (state / name).write_bytes(left)
    check_state(str(state), pool)
    assert content(state) == {"pool": f"{pool.pool_id}\n", "format": f"{STATE_FORMAT}\n"}


def test_one_without_a_format_is_of_the_first(pool: Pool, state: pathlib.Path) -> None:
    (state / "pool").write_text(pool.pool_id)
    check_state(str(state), pool)
    assert content(state)["format"] == "1\n"


@pytest.mark.parametrize("known", [str(STATE_FORMAT + 1), "0", "one", "\udcff"])
def test_another_format_is_refused_and_nothing_changed(pool: Pool, state: pathlib.Path, known: str) -> None:
    (state / "format").write_bytes(known.encode(errors="surrogateescape"))
    with pytest.raises(InvalidRequest, match="the state directory is of format"):
        check_state(str(state), pool)
    assert [path.name for path in state.iterdir()] == ["format"]


def test_another_pool_s_is_refused(pool: Pool, state: pathlib.Path) -> None:
    (state / "pool").write_text("0123456789abcdef")
    with pytest.raises(InvalidRequest, match=r"another pool's.*its=0123456789abcdef"):
        check_state(str(state), pool)
    assert content(state) == {"pool": "0123456789abcdef"}


def test_one_that_cannot_be_read_or_written_says_so(pool: Pool, state: pathlib.Path) -> None:
    (state / "format").mkdir()
    with pytest.raises(Unavailable, match="cannot be read: Is a directory"):
        check_state(str(state), pool)
    with pytest.raises(NoSpace, match="cannot be written: No such file"):
        check_state(str(state / "missing"), pool)


def test_a_successor_checks_all_and_leaves_the_pool_as_it_is(pool: Pool, state: pathlib.Path) -> None:
    settings = NodeSettings(
        pool=str(state.parent / "pool"),
        mountpoint="/mnt",
        node="a",
        state=str(state),
        control="/control",
        uid=0,
        fuse_fd=NO_FD,
        init_fd=NO_FD,
        ready_fd=NO_FD,
    )
    check_all(settings)
    with pytest.raises((NotFound, InvalidRequest)):
        check_all(replace(settings, pool=str(state)))
    (state / "pool").write_text("0123456789abcdef")
    with pytest.raises(InvalidRequest, match="another pool's"):
        check_all(settings)
