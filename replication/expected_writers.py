"""Files that are about to be opened for writing: whoever wants to was told to look the name up again, and comes at once.

Meanwhile the name leads to the head, and the vdisk is not given away. The kernel looks up again only once, so a daemon
that dies in between must not take that knowledge with it: each expectation is noted in a file before the answer goes out.
That one has been met is not noted: the next daemon may expect somebody who has come, for some seconds, and nobody minds.
"""

from collections.abc import Callable, Iterator

from replication.record_file import RecordFile

WRITING_S = 5.0
"""So long somebody is expected. The kernel looks the name up at once, twice, and each time a silent owner may be waited for."""
RESTART_S = 60.0
"""A keeper may take so long to bring the next daemon: what was expected when the last one died is expected again."""


class ExpectedWriters:
    """One to a daemon that has others; owned by its ``Company``.

    Args:
        path: of the file.
        clock_s: goes on from daemon to daemon.
        note_over: told of a vdisk for which nobody has come.
    """

    def __init__(self, path: str, *, clock_s: Callable[[], float], note_over: Callable[[int], None]) -> None:
        self._clock_s, self._note_over = clock_s, note_over
        self._untils: dict[int, list[float]] = {}
        """For each open that was told, by vdisk, until when it is expected to come again."""
        self._file = RecordFile(path, "<Qd", what="expected writers", current=self._records)

    def open(self) -> None:
        """Reads what an earlier daemon left: whoever it had told just before may come now."""
        now_s = self._clock_s()
        for vdisk, until_s in self._file.read():
            if now_s - RESTART_S < until_s <= now_s + WRITING_S:  # else of before the machine's restart
                self._untils.setdefault(vdisk, []).append(now_s + WRITING_S)
        self._file.rewrite()

    def close(self) -> None:
        """At the daemon's end."""
        self._file.close()

    def _records(self) -> Iterator[tuple[int, float]]:
        """By vdisk, until when somebody is expected."""
        return ((vdisk, until_s) for vdisk, untils in self._untils.items() for until_s in untils)

    def is_expected(self, vdisk: int) -> bool:
        """Whether somebody is."""
        return vdisk in self._untils and self._clock_s() < self._untils[vdisk][-1]

    def expect(self, vdisk: int) -> None:
        """Somebody is being told to look the name up again."""
        now_s = self._clock_s()
        for one in [one for one, untils in self._untils.items() if untils[-1] <= now_s]:
            del self._untils[one]
            self._note_over(one)
        until_s = now_s + WRITING_S
        self._untils.setdefault(vdisk, []).append(until_s)
        self._file.add((vdisk, until_s))

    def note_come(self, vdisk: int) -> None:
        """One of them is there."""
        untils = self._untils.get(vdisk)
        if untils and len(untils) > 1:
            untils.pop(0)
        else:
            self._untils.pop(vdisk, None)
