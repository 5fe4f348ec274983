"""The calls on real mounts; the command line's verbs in this process, as a Python's start takes longer than they do."""

import contextlib
import io
import itertools
import json
import os
import pathlib
import shutil
import signal
import time
from collections.abc import Sequence

from metadata.errors import VdiskfsError
from tests.calls.drawing import PlainChance
from tests.calls.file_machine import Run
from tests.calls.nodes_session import NodesSession
from tests.calls.plain_calls import Files
from tests.calls.reference import Reference
from tests.calls.session import Session
from tests.mounted_pool import END_S, MountedPool
from tools import cli
from tools.asking import ask
from tools.paths import locate


class MountedFiles(Files):
    """A folder of one pool, through each of its mounts."""

    def __init__(self, mounts: Sequence[MountedPool], folder: str) -> None:
        super().__init__([str(mount.mountpoint) for mount in mounts], folder)
        self.mounts = mounts
        os.mkdir(self.at("0/"))

    def vdiskfs(self, *arguments: str) -> dict | None:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
            if cli.main(list(arguments)):
                return None
        return json.loads(said.getvalue()) if "--json" in arguments else {}

    def kill(self, path: str) -> str:
        mount = self.mounts[int(path.partition("/")[0])]
        os.kill(self._daemon(mount), signal.SIGKILL)
        return "ok"

    def _daemon(self, mount: MountedPool) -> int:
        """The process that serves; the next one's, if the last one has just been killed."""
        deadline = time.monotonic() + END_S
        while True:
            try:
                pid: int = ask(locate(str(mount.mountpoint)), "status", {})["pid"]
                return pid
            except VdiskfsError:
                assert time.monotonic() < deadline, "no daemon serves the mount"

    def remount(self, path: str) -> str:
        mount = self.mounts[int(path.partition("/")[0])]
        mount.umount()
        mount.mount()
        return "ok"

    def clear(self) -> None:
        """After a failure: whatever is there."""
        for fd in self.fds.values():
            with contextlib.suppress(OSError):
                os.close(fd)
        with contextlib.suppress(OSError):
            for where, _, files in os.walk(self.at("0/")):
                for name in files:
                    self.vdiskfs("rm", "--snapshots", "--now", os.path.join(where, name))
        shutil.rmtree(self.at("0/"), ignore_errors=True)


def run_on(mounts: Sequence[MountedPool], folder: pathlib.Path) -> Run:
    """Examples in folders of these mounts, beside ordinary ones in ``folder``."""
    folder.mkdir()
    numbers = itertools.count()
    subjects: dict[Session, MountedFiles] = {}

    def begin() -> Session:
        name = f"example{next(numbers)}"
        reference = Reference(str(folder), name, node_count=len(mounts))
        subject = MountedFiles(mounts, name)
        kind = Session if len(mounts) == 1 else NodesSession
        session = kind(subject, reference, PlainChance(0))
        subjects[session] = subject
        return session

    def clear(session: Session) -> None:
        subjects.pop(session).clear()
        session.reference.clear()

    return Run(begin, clear)
