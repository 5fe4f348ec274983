"""Runs a trio program so that the same seed gives the same trace.

The two names are private to trio; ``test_deterministic.py`` pins what they do.
"""

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
import trio.testing

T = TypeVar("T")


def run_seeded(scenario: Callable[[random.Random], Awaitable[T]], seed: int) -> T:
    """Runs a scenario in virtual time; everything that is left to chance comes from ``seed``."""
    from trio._core import _run

    before = _run._ALLOW_DETERMINISTIC_SCHEDULING
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True
    _run._r.seed(seed)

    async def main() -> T:
        return await scenario(random.Random(seed))

    try:
        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = before
