"""The guests of a soak as processes: started, watched, ended."""

import json
import os
import pathlib
import subprocess
import sys
from dataclasses import dataclass

from tests.soak.guest import Report

ROOT = pathlib.Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Work:
    """What a guest is to do."""

    name: str
    kind: str
    paths: tuple[pathlib.Path, ...]


class Guests:
    """All of them; used with ``with``.

    Processes of their own: one that waits for a stopped daemon must hold up nobody who starts another.
    """

    def __init__(self, folder: pathlib.Path, works: list[Work], *, seed: int) -> None:
        self._folder, self._works, self._seed = folder, works, seed
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Guests":
        for number, work in enumerate(self._works):
            command = [sys.executable, "-m", "tests.soak.guest", work.kind, str(self._report(work.name))]
            self._processes[work.name] = subprocess.Popen(
                [*command, str(self._seed + number), *map(str, work.paths)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
            )
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()

    def _report(self, name: str) -> pathlib.Path:
        return self._folder / f"{name}.guest"

    def reports(self) -> dict[str, Report]:
        """What each has done, by name."""
        found = {}
        for work in self._works:
            path = self._report(work.name)
            found[work.name] = Report(**json.loads(path.read_text())) if path.exists() else Report(work.kind)
        return found

    def failures(self) -> list[str]:
        """Guests that found something wrong, or ended."""
        found = []
        for name, report in self.reports().items():
            exit_code = self._processes[name].poll()
            if report.failed or exit_code is not None:
                found.append(f"{name}: {report.failed or f'ended with {exit_code}'}")
        return found
