"""Several nodes on one pool: each a mount with a state directory and processes of its own."""

import os
import pathlib
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from tests.mounted_pool import MountedPool

SOON_S = 30.0
"""What happens by and by has happened by then."""


class MountedNodes:
    """One pool under ``folder``, and the nodes that a test starts on it, by name."""

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        catalog: str = "",
        entrance: tuple[str, ...] = (),
        pool: pathlib.Path | None = None,
    ) -> None:
        """
        Args:
            catalog: its address; in the pool unless told.
            pool: elsewhere than below the folder.
            entrance: of the host where the pool is formatted.
        """
        self.folder = folder
        self.pool = pool or folder / "pool"
        self.by_name: dict[str, MountedPool] = {}
        self._stopped: set[int] = set()
        maker = self.node("format", is_mounted=False)
        maker.prefix = entrance
        maker.run("format", self.pool, *(["--catalog", catalog] if catalog else []))

    def node(self, name: str, *options: object, is_mounted: bool = True) -> MountedPool:
        """The node of this name, mounted unless it was before."""
        known = self.by_name.get(name)
        if known is None:
            known = self.by_name[name] = MountedPool(self.folder / name, node=name, pool=self.pool)
            if is_mounted:
                known.mount(*options)
        return known

    def pause(self, node: MountedPool) -> None:
        """SIGSTOP for all its processes."""
        for pid in node.processes():
            os.kill(pid, signal.SIGSTOP)
            self._stopped.add(pid)

    def wake(self, node: MountedPool) -> None:
        """SIGCONT for them."""
        for pid in node.processes():
            os.kill(pid, signal.SIGCONT)
            self._stopped.discard(pid)

    def stray_errors(self) -> list[str]:
        """The lines of all logs that no test expected."""
        return [line for node in self.by_name.values() for line in node.stray_errors()]

    def tear_down(self) -> None:
        """Leave nothing mounted and nothing running, however the test ended."""
        for pid in self._stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        for node in self.by_name.values():
            node.tear_down()


def wait_until(condition: Callable[[], bool], what: str, *, within_s: float = SOON_S) -> None:
    """Return when something has come true."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        os.sched_yield()
