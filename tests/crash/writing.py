"""Runs the writer process against a mount and collects what it noted."""

import os
import pathlib
import subprocess
import sys
import time

from tests.crash.history import History
from tests.mounted_pool import COMMAND_S

ROOT = pathlib.Path(__file__).parents[2]


class Writing:
    """One writer process: started, waited for by how far it got, and its notes."""

    def __init__(
        self, mountpoint: pathlib.Path, notes: pathlib.Path, *, seed: int, writes_max: int, round_no: int
    ) -> None:
        self.notes = notes
        notes.touch()
        self.output = notes.with_suffix(".out").open("w+")
        arguments = [mountpoint, notes, seed, writes_max, round_no]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.writer", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )

    def wait_noted(self, size: int) -> None:
        """Return when the notes have that many bytes, or the writer is done."""
        deadline = time.monotonic() + COMMAND_S
        while self.notes.stat().st_size < size:
            try:
                self.process.wait(0.01)
                return
            except subprocess.TimeoutExpired:
                assert time.monotonic() < deadline, f"the writer is stuck\n{self.printed()}"

    def wait_ended(self) -> None:
        """Return when the writer has ended, in good order."""
        status = self.process.wait(COMMAND_S)
        assert (status, "Traceback" in self.printed()) == (0, False), self.printed()

    def printed(self) -> str:
        """What the writer said, for a report."""
        self.output.seek(0)
        return self.output.read()

    def close(self) -> None:
        """Leave no writer behind."""
        self.process.kill()
        self.process.wait()
        self.output.close()

    def add_to(self, history: History) -> None:
        """Put everything noted so far into the history."""
        history.note(self.notes.read_text().splitlines())
