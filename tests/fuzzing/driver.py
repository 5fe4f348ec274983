"""Runs the byte fuzzers for as long as asked: coverage-guided with atheris where it is installed, else at random.

    python -m tests.fuzzing.driver --minutes 10 [--target records] [--plain] [--keep]
    python -m tests.fuzzing.driver --target records --input BASE64        one input once more

Each target gets its share of the time in a process of its own, with a limit on its memory and on the time of each
input, and begins with the corpus and with what earlier runs on this machine found (.build/fuzz). ``--keep`` then
takes the smallest inputs that together reach everything into the corpus.
"""

import argparse
import base64
import importlib.util
import os
import pathlib
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from types import FrameType

from tests.fuzzing import mutation, targets
from tests.fuzzing.source import FOLDER_VARIABLE

WORK = pathlib.Path(".build/fuzz")
INPUT_S = 20
"""One input may take so long; longer is a hang."""
MEMORY_BYTES = 1 << 30
"""So much more address space than at its start a target may have: an input has 4 KiB."""
CORPUS_BYTES = 2048
"""As much of each target's corpus as ``--keep`` keeps."""
PACKAGES = ("metadata", "replication", "fusefs", "tools")
_COUNT = re.compile(r"number_of_executed_units:\s*(\d+)")
_EXECUTIONS = re.compile(r"^executions=(\d+)", re.MULTILINE)


def limit_memory() -> None:
    """From here on this process gets only so much more."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class Hang(Exception):
    """An input took too long."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Hang(f"more than {INPUT_S} s")


def run_plain(name: str, seconds: float, seed: int) -> None:
    """A child's work without atheris: the corpus, then what mutation makes of it."""
    run, corpus, chance = targets.target(name), targets.read_corpus(name), random.Random(seed)
    signal.signal(signal.SIGALRM, _interrupt)
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end or count < len(corpus):
        data = corpus[count] if count < len(corpus) else mutation.mutate(corpus, chance)
        signal.alarm(INPUT_S)
        if not count:
            run(b"")  # what is made once for all inputs
            limit_memory()
        try:
            run(data)
        except Exception:
            (folder(name) / f"crash-{len(data)}-{count}").write_bytes(data)
            raise
        count += 1
    signal.alarm(0)
    print(f"executions={count}", flush=True)


def run_guided(name: str, seconds: float, seed: int) -> None:
    """A child's work with atheris."""
    import atheris

    with atheris.instrument_imports(include=list(PACKAGES)):
        run = targets.target(name)
    run(b"")
    limit_memory()
    work, seeds = folder(name) / "corpus", folder(name) / "seeds"
    options = [
        f"-max_total_time={max(1, int(seconds))}",
        f"-timeout={INPUT_S}",
        f"-max_len={mutation.LENGTH_MAX}",
        f"-seed={seed % (1 << 31) or 1}",
        f"-artifact_prefix={folder(name)}/crash-",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup([name, *options, str(work), str(seeds)], run)
    atheris.Fuzz()


def merge(name: str, told: list[str]) -> None:
    """A child's work: the smallest inputs that reach everything go to the folder ``least``.

    Args:
        name: the target.
        told: what libFuzzer tells the process that it starts, by its first argument, to do the work.
    """
    import atheris

    with atheris.instrument_imports(include=list(PACKAGES)):
        run = targets.target(name)
    run(b"")
    parts = [folder(name) / part for part in ("least", "corpus", "seeds")]
    parts[0].mkdir(exist_ok=True)
    command = f"{sys.executable} -m tests.fuzzing.driver --target {name} --child merge --"
    atheris.Setup([command, *(told or ["-merge=1", *map(str, parts)])], run)
    atheris.Fuzz()


def folder(name: str) -> pathlib.Path:
    """Where a target's work lies."""
    return WORK / name


def lay_out(name: str) -> None:
    """The corpus as files, for atheris."""
    for part in ("corpus", "seeds"):
        (folder(name) / part).mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(targets.read_corpus(name)):
        (folder(name) / "seeds" / f"{number:04}").write_bytes(data)


def child(name: str, how: str, *, seconds: float, seed: int) -> subprocess.CompletedProcess[str]:
    """One target in a process of its own."""
    command = [sys.executable, "-m", "tests.fuzzing.driver", "--target", name, "--child", how]
    memory = pathlib.Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        return subprocess.run(
            [*command, "--minutes", str(seconds / 60), "--seed", str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            env=os.environ | {FOLDER_VARIABLE: scratch},
        )


def fuzz(name: str, how: str, *, seconds: float, seed: int) -> tuple[int, bool]:
    """One target's share: how many inputs it had, and whether all went well. Prints what did not."""
    lay_out(name)
    before, begun = set(folder(name).glob("crash-*")), time.monotonic()
    done = child(name, how, seconds=seconds, seed=seed)
    found = _EXECUTIONS.search(done.stdout) or _COUNT.search(done.stdout)
    count = int(found[1]) if found else 0
    rate = count / (time.monotonic() - begun)
    print(f"{name:14} {count:10} executions {rate:8.0f}/s  {how}", flush=True)
    if done.returncode == 0:
        return count, True
    print(done.stdout[-4000:])
    for path in sorted(set(folder(name).glob("crash-*")) - before):
        told = base64.b64encode(path.read_bytes()).decode()
        print(f"once more: python -m tests.fuzzing.driver --target {name} --input {told}", flush=True)
    return count, False


def keep(name: str) -> None:
    """Takes what a run has found into the corpus, as far as it may grow."""
    done = child(name, "merge", seconds=60, seed=1)
    least = sorted((folder(name) / "least").iterdir(), key=lambda path: path.stat().st_size)
    kept, total = targets.read_corpus(name), 0
    for path in least:
        data = path.read_bytes()
        total += len(data)
        if total > CORPUS_BYTES:
            break
        kept.append(data)
    targets.write_corpus(name, kept)
    print(f"{name}: {len(kept)} inputs kept of {len(least)}, exit {done.returncode}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="for all targets together")
    parser.add_argument(
        "--target", action="append", choices=targets.NAMES, help="only this one; may be repeated"
    )
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    parser.add_argument("--plain", action="store_true", help="without atheris though it is there")
    parser.add_argument("--keep", action="store_true", help="afterwards take what was found into the corpus")
    parser.add_argument("--input", help="this one input, base64")
    parser.add_argument("--child", choices=("atheris", "plain", "merge"), help=argparse.SUPPRESS)
    parser.add_argument("told", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """The exit status."""
    asked = _arguments()
    names = asked.target or list(targets.NAMES)
    if asked.input is not None:
        targets.target(names[0])(base64.b64decode(asked.input))
        return 0
    if asked.child == "merge":
        merge(names[0], asked.told)
    elif asked.child:
        (run_guided if asked.child == "atheris" else run_plain)(names[0], asked.minutes * 60, asked.seed)
    if asked.child:
        return 0
    how = "plain" if asked.plain or importlib.util.find_spec("atheris") is None else "atheris"
    print(f"seed={asked.seed}")
    results = [fuzz(name, how, seconds=asked.minutes * 60 / len(names), seed=asked.seed) for name in names]
    print(
        f"{sum(count for count, _ in results)} executions, {sum(not good for _, good in results)} targets failed"
    )
    if asked.keep and how == "atheris":
        for name in names:
            keep(name)
    return 0 if all(good for _, good in results) else 1


if __name__ == "__main__":
    sys.exit(main())
