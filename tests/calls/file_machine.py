"""The Hypothesis state machine: a rule for each group of calls; a fresh folder on long-lived mounts for each example."""

import collections
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.calls.drawing import PlainChance
from tests.calls.reduction import reduced
from tests.calls.session import Difference, Session

EXAMPLES_AT_ONCE = 100
STEPS = 60
RARE = 30
"""Of so many draws of an event one is one: a daemon's start takes as long as a hundred calls."""


_SEEDS = st.integers(0, (1 << 48) - 1)
"""Of what a rule draws. Hypothesis chooses the rules, and leaves some out of each example; tests/calls/reduction.py shrinks."""


@dataclass
class Run:
    """How an example begins and ends, and what many of them did."""

    begin: Callable[[], Session]
    clear: Callable[[Session], None]
    calls: collections.Counter[str] = field(default_factory=collections.Counter)
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    examples: int = 0
    failure: BaseException | None = None
    """The first; Hypothesis tries again, on what it has left behind."""
    lot: int = 0
    """Of Hypothesis' runs: small numbers that it likes to draw mean other calls in each."""
    ends: float = math.inf
    """Examples after that do nothing."""

    def count(self, session: Session) -> None:
        self.examples += 1
        self.calls.update(name for name, _, _ in session.steps)
        errors = (wanted for _, _, wanted in session.steps if isinstance(wanted, str))
        self.outcomes.update(wanted for wanted in errors if wanted.isupper() or wanted == "refused")

    def describe(self) -> str:
        calls = ", ".join(f"{name} {count}" for name, count in self.calls.most_common())
        outcomes = ", ".join(f"{name} {count}" for name, count in self.outcomes.most_common())
        return f"{self.examples} examples, {self.calls.total()} calls: {calls}; answers: {outcomes}"


def machine(run: Run, *, with_verbs: bool, with_events: bool) -> type[RuleBasedStateMachine]:
    """A state machine class whose examples go to ``run``."""

    class FileMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.session = run.begin()
            self.failed = False
            self.guarded(self.session.begin)

        def draw(self, seed: int, group: str) -> None:
            if time.monotonic() > run.ends:
                return
            self.session.drawing.chance = PlainChance(
                (seed << 32) + (run.lot << 16) + len(self.session.steps)
            )
            self.guarded(lambda: self.session.draw(group))

        def guarded(self, act: Callable[[], None]) -> None:
            try:
                act()
            except BaseException as exc:
                self.failed = True
                run.failure = run.failure or exc
                raise

        @rule(seed=_SEEDS)
        def acts_on_bytes(self, seed: int) -> None:
            self.draw(seed, "bytes")

        @rule(seed=_SEEDS)
        def acts_on_names(self, seed: int) -> None:
            self.draw(seed, "names")

        def teardown(self) -> None:
            try:
                if not self.failed:
                    self.guarded(self.session.finish)
                    run.count(self.session)
            finally:
                run.clear(self.session)

    if with_verbs:

        @rule(seed=_SEEDS)
        def asks_the_daemon(self: FileMachine, seed: int) -> None:
            self.draw(seed, "verb")

        FileMachine.asks_the_daemon = asks_the_daemon  # type: ignore[attr-defined]
    if with_events:

        @rule(seed=_SEEDS)
        def meets_an_event(self: FileMachine, seed: int) -> None:
            self.draw(seed, "bytes" if seed % RARE else "event")

        FileMachine.meets_an_event = meets_an_event  # type: ignore[attr-defined]
    return FileMachine


def fuzz(run: Run, *, seed: int, seconds: float, with_verbs: bool = True, with_events: bool = True) -> None:
    """Examples until the time is over.

    Raises:
        AssertionError: with the shortest script of a failure.
    """
    run.ends = time.monotonic() + seconds
    while time.monotonic() < run.ends:
        chosen = hypothesis.settings(
            max_examples=EXAMPLES_AT_ONCE,
            stateful_step_count=STEPS,
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate],
        )
        run.lot = random.Random(seed + run.lot).randrange(1 << 16)
        seeded = hypothesis.seed(seed + run.lot)
        try:
            run_state_machine_as_test(
                seeded(machine(run, with_verbs=with_verbs, with_events=with_events)), settings=chosen
            )
        except BaseException as exc:
            if isinstance(run.failure, Difference):
                raise reduced(run, run.failure) from exc
            raise (run.failure or exc) from None
