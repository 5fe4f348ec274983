"""Three nodes under guests, snapshots, kills and cut networks for hours: ``python -m tests.soak.run HOURS [FOLDER [SEED]]``.

FOLDER gets samples.csv, events.csv and soak.html. The verdict: no guest found anything wrong, memory, descriptors and
threads are flat (tests/soak/samples.py says what that is), no stray error is in a log, and ``check`` finds nothing.
"""

import contextlib
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.mounted_nodes import MountedNodes, wait_until
from tests.mounted_pool import MountedPool
from tests.network_lab import NetworkLab
from tests.soak.events import Events, folder_of
from tests.soak.guest import BLOCK, BLOCKS, WANDERER_BLOCKS
from tests.soak.guests import Guests, Work
from tests.soak.measuring import PERIOD_S, Meter
from tests.soak.picture import Mark, page
from tests.soak.samples import Finding, from_csv, judge, to_csv

EVENTS_S = (4.0, 14.0)
"""Between two events."""
KILLED = ("b daemon", "b keeper")
BEGUN_S = 120.0


@dataclass(slots=True)
class Outcome:
    """What a soak found."""

    guests: list[str]
    marks: list[Mark] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not self.problems and all(finding.is_flat for finding in self.findings)


@contextlib.contextmanager
def three_nodes(folder: pathlib.Path) -> Iterator[tuple[MountedNodes, NetworkLab | None]]:
    """Nodes a, b and c; for root each on a host of its own."""
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(NetworkLab(3)) if os.geteuid() == 0 else None
        nodes = MountedNodes(folder)
        stack.callback(nodes.tear_down)
        for host, name in enumerate("abc", start=1):
            node = nodes.node(name, is_mounted=False)
            if lab is not None:
                node.prefix, node.options = lab.entrance(host), ("--listen", f"{lab.address(host)}:0")
            node.mount()
        yield nodes, lab


def works_on(nodes: MountedNodes) -> list[Work]:
    """Who does what where."""
    a, b, c = (nodes.by_name[name].mountpoint for name in "abc")
    return [
        Work("a-direct", "direct", (a / "one",)),
        Work("a-buffered", "buffered", (a / "two",)),
        Work("b-direct", "direct", (b / "three",)),
        Work("c-buffered", "buffered", (c / "four",)),
        Work("wanderer", "wanderer", (a / "wanderer", b / "wanderer", c / "wanderer")),
        Work("b-peer", "peer", (b / "one",)),
        Work("c-peer", "peer", (c / "three",)),
    ]


def make(work: Work) -> None:
    """The vdisk that a guest writes."""
    size = {"wanderer": WANDERER_BLOCKS * BLOCK, "peer": 0}.get(work.kind, BLOCKS * BLOCK)
    if size:
        with work.paths[0].open("xb") as file:
            file.truncate(size)


def soak(seconds: float, folder: pathlib.Path, *, seed: int, period_s: float = PERIOD_S) -> Outcome:
    """Runs it; the files are in ``folder`` then, whatever happened."""
    folder.mkdir(parents=True, exist_ok=True)
    samples, said = folder / "samples.csv", folder / "events.csv"
    samples.write_text(to_csv(()))
    chance, over = random.Random(seed), threading.Event()
    with (
        tempfile.TemporaryDirectory(prefix="soak") as scratch,
        three_nodes(pathlib.Path(scratch)) as (nodes, lab),
    ):
        works = works_on(nodes)
        for work in works:
            make(work)
        outcome = Outcome([])
        with Guests(pathlib.Path(scratch), works, seed=seed) as guests:
            wait_until(lambda: _have_begun(guests), "every guest is at work", within_s=BEGUN_S)
            events = Events(nodes, lab, vdisks=["one", "three", "four"], chance=chance, waiting=over)
            mounted = [nodes.by_name[name] for name in "abc"]
            meter = Meter(mounted, samples, period_s=period_s)
            try:
                _go_on(seconds, outcome, guests=guests, events=events, meter=meter)
            except Exception as problem:
                outcome.problems.append(f"an event failed: {problem}")
            finally:
                over.set()
                meter.stop()
                said.write_text("seconds,event\n" + "".join(f"{at},{what}\n" for at, what in outcome.marks))
            outcome.guests = [f"{name}: {report}" for name, report in guests.reports().items()]
        outcome.problems += _found_at_the_end(nodes, mounted)
        for node in mounted:
            (folder / f"{node.node}.log").write_text("\n".join(node.log_lines()) + "\n")
    outcome.findings = judge(from_csv(samples.read_text()), killed=KILLED)
    (folder / "soak.html").write_text(_page(outcome, seconds, samples, seed=seed))
    return outcome


def _have_begun(guests: Guests) -> bool:
    assert not guests.failures(), guests.failures()
    return all(report.rounds for report in guests.reports().values())


def _go_on(seconds: float, outcome: Outcome, *, guests: Guests, events: Events, meter: Meter) -> None:
    over, chance = threading.Event(), random.Random(0)
    while meter.seconds() < seconds:
        at = meter.seconds()
        outcome.marks.append((at, events.next()))
        failures = guests.failures()
        if failures:
            outcome.problems += failures
            return
        over.wait(min(chance.uniform(*EVENTS_S), max(0.0, seconds - meter.seconds())))


def _found_at_the_end(nodes: MountedNodes, mounted: Sequence[MountedPool]) -> list[str]:
    problems = []
    for node in mounted:
        try:
            problems += [
                f"check on {node.node}: {one}" for one in node.json("check", node.mountpoint)["findings"]
            ]
        except (AssertionError, subprocess.TimeoutExpired) as failure:
            problems.append(f"check on {node.node} failed: {failure}")
        try:
            node.umount()
        except (AssertionError, subprocess.TimeoutExpired) as failure:
            problems.append(f"{node.node} cannot be unmounted: {failure}")
    return problems + [f"in a log: {line}" for line in nodes.stray_errors()]


def _page(outcome: Outcome, seconds: float, samples: pathlib.Path, *, seed: int) -> str:
    return page(
        f"Three nodes soaked for {seconds / 60:.0f} minutes",
        from_csv(samples.read_text()),
        marks=outcome.marks,
        findings=outcome.findings,
        facts="\n".join([f"seed {seed}, {len(outcome.marks)} events", *outcome.guests, *outcome.problems]),
    )


def main(arguments: Sequence[str]) -> int:
    hours = float(arguments[0])
    folder = pathlib.Path(arguments[1]) if len(arguments) > 1 else folder_of(hours)
    seed = int(arguments[2]) if len(arguments) > 2 else int.from_bytes(os.urandom(4))
    outcome = soak(hours * 3600, folder, seed=seed)
    lines = [f"seed={seed}, {len(outcome.marks)} events", *outcome.guests, *map(str, outcome.findings)]
    verdict = "good" if outcome.is_good else "BAD"
    sys.stdout.write("\n".join([*lines, *outcome.problems, f"{verdict}: {folder}/soak.html"]) + "\n")
    return int(not outcome.is_good)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
