"""The same random calls without a kernel, on each pool and each catalog: thousands a second."""

import itertools
import pathlib
import time
from collections.abc import Iterator

import pytest

from tests.calls.drawing import PlainChance
from tests.calls.file_machine import Run, fuzz
from tests.calls.kernel_in_memory import KernelInMemory
from tests.calls.memory_daemon import DaemonThread
from tests.calls.memory_pools import RIGS, with_etcd
from tests.calls.reference import Reference
from tests.calls.session import Session
from tests.etcd_members import EtcdMembers
from tests.replication.rig import Rig

SHORT_S, SHORT_SEED = 1.0, 7
"""Of the slice in every run, which is the same each time."""


def run_on(rig: Rig, folder: pathlib.Path, thread: DaemonThread) -> Run:
    """Examples in folders of one pool, beside ordinary ones in ``folder``."""
    folder.mkdir()
    numbers = itertools.count()
    subjects: dict[Session, KernelInMemory] = {}

    def begin() -> Session:
        name = f"example{next(numbers)}"
        reference = Reference(str(folder), name)
        subject = KernelInMemory(thread, name)
        session = Session(subject, reference, PlainChance(0), opens_folders=False)
        subjects[session] = subject
        return session

    def clear(session: Session) -> None:
        subjects.pop(session).clear()
        session.reference.clear()

    return Run(begin, clear)


def fuzz_rig(rig: Rig, folder: pathlib.Path, *, seed: int, seconds: float) -> None:
    began = time.monotonic()
    with DaemonThread(rig) as thread:
        run = run_on(rig, folder, thread)
        fuzz(run, seed=seed, seconds=seconds)
        took_s = time.monotonic() - began
        print(f"{run.calls.total() / took_s:.0f} calls a second; {run.describe()}")


@pytest.mark.parametrize("kind", RIGS)
def test_any_calls_answer_without_a_kernel_as_in_an_ordinary_folder(
    tmp_path: pathlib.Path, seed: int, seconds: float | None, kind: str
) -> None:
    pool = tmp_path / "pool of it"
    pool.mkdir()
    fuzz_rig(
        RIGS[kind](pool),
        tmp_path / "reference",
        seed=seed if seconds else SHORT_SEED,
        seconds=seconds or SHORT_S,
    )


@pytest.fixture
def etcd(tmp_path: pathlib.Path) -> Iterator[EtcdMembers]:
    with EtcdMembers(tmp_path, 1) as members:
        yield members


def test_any_calls_answer_with_names_in_etcd_as_in_an_ordinary_folder(
    tmp_path: pathlib.Path, seed: int, seconds: float | None, etcd: EtcdMembers
) -> None:
    pool = tmp_path / "fuzzed"
    pool.mkdir()
    fuzz_rig(
        with_etcd(pool, etcd),
        tmp_path / "reference",
        seed=seed if seconds else SHORT_SEED,
        seconds=seconds or SHORT_S,
    )
