"""Difference streams between plain files: written, cut, gone on with, read, refused."""

import io
import os
import pathlib
import random
import sys
from types import SimpleNamespace

import pytest

from metadata.difference_stream import StreamHeader
from metadata.differences import DATA_KIND, HOLE_KIND, ChangedRange
from metadata.errors import Corrupt, Exists
from tools.difference_export import PART, Difference, export_difference
from tools.difference_import import (
    StagedFile,
    StreamReader,
    copy_ranges,
    opened_stream,
    staging_name,
)

KIB = 1 << 10
SIZE = 3 * KIB * KIB + 100
HEADER = StreamHeader(SIZE, "now", (("pool", 16, 2),), (("pool", 16, 5),))
RANGES = [
    ChangedRange(0, 8 * KIB, DATA_KIND),
    ChangedRange(64 * KIB, 32 * KIB, HOLE_KIND),
    ChangedRange(128 * KIB, 2 << 20, DATA_KIND),
    ChangedRange(SIZE - 100, 100, DATA_KIND),
]


def unheard(done: int, total: int = 0) -> None:
    """Progress that nobody looks at."""


class Pair:
    """A file before and after, and the difference."""

    def __init__(self, folder: pathlib.Path) -> None:
        chance = random.Random(5)
        before = bytearray(chance.randbytes(SIZE))
        after = bytearray(before)
        for offset, length, kind in RANGES:
            after[offset : offset + length] = bytes(length) if kind == HOLE_KIND else chance.randbytes(length)
        self.after, self.source, self.target = bytes(after), folder / "source", folder / "target"
        self.source.write_bytes(after)
        self.target.write_bytes(before)
        self.stream = folder / "stream"

    def export(self, header: StreamHeader = HEADER, ranges: list[ChangedRange] | None = None) -> None:
        wanted = Difference(header, str(self.source), RANGES if ranges is None else ranges)
        export_difference(wanted, str(self.stream), progress=unheard)

    def apply(self, *, was_begun: bool = False) -> int:
        """Bytes that were written."""
        written = 0

        with opened_stream(str(self.stream)) as stream, self.target.open("r+b") as target:
            reader = StreamReader(stream)
            assert reader.header() == HEADER
            staged = StagedFile(target.fileno(), was_begun=was_begun)

            def apply(found: object) -> None:
                nonlocal written
                written += 1
                staged.apply(found)  # type: ignore[arg-type]

            reader.apply(SimpleNamespace(apply=apply), applied=unheard)
        return written


@pytest.fixture
def pair(tmp_path: pathlib.Path) -> Pair:
    return Pair(tmp_path)


def test_a_difference_applied_to_the_older_content_gives_the_newer(pair: Pair) -> None:
    pair.export()
    assert pair.stream.stat().st_size < (2 << 20) + 16 * KIB
    pair.apply()
    assert pair.target.read_bytes() == pair.after
    assert sorted(os.listdir(pair.stream.parent)) == ["source", "stream", "target"]


def test_an_export_that_was_cut_goes_on_behind_its_last_whole_range(pair: Pair) -> None:
    pair.export()
    whole = pair.stream.read_bytes()
    pair.stream.unlink()
    part = pair.stream.with_name("stream" + PART)
    for cut in (0, 5, 200, 10 * KIB, 500 * KIB, len(whole) - 200, len(whole) - 1):
        part.write_bytes(whole[:cut])
        # What is there already is not read again: the source may have lost it.
        if cut > 10 * KIB:
            with pair.source.open("r+b") as source:
                source.write(bytes(8 * KIB))
        pair.export()
        assert pair.stream.read_bytes() == whole
        pair.stream.unlink()
        pair.source.write_bytes(pair.after)


def test_what_was_left_of_another_difference_is_written_over(pair: Pair) -> None:
    other = StreamHeader(SIZE, "then", (), (("pool", 16, 4),))
    pair.export(other)
    part = pair.stream.with_name("stream" + PART)
    for left in (pair.stream.read_bytes()[:-9], b"something else", b"VDISKDIF" + bytes(100)):
        pair.stream.unlink(missing_ok=True)
        part.write_bytes(left)
        pair.export()
        pair.apply()
        assert pair.target.read_bytes() == pair.after


def test_an_export_replaces_nothing(pair: Pair) -> None:
    pair.stream.write_bytes(b"mine")
    with pytest.raises(Exists):
        pair.export()
    assert pair.stream.read_bytes() == b"mine"


def test_a_source_that_ends_too_early_is_an_error(pair: Pair) -> None:
    os.truncate(pair.source, SIZE // 2)
    with pytest.raises(Corrupt, match="shorter"):
        pair.export()
    assert not pair.stream.exists()


def test_a_cut_stream_says_so_and_is_gone_on_with(pair: Pair) -> None:
    pair.export()
    whole = pair.stream.read_bytes()
    for cut in (3, 40, 300, 1 << 20, len(whole) - 1):
        pair.stream.write_bytes(whole[:cut])
        with pytest.raises(Corrupt, match="cut"):
            pair.apply(was_begun=True)
    pair.stream.write_bytes(whole + b"x" * 50)
    with pytest.raises(Corrupt, match="behind its end"):
        pair.apply(was_begun=True)
    pair.stream.write_bytes(whole)
    pair.apply(was_begun=True)
    assert pair.target.read_bytes() == pair.after


def test_a_pipe_in_between_is_as_good(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=pipe))
    export_difference(Difference(HEADER, str(pair.source), RANGES), "-", progress=unheard)
    pair.export()
    assert pipe.getvalue() == pair.stream.read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(pipe.getvalue())))
    with opened_stream("-") as stream:
        assert StreamReader(stream).header() == HEADER


def test_ranges_are_copied_and_what_is_equal_is_left_alone(pair: Pair) -> None:
    with pair.source.open("rb") as source, pair.target.open("r+b") as target:
        copied: list[int] = []
        copy_ranges(source.fileno(), target.fileno(), RANGES, applied=copied.append)
        assert copied[-1] == sum(found.length for found in RANGES)
        with pytest.raises(Corrupt, match="shorter"):
            copy_ranges(
                source.fileno(),
                target.fileno(),
                [ChangedRange(SIZE - 5, 10, DATA_KIND)],
                applied=copied.append,
            )
    assert pair.target.read_bytes() == pair.after


def test_a_staging_vdisk_s_name_belongs_to_one_stream_and_one_target() -> None:
    names = {
        staging_name(target, header)
        for target in ("/mnt/a", "/mnt/b", "/mnt/\udcff")
        for header in (HEADER, StreamHeader(SIZE, "now", (), HEADER.identities))
    }
    assert len(names) == 6
    assert staging_name("/elsewhere/a", HEADER) in names
