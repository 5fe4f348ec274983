"""What a keeper tells systemd, and what systemd keeps for it: sd_notify(3) and the file descriptor store.

Without NOTIFY_SOCKET in the environment nothing is said. The store holds /dev/fuse, the INIT file and the lock of the
state directory: a keeper and a daemon that were both killed then leave a mount that still waits, and the next
keeper of the unit gets the descriptors back through LISTEN_FDS.
"""

import contextlib
import os
import socket
import stat
from collections.abc import Mapping

FIRST_FD = 3
"""Descriptors of LISTEN_FDS are numbered from here."""
STORED = ("vdiskfs-fuse", "vdiskfs-init", "vdiskfs-lock")
"""Their names in the store."""


class ServiceNotifier:
    """The way to the service's supervisor; one to a keeper."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address

    @property
    def is_supervised(self) -> bool:
        """Whether somebody listens, who will stop this process in the end whatever it does."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """The mount is served by this process and its child."""
        self._send(f"READY=1\nMAINPID={os.getpid()}\nSTATUS={status}")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._send(f"STATUS={text}")

    def stopping(self, text: str) -> None:
        """The end has begun."""
        self._send(f"STOPPING=1\nSTATUS={text}")

    def store(self, descriptors: Mapping[str, int]) -> None:
        """Have copies of these kept over this process's death."""
        for name, descriptor in descriptors.items():
            self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")
            # FDPOLL=0: systemd would otherwise drop what poll(2) says has an error, and cannot poll a file.
            self._send(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", descriptor)

    def forget_stored(self) -> None:
        """The mount is gone; what is kept of it means nothing any more."""
        for name in STORED:
            self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def _send(self, message: str, *descriptors: int) -> None:
        if not self._address:
            return
        # A supervisor that is restarting itself hears nothing; the mount goes on.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
        ):
            sender.setblocking(False)
            sender.connect(self._address)
            socket.send_fds(sender, [message.encode(errors="replace")], descriptors)


def stored_descriptors(environment: Mapping[str, str]) -> dict[str, int]:
    """What systemd kept, by name; empty at the first start. What this process becomes by exec(2) gets them, too."""
    try:
        if int(environment.get("LISTEN_PID", "")) != os.getpid():
            return {}
        count = int(environment.get("LISTEN_FDS", ""))
    except ValueError:
        return {}
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    found = dict(zip(names, range(FIRST_FD, FIRST_FD + count), strict=False))
    return {name: descriptor for name, descriptor in found.items() if name in STORED}


def are_a_mounts(stored: Mapping[str, int]) -> bool:
    """Whether these are what ``STORED`` says; from now on they are closed in processes that this one starts."""
    if set(stored) != set(STORED):
        return False
    try:
        fuse, init, lock = (os.fstat(stored[name]).st_mode for name in STORED)
        for descriptor in stored.values():
            os.set_inheritable(descriptor, False)
    except OSError:
        return False
    return stat.S_ISCHR(fuse) and stat.S_ISREG(init) and stat.S_ISREG(lock)
