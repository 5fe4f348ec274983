"""The model of a power cut and the recorder beneath it: what they lose, what they keep, what they refuse."""

import pathlib
import random
import subprocess
import sys

import pytest

from tests.crash.disk_model import (
    PAGE,
    POLICIES,
    SECTOR,
    Bind,
    Recording,
    Resize,
    Sync,
    Write,
    build,
    random_state,
)
from tests.crash.strace_log import OPTIONS, StraceLog, Unfollowed

POOL, FILE = 1, 2
ALWAYS = 1 << 62

PROGRAM = """
import os, sys
folder = sys.argv[1]
log = os.open(folder + "/log.new", os.O_RDWR | os.O_CREAT)
for number in range(4):
    os.pwrite(log, bytes([number + 1]) * 4096, number * 4096)
    os.fdatasync(log)
os.rename(folder + "/log.new", folder + "/kept")
names = os.open(folder, os.O_RDONLY)
os.fsync(names)
os.pwritev(log, [b"a" * 1000, b"b" * 1000], 4 * 4096)
os.ftruncate(log, 5 * 4096)
os.mkdir(folder + "/below")
with open(folder + "/below/text", "w") as file:
    file.write("hello ")
    file.write("there")
os.posix_fallocate(log, 0, 6 * 4096)
"""


def toy() -> Recording:
    """A file of two pages, the first of them synced, and a name that is not."""
    return Recording(
        names={(0, "pool"): POOL},
        directories={0, POOL},
        operations=[
            Bind(1, 2, ((POOL, "file", FILE),)),
            Write(3, 4, FILE, 0, b"1" * PAGE),
            Sync(5, 6, FILE),
            Write(7, 8, FILE, PAGE, b"2" * PAGE),
            Sync(9, 10, POOL),
        ],
        paths={POOL: "/pool", FILE: "/pool/file"},
    )


def test_what_was_synced_is_there_however_much_is_lost() -> None:
    tree = build(toy(), 20, keep=lambda *_: False)
    assert tree.files == {"pool/file": b"1" * PAGE}


def test_a_name_is_lost_until_its_directory_is_synced() -> None:
    assert build(toy(), 9, keep=lambda *_: False).files == {}


def test_what_has_not_begun_is_never_there() -> None:
    assert build(toy(), 6, keep=lambda *_: True).files == {"pool/file": b"1" * PAGE}


def test_a_write_in_flight_when_the_sync_began_may_be_lost() -> None:
    recording = toy()
    recording.operations.insert(2, Write(3, 6, FILE, 0, b"x" * PAGE))
    assert build(recording, 20, keep=lambda *_: False).files == {"pool/file": b"1" * PAGE}


def test_a_pending_write_may_be_torn_at_a_sector() -> None:
    tree = build(toy(), 20, keep=lambda index, change, fragment: fragment == 0, unit=SECTOR)
    assert tree.files == {"pool/file": b"1" * PAGE + b"2" * SECTOR}


def test_a_size_may_be_ahead_of_its_data() -> None:
    tree = build(toy(), 20, keep=lambda index, change, fragment: fragment < 0)
    assert tree.files == {"pool/file": b"1" * PAGE + bytes(PAGE)}


def test_a_rename_is_there_or_not_but_never_half() -> None:
    recording = toy()
    recording.operations.append(Bind(11, 12, ((POOL, "file", None), (POOL, "new", FILE))))
    names = {
        frozenset(random_state(recording, 20, random.Random(seed))[1].files): None for seed in range(200)
    }
    assert set(names) == {frozenset({"pool/file"}), frozenset({"pool/new"})}


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_no_policy_loses_what_was_synced(policy: str) -> None:
    for seed in range(50):
        chance = random.Random(seed)
        tree = build(toy(), 20, keep=POLICIES[policy](1, chance), unit=chance.choice((PAGE, SECTOR)))
        assert tree.files["pool/file"][:PAGE] == b"1" * PAGE


def test_a_forgotten_sync_loses_data() -> None:
    forgetful = toy().without_syncs(lambda path: path == "/pool/file")
    assert build(forgetful, 20, keep=lambda *_: False).files == {"pool/file": b""}


def test_a_cut_that_was_not_synced_may_not_have_happened() -> None:
    recording = toy()
    recording.operations.append(Resize(11, 12, FILE, 0))
    lengths = {
        len(random_state(recording, 20, random.Random(seed))[1].files["pool/file"]) for seed in range(200)
    }
    assert lengths >= {0, PAGE, 2 * PAGE}


def trace(program: str, folder: pathlib.Path, log: pathlib.Path) -> StraceLog:
    """Run a program under the recorder, ``folder`` being what it works on."""
    recorder = StraceLog([folder])
    command = ["strace", *OPTIONS, "-o", log / "trace", sys.executable, "-c", program, folder]
    subprocess.run(command, check=True)
    recorder.read(sorted(log.glob("trace.*")))
    return recorder


def test_the_recorder_sees_what_a_program_did_to_its_files(tmp_path: pathlib.Path) -> None:
    folder, log = tmp_path / "pool", tmp_path / "logs"
    folder.mkdir()
    log.mkdir()
    recording = trace(PROGRAM, folder, log).recording
    everything = build(recording, ALWAYS, keep=lambda *_: True).files
    assert everything == {
        f"pool/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    least = build(recording, ALWAYS, keep=lambda *_: False).files
    assert least == {"pool/kept": b"".join(bytes([number + 1]) * PAGE for number in range(4))}


@pytest.mark.parametrize(
    "line",
    [
        "os.open(sys.argv[1] + '/f', os.O_CREAT | os.O_WRONLY | os.O_DSYNC)",
        "open(sys.argv[1] + '/f', 'w').close(); os.link(sys.argv[1] + '/f', sys.argv[1] + '/g')",
        "f = open(sys.argv[1] + '/f', 'w+b'); f.truncate(4096); mmap.mmap(f.fileno(), 4096).flush()",
    ],
)
def test_the_recorder_refuses_what_it_cannot_follow(tmp_path: pathlib.Path, line: str) -> None:
    folder, log = tmp_path / "pool", tmp_path / "logs"
    folder.mkdir()
    log.mkdir()
    with pytest.raises(Unfollowed):
        trace(f"import mmap, os, sys; {line}", folder, log)


def test_the_recorder_names_the_files_that_are_mapped(tmp_path: pathlib.Path) -> None:
    folder, log = tmp_path / "pool", tmp_path / "logs"
    folder.mkdir()
    log.mkdir()
    program = (
        "import mmap, sys; f = open(sys.argv[1] + '/f', 'w+b'); f.truncate(4096); mmap.mmap(f.fileno(), 4096)"
    )
    assert trace(program, folder, log).shared_mappings == {str(folder / "f")}
