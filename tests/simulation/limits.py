"""Small limits: what is rare with the real ones, a full queue or a full group, happens all the time."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from replication import audience, collector, commit, follower, head, head_write, housekeeping, log, publisher

LIMITS = (
    ((audience,), "BACKLOG_MAX", (1, 1, 2, 32)),
    ((publisher,), "NEAR_VERSIONS", (1, 3, 32)),
    ((follower,), "TOLD_MAX", (1, 2, 32)),
    ((follower,), "UNUSED_S", (0.5, 3.0, 10.0)),
    ((commit,), "LIGHT_COMMITS_MAX", (1, 3, 64)),
    ((log,), "GROUP_BLOCKS", (48, 200, 16384)),
    ((collector,), "SEAL_BYTES_MIN", (0, 32 << 10, 4 << 20)),
    ((log,), "STEP_BLOCKS_MIN", (8, 64)),
    ((commit, head, head_write, housekeeping), "DIRTY_ROWS_MAX", (4, 4096)),
)
"""(Where, what, values that it may have)."""


@contextmanager
def limits_of(chance: random.Random) -> Iterator[None]:
    """Inside, each limit has one of its values."""
    with pytest.MonkeyPatch.context() as patch:
        for modules, name, values in LIMITS:
            value = chance.choice(values)
            for module in modules:
                if hasattr(module, name):
                    patch.setattr(module, name, value)
        yield
