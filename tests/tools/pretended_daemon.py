"""A mount that is none, and its daemon: says what the test tells it to, and keeps what it was asked."""

import os
import pathlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from fusefs.mount_table import MountEntry
from fusefs.processes import process_id
from fusefs.registry import MountRecord
from tools import cli

Answer = dict[str, Any] | Exception


class PretendedDaemon:
    """The daemon of the "mount" on a folder of a test; used instead of a kernel, a daemon and a socket."""

    def __init__(self, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mountpoint = str(folder)
        self.answers: dict[str, list[Answer]] = defaultdict(list)
        """By verb, what is said the next times."""
        self.news: dict[str, list[dict[str, Any]]] = {}
        """By verb, what is reported meanwhile."""
        self.asked: list[tuple[str, dict[str, object]]] = []
        me = process_id(os.getpid())
        self.record: MountRecord | None = MountRecord(
            mountpoint=self.mountpoint,
            pool="/pool",
            node="a",
            state="/state",
            control="/control",
            log="/log",
            uid=os.geteuid(),
            keeper_pid=me.pid,
            keeper_started=me.started_ticks,
        )
        entry = MountEntry(self.mountpoint, "fuse.vdiskfs", "/pool", 99, 0)
        monkeypatch.setattr("fusefs.mount_table.read_mounts", lambda: [entry])
        monkeypatch.setattr("fusefs.launch.find_record", lambda entry: self.record)
        monkeypatch.setattr("fusefs.control_client.call", self._call)

    def _call(
        self,
        path: str,
        verb: str,
        arguments: Mapping[str, object],
        *,
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> Any:
        assert path == "/control"
        self.asked.append((verb, dict(arguments)))
        for news in self.news.get(verb, ()):
            assert progress is not None
            progress(news)
        answer = self.answers[verb].pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def says(self, verb: str, *answers: Answer) -> None:
        """What the next times of a verb are answered with."""
        self.answers[verb] += answers

    def run(self, *words: str) -> int:
        """The command line's exit code; paths that begin with / lie below the mount."""
        return cli.main([self._below(word) for word in words])

    def _below(self, word: str) -> str:
        is_path = word.startswith("/") and not word.startswith(self.mountpoint)
        return self.mountpoint + word if is_path else word
