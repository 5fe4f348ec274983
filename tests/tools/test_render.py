"""What the command line shows: tables, values in their units, JSON, progress on terminals only."""

import io
import json

import pytest

from tools import render


def test_json_comes_in_a_versioned_envelope(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_json({"name": "\udcff é", "size": 1 << 60})
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert json.loads(printed) == {"format": 1, "name": "\udcff é", "size": 1 << 60}


def test_a_table_lines_up_and_disarms_terminals(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_table(("NAME", "SIZE"), [("a\x1b[2J\n", "1"), ("b\udcff", "1000")])
    assert capsys.readouterr().out.splitlines() == [
        "NAME        SIZE",
        r"a\x1b[2J\n     1",
        r"b\udcff     1000",
    ]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_is_for_terminals_and_wiped_at_the_end() -> None:
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        with render.ProgressLine(stream) as line:
            line.show_bytes("import", 1 << 20, 2 << 20)
            line.show("too soon to be read")
    assert terminal.getvalue().split("\r")[1] == "import: 1 MiB of 2 MiB, 50 %"
    assert terminal.getvalue().endswith(" \r")
    assert file.getvalue() == ""
