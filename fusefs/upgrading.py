"""An upgrade as the keeper sees it: a successor is made ready beside the daemon, then takes its place.

    preparing --the successor stands by--> finishing --the daemon ended--> starting --ready--> done
        |                                      |                              |
        +--it cannot, or takes too long: refused, the daemon never noticed    +--it died: the old release is started
                                               +--the daemon is too slow: killed, which costs guests no more

Whatever fails, somebody who can serve goes on, and the one who asked is told why in one line.
"""

import os
import select
import socket
import time
from dataclasses import replace
from enum import Enum

from fusefs import handover
from fusefs.daemon_process import DaemonProcess, describe_status
from fusefs.handover import Report, Stage
from fusefs.settings import NodeSettings, UpgradeSettings

PREPARE_S = 60.0
"""A successor that does not stand by by then never will."""
FINISH_S = 60.0
"""A daemon that does not finish within this hangs; it writes back while it still serves, so mostly it takes seconds."""


class Phase(Enum):
    """Where an upgrade is in the diagram above."""

    PREPARING = "preparing"
    FINISHING = "finishing"
    STARTING = "starting"


class Upgrade:
    """One upgrade, until it succeeded or failed. The keeper owns it.

    Args:
        client: who asked, and is told.
        wanted: what is to serve.
        told: the settings of the daemon, for its successor.

    Raises:
        Unavailable: the successor cannot be started.
    """

    def __init__(self, client: socket.socket, wanted: UpgradeSettings, told: NodeSettings) -> None:
        self.wanted = wanted
        self.phase = Phase.PREPARING
        self.paused_at: float | None = None
        """When guests began to wait."""
        self._client = client
        self._deadline = time.monotonic() + PREPARE_S
        standby_fd, self._go_fd = os.pipe2(os.O_CLOEXEC)
        try:
            self.successor = DaemonProcess.start(
                wanted.daemon,
                replace(told, standby_fd=standby_fd),
                environment={"PYTHONPATH": wanted.pythonpath},
            )
        except BaseException:
            os.close(self._go_fd)
            raise
        finally:
            os.close(standby_fd)
        self._tell(Report(progress="starting the successor beside the daemon"))

    def register(self, poller: select.poll) -> None:
        """Wake the poller when something happens to the successor."""
        if self.phase is not Phase.STARTING:
            self.successor.register(poller)

    def wait_ms(self) -> float:
        """Until the deadline of this phase."""
        return max(0.0, self._deadline - time.monotonic()) * 1000

    def step(self, daemon: DaemonProcess | None, *, serving: bool) -> str | None:
        """Take in what happened to the successor; why the upgrade is refused, if it is.

        Args:
            daemon: the one that is to make way, if there is one.
            serving: it can finish; one that is only starting is killed.
        """
        ended = self.successor.has_ended()
        for report in self.successor.reports_nowait():
            if report.error is not None:
                return report.error
            if report.stage is Stage.STANDING_BY and self.phase is Phase.PREPARING:
                self.phase = Phase.FINISHING
                self._deadline = time.monotonic() + FINISH_S
                self._tell(Report(progress="the successor is ready; the daemon finishes"))
                if daemon is not None and serving:
                    daemon.finish()
                elif daemon is not None:
                    daemon.kill()
        late = time.monotonic() >= self._deadline
        if self.phase is Phase.PREPARING:
            if ended:
                return "it ended before it was ready"
            return f"it was not ready after {PREPARE_S:g} s" if late else None
        if late and not ended and daemon is not None:
            daemon.kill()
        return None

    def promote(self) -> DaemonProcess:
        """The daemon has ended: let the successor go on."""
        self.phase = Phase.STARTING
        self.paused_at = self.paused_at or time.monotonic()
        try:
            os.write(self._go_fd, b"g")
        except OSError:
            pass  # it has died meanwhile, which is noticed next
        return self.successor

    def succeed(self) -> None:
        """The successor serves."""
        self._end(Report(ready=True))

    def fail(self, reason: str) -> None:
        """Somebody else serves, or will."""
        self._end(Report(error=reason))

    def discard(self) -> None:
        """End a successor that is not needed."""
        self.successor.kill()
        status = self.successor.bury()
        assert status is not None, describe_status(status)

    def _end(self, outcome: Report) -> None:
        self._tell(outcome)
        self._client.close()
        os.close(self._go_fd)

    def _tell(self, report: Report) -> None:
        handover.send(self._client.fileno(), report)
