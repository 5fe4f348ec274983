"""What a mutant is, and how it is planted: one passage of one source file replaced by another.

A passage that is not there, or there twice, is an error: code that moved on must not let a mutant pass for killed.
"""

import importlib.util
import pathlib
import shutil
from dataclasses import dataclass

PACKAGES = ("metadata", "replication", "fusefs", "tools")
TESTS = pathlib.Path(__file__).parents[1]
_LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*")


@dataclass(frozen=True, slots=True)
class Mutant:
    """A known-bad change, and the test that is to find it."""

    name: str
    """What it does, in words that follow "a mutant in which"."""
    breaks: str
    """The invariant (I1 to I10) or the promise (P1 to P12) that no longer holds."""
    file: str
    old: str
    new: str
    test: str
    """Arguments of pytest."""


class Moved(Exception):
    """A mutant's passage is not there exactly once."""


def package_folder() -> pathlib.Path:
    """Where the packages under test are, installed or not."""
    found = importlib.util.find_spec("metadata")
    assert found is not None
    assert found.submodule_search_locations is not None
    return pathlib.Path(next(iter(found.submodule_search_locations))).parent


def mutated(source: str, mutant: Mutant) -> str:
    """A file's text with the mutant in it.

    Raises:
        Moved: its passage is not there, or not once.
    """
    count = source.count(mutant.old)
    if count != 1:
        raise Moved(f"{mutant.name}: its passage is {count} times in {mutant.file}: {mutant.old!r}")
    return source.replace(mutant.old, mutant.new)


def copy_tree(folder: pathlib.Path) -> None:
    """Packages and tests in a folder of their own."""
    for package in PACKAGES:
        shutil.copytree(package_folder() / package, folder / package, ignore=_LEFT_OUT)
    shutil.copytree(TESTS, folder / "tests", ignore=_LEFT_OUT)
    shutil.copy(TESTS.parent / "pyproject.toml", folder)


def write_source(path: pathlib.Path, text: str) -> None:
    """Replaces a module; what was compiled of it may bear the same second and length, and goes."""
    path.write_text(text)
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()
