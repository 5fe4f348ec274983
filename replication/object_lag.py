"""What a flush has left on the node's own disk, on its way into the pool: durability ``node``.

    flush (thread) -> local file, fdatasync -> Trail.add: acknowledged, unless too much or too old waits already
    sender         <- Trail: the ranges of one flush after the other -> objects

**In order.** A range goes up when all before it are in the pool, several at once only as one object; so what the pool has is
at each moment some earlier state of the log, whole. Only the last commit may be there in part, as a torn one, and the log's
reader knows that.

**Known.** A file named BEHIND beside the vdisk's local files says that some of them may hold what the pool has not. It is
durable before the first such flush returns, and goes when nothing is left. The next daemon of this node sends the rest
before it reads the log, if the vdisk is still this node's; if it is not, that is refused and kept aside (``pool_objects``).
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from metadata.errors import Fenced, Unavailable, VdiskfsError
from metadata.units import BLOCK_BYTES
from replication.pool import pool_error

log = logging.getLogger(__name__)

BEHIND = "behind"
LAG_BYTES_MAX = 256 << 20
"""Of one vdisk: flushes wait while more is on its way. What a lost node loses at most."""
LAG_S_MAX = 60.0
"""Flushes wait while something is on its way for longer: a pool that is gone so long is no pause any more."""
WAIT_S_MAX = 120.0
"""A flush, or who needs the pool to have all, waits so long without anything arriving; then it fails, and may be tried again."""
LOT_BLOCKS = 2048
"""Flushes that make one object: 8 MiB."""
SENDERS_MAX = 16
"""Vdisks of which something goes up at once."""
TELL_EVERY = 60
"""Failures in a row for one line in the log."""
PAUSE_S = 1.0
"""The store's own retries have given up: before the next ones."""


class Sending(Protocol):
    """A group whose local file has what the pool has not."""

    def send(self, end: int) -> None:
        """Brings all blocks before ``end`` into the pool. Raises: Fenced, Unavailable."""


@dataclass(slots=True, eq=False)
class _Step:
    """What one flush made durable here of one group."""

    group: Sending
    end: int
    blocks: int
    since_s: float


@dataclass(frozen=True, slots=True)
class Lag:
    """How far the pool is behind."""

    bytes: int = 0
    seconds: float = 0.0
    commits: int = 0


class Trail:
    """One to a vdisk whose flushes return before the pool has all. Any thread.

    Args:
        folder: of the vdisk's local files.
        submit: runs the sender in a thread.
    """

    def __init__(
        self,
        folder: str,
        submit: Callable[[Callable[[], None]], object],
        *,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mark, self._submit, self._clock_s = os.path.join(folder, BEHIND), submit, clock_s
        self._changed = threading.Condition()
        self._steps: deque[_Step] = deque()
        self._blocks = 0
        self._is_sending = self._is_closing = self._is_marked = False
        self._arrived_s, self._failures = clock_s(), 0
        self.refused: VdiskfsError | None = None
        """Why nothing more goes up: the vdisk is another node's."""

    def lag(self) -> Lag:
        with self._changed:
            if not self._steps:
                return Lag()
            age_s = self._clock_s() - self._steps[0].since_s
            return Lag(self._blocks * BLOCK_BYTES, round(age_s, 3), len(self._steps))

    @property
    def is_marked(self) -> bool:
        """Whether the next daemon would have to look what the pool lacks."""
        return self._is_marked

    def add(self, group: Sending, end: int, *, blocks: int) -> None:
        """A flush has made blocks of the group up to ``end`` durable here; returns when it may be acknowledged.

        Raises:
            Fenced: they will never be in the pool.
            Unavailable: the pool is too far behind for too long; they are on their way all the same.
        """
        with self._changed:
            self._check()
            self._note_behind()
            self._steps.append(_Step(group, end, blocks, self._clock_s()))
            self._blocks += blocks
            begins, self._is_sending = not self._is_sending, True
        if begins:
            self._begin()
        with self._changed:
            self._wait(self._has_room)

    def settle(self) -> None:
        """Returns when the pool has all that was added before.

        Raises:
            Fenced: it never will. Unavailable: it has not.
        """
        with self._changed:
            last = self._steps[-1] if self._steps else None
            self._wait(lambda: last not in self._steps)
            if not self._steps and self._is_marked:
                self._is_marked = False
                with suppress(OSError):
                    os.unlink(self._mark)

    def refuse(self, why: VdiskfsError) -> Lag:
        """Nothing more goes up; returns what does not."""
        lag = self.lag()
        with self._changed:
            self.refused = why
            self._steps.clear()
            self._blocks = 0
            self._is_marked = False
            self._changed.notify_all()
        return lag

    def close(self) -> None:
        """The daemon ends; the next one goes on."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()

    def _check(self) -> None:
        if self.refused is not None:
            raise type(self.refused)(str(self.refused))

    def _note_behind(self) -> None:
        if self._is_marked:
            return
        try:
            os.close(os.open(self._mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            sync_folder(os.path.dirname(self._mark))
        except OSError as exc:
            raise pool_error(exc, f"creating {self._mark}") from exc
        self._is_marked = True

    def _has_room(self) -> bool:
        if not self._steps or self._blocks * BLOCK_BYTES <= LAG_BYTES_MAX:
            return not self._steps or self._clock_s() - self._steps[0].since_s <= LAG_S_MAX
        return False

    def _wait(self, over: Callable[[], bool]) -> None:
        self._arrived_s = max(self._arrived_s, self._clock_s())  # from now on
        while not over():
            self._check()
            if self._is_closing:
                raise Unavailable("the pool is closed")
            left_s = self._arrived_s + WAIT_S_MAX - self._clock_s()
            if left_s <= 0:
                raise Unavailable(
                    f"the pool is behind what was flushed here bytes={self._blocks * BLOCK_BYTES}"
                )
            self._changed.wait(left_s)
        self._check()

    # ---- the sender

    def _begin(self) -> None:
        try:
            self._submit(self._send_all)
        except RuntimeError:  # the pool is being closed
            self._is_sending = False

    def _send_all(self) -> None:
        while lot := self._next_lot():
            try:
                lot[-1].group.send(lot[-1].end)
            except Fenced as exc:
                self.refuse(exc)
            except VdiskfsError as exc:
                if not self._failures % TELL_EVERY:
                    log.warning("the pool is behind what was flushed here, tried again: %s", exc)
                self._failures += 1
                with self._changed:
                    if not self._is_closing:
                        self._changed.wait(PAUSE_S)
            except Exception as exc:
                log.exception("unexpected error while sending")
                self.refuse(Unavailable(f"unexpected error while sending: {exc!r}"))
            else:
                self._note_arrived(lot)

    def _next_lot(self) -> list[_Step]:
        with self._changed:
            lot: list[_Step] = []
            for step in self._steps:
                size = sum(each.blocks for each in lot) + step.blocks
                if lot and (step.group is not lot[0].group or size > LOT_BLOCKS):
                    break
                lot.append(step)
            if not lot or self._is_closing:
                self._is_sending = False
                return []
            return lot

    def _note_arrived(self, lot: list[_Step]) -> None:
        with self._changed:
            for step in lot:
                if self._steps and self._steps[0] is step:
                    self._steps.popleft()
                    self._blocks -= step.blocks
            self._arrived_s, self._failures = self._clock_s(), 0
            self._changed.notify_all()


class Trails:
    """Those of all vdisks of a pool; one to a pool. Any thread.

    Args:
        folder: of the local files; each vdisk has one below.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._by_vdisk: dict[int, Trail] = {}
        self._lock = threading.Lock()
        self._senders = ThreadPoolExecutor(SENDERS_MAX, "trail")
        self.is_local: Callable[[int], bool] = lambda vdisk: False
        """Whether flushes of a vdisk return when this node's disk has it."""
        self.followed: set[int] = set()
        """Vdisks of which other nodes are told each version: the pool has it first."""
        self.left_behind: set[int] = set()
        """Vdisks of which an earlier daemon left something unsent."""
        self.refused: set[int] = set()
        """Vdisks of which something was refused: the index may know what never was in the pool."""

    def flushes_here(self, vdisk: int) -> bool:
        return vdisk not in self.followed and self.is_local(vdisk)

    def folder_of(self, vdisk: int) -> str:
        """Of the vdisk's local files."""
        return os.path.join(self._folder, f"{vdisk:016x}")

    def of(self, vdisk: int) -> Trail:
        """The vdisk's, made if there is none."""
        with self._lock:
            found = self._by_vdisk.get(vdisk)
            if found is None:
                found = self._by_vdisk[vdisk] = Trail(self.folder_of(vdisk), self._senders.submit)
            return found

    def settle(self, vdisk: int) -> None:
        """As ``Trail.settle``."""
        found = self._by_vdisk.get(vdisk)
        if found is not None:
            found.settle()

    def may_lag(self, vdisk: int) -> bool:
        """Whether the pool may lack anything of the vdisk, as far as the local disk says."""
        found = self._by_vdisk.get(vdisk)
        return vdisk in self.left_behind or (found is not None and found.is_marked)

    def has(self, vdisk: int) -> bool:
        """Whether this process has acknowledged flushes of the vdisk before the pool had them."""
        return vdisk in self._by_vdisk

    def lag(self, vdisk: int) -> Lag:
        found = self._by_vdisk.get(vdisk)
        return Lag() if found is None else found.lag()

    def facts(self) -> dict[str, object]:
        """For ``status``: bytes and flushes of all vdisks, the age of the oldest."""
        lags = [trail.lag() for trail in list(self._by_vdisk.values())]
        return {
            "lag_bytes": sum(lag.bytes for lag in lags),
            "lag_s": max((lag.seconds for lag in lags), default=0.0),
            "lag_commits": sum(lag.commits for lag in lags),
            "lag_vdisks": sum(lag.commits > 0 for lag in lags),
        }

    def note_sent(self, vdisk: int) -> None:
        """What an earlier daemon left is in the pool, or no use any more."""
        self.left_behind.discard(vdisk)
        with suppress(OSError):
            os.unlink(os.path.join(self.folder_of(vdisk), BEHIND))

    def drop(self, vdisk: int, why: VdiskfsError) -> Lag:
        """Nothing more of the vdisk goes up; a new owner's log may begin another trail."""
        with self._lock:
            found = self._by_vdisk.pop(vdisk, None)
        return Lag() if found is None else found.refuse(why)

    def close(self) -> None:
        """Senders end with what they do now."""
        for trail in list(self._by_vdisk.values()):
            trail.close()
        self._senders.shutdown()


def sync_folder(path: str) -> None:
    """Names in a folder are durable when it returns.

    Raises:
        OSError: they are not.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
