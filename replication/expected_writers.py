"""Files that are about to be opened for writing: whoever wants to was told to look the name up again, and comes at once.

Meanwhile the name leads to the head, and the vdisk is not given away. The kernel looks up again only once, so a daemon
that dies in between must not take that knowledge with it: each expectation is noted in a file before the answer goes out.
That one has been met is not noted: the next daemon may expect somebody who has come, for some seconds, and nobody minds.
"""

import logging
import os
import struct
from collections.abc import Callable

from xxhash import xxh3_64_intdigest

log = logging.getLogger(__name__)

WRITING_S = 5.0
"""So long somebody is expected. The kernel looks the name up at once, twice, and each time a silent owner may be waited for."""
RESTART_S = 60.0
"""A keeper may take so long to bring the next daemon: what was expected when the last one died is expected again."""
_WASTE_MAX = 4096
"""Records in the file that count for nothing before it is written anew."""
_RECORD = struct.Struct("<QdQ")
"""Vdisk, until when, a checksum."""


class ExpectedWriters:
    """One to a daemon that has others; owned by its ``Company``.

    Args:
        path: of the file.
        clock_s: goes on from daemon to daemon.
        note_over: told of a vdisk for which nobody has come.
    """

    def __init__(self, path: str, *, clock_s: Callable[[], float], note_over: Callable[[int], None]) -> None:
        self._path, self._clock_s, self._note_over = path, clock_s, note_over
        self._untils: dict[int, list[float]] = {}
        """For each open that was told, by vdisk, until when it is expected to come again."""
        self._fd, self._records = -1, 0

    def open(self) -> None:
        """Reads what an earlier daemon left: whoever it had told just before may come now."""
        now_s = self._clock_s()
        for vdisk, until_s in self._read():
            if now_s - RESTART_S < until_s <= now_s + WRITING_S:  # else of before the machine's restart
                self._untils.setdefault(vdisk, []).append(now_s + WRITING_S)
        self._rewrite()

    def close(self) -> None:
        """At the daemon's end."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

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
        self._records += 1
        if self._records > _WASTE_MAX:
            self._rewrite()
        else:
            self._write(_encoded(vdisk, until_s))

    def note_come(self, vdisk: int) -> None:
        """One of them is there."""
        untils = self._untils.get(vdisk)
        if untils and len(untils) > 1:
            untils.pop(0)
        else:
            self._untils.pop(vdisk, None)

    # ---- the file

    def _read(self) -> list[tuple[int, float]]:
        found: list[tuple[int, float]] = []
        try:
            with open(self._path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return found
        for at in range(0, len(data) - _RECORD.size + 1, _RECORD.size):
            vdisk, until_s, check = _RECORD.unpack_from(data, at)
            if xxh3_64_intdigest(data[at : at + _RECORD.size - 8]) != check:
                log.warning("the list of expected writers is cut short: %s", self._path)
                break
            found.append((vdisk, until_s))
        return found

    def _rewrite(self) -> None:
        records = [_encoded(vdisk, until_s) for vdisk, untils in self._untils.items() for until_s in untils]
        self._records = len(records)
        self.close()
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(self._path + ".new", flags, 0o600)
            self._write(b"".join(records))
            os.rename(self._path + ".new", self._path)
        except OSError as exc:
            log.warning("expected writers are not noted for the next daemon: %s", exc)

    def _write(self, data: bytes) -> None:
        """A full disk costs the next daemon what is not written, and nobody anything else."""
        try:
            if self._fd >= 0:
                os.write(self._fd, data)
        except OSError as exc:
            log.warning("an expected writer is not noted for the next daemon: %s", exc)


def _encoded(vdisk: int, until_s: float) -> bytes:
    body = struct.pack("<Qd", vdisk, until_s)
    return body + xxh3_64_intdigest(body).to_bytes(8, "little")
