"""Whether this release can serve a pool with a state directory: their formats, owners and permissions.

    STATE/pool      whose state it is: the pool's id
    STATE/format    of index and journal; a directory without it is of format 1

A daemon asks before it opens anything; a successor that stands by asks while the daemon before still serves, so
what it cannot read is refused before anything was given up.
"""

import os
import pathlib

from fusefs.settings import NodeSettings
from metadata.errors import InvalidRequest, NoSpace, Unavailable
from replication.pool import Pool
from replication.pool_catalog import check_catalog
from replication.pool_directory import write_durably
from replication.pools import open_pool

STATE_FORMAT = 1
_FILE_BYTES_MAX = 4096


def check_pool(pool: Pool) -> None:
    """
    Raises:
        InvalidRequest: it cannot be written.
    """
    pool.check_writable()


def check_state(state: str, pool: Pool) -> None:
    """A state directory is of one pool: another's index and journal would mean nothing here. Marks a new one.

    Raises:
        InvalidRequest: it is another pool's, or of another format.
        NoSpace, Unavailable: it cannot be written, or read.
    """
    known_format = _read(state, "format") or ("1" if _read(state, "pool") else "")
    if known_format not in ("", str(STATE_FORMAT)):
        raise InvalidRequest(
            f"the state directory is of format {known_format}, this vdiskfs reads format {STATE_FORMAT}: use the vdiskfs "
            f"that wrote it, or unmount with that one and choose another directory with --state state={state}"
        )
    known_pool = _read(state, "pool")
    if known_pool not in ("", pool.pool_id):
        raise InvalidRequest(
            f"the state directory is another pool's: choose one with --state state={state} its={known_pool} this={pool.pool_id}"
        )
    for name, text, known in (
        ("format", str(STATE_FORMAT), _read(state, "format")),
        ("pool", pool.pool_id, known_pool),
    ):
        if not known:  # new, or cut off by a power failure before it was whole
            try:
                write_durably(os.path.join(state, name), text.encode() + b"\n")
            except OSError as exc:
                raise NoSpace(f"the state directory cannot be written: {exc.strerror} state={state}") from exc


def check_all(settings: NodeSettings) -> None:
    """All of it, beside a daemon that serves the same: nothing is locked, nothing changed.

    Raises:
        VdiskfsError: what this release cannot serve, and what to do.
    """
    pool = open_pool(settings.pool)
    try:
        check_pool(pool)
        check_catalog(settings.pool, pool.pool_id)
        check_state(settings.state, pool)
    finally:
        pool.close()


def _read(state: str, name: str) -> str:
    try:
        content = pathlib.Path(state, name).read_bytes()[:_FILE_BYTES_MAX]
    except FileNotFoundError:
        return ""
    except OSError as exc:
        raise Unavailable(f"the state directory cannot be read: {exc.strerror} state={state}") from exc
    return content.strip(b"\0\n ").decode("ascii", errors="replace")
