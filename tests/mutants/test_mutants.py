"""A slice of ``make mutants``: every mutant can be planted, some are caught, and one that nobody looks for survives."""

import ast
import pathlib
import shlex
from collections import Counter
from dataclasses import replace

import pytest

from tests.mutants.catalog import MUTANTS
from tests.mutants.planting import Moved, Mutant, copy_tree, mutated, package_folder
from tests.mutants.run import Verdict, judge

FEWEST = 100
CAUGHT = ("what a commit holds already is replayed once more", "any user may ask the daemon")


def named(name: str) -> Mutant:
    return next(mutant for mutant in MUTANTS if mutant.name == name)


def test_there_are_many_and_each_has_a_name_of_its_own() -> None:
    assert len(MUTANTS) >= FEWEST
    assert [name for name, count in Counter(mutant.name for mutant in MUTANTS).items() if count > 1] == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_can_be_planted_and_its_test_is_there(mutant: Mutant) -> None:
    ast.parse(mutated((package_folder() / mutant.file).read_text(), mutant))
    for test in shlex.split(mutant.test):
        path, *names = test.partition("[")[0].split("::")
        source = (pathlib.Path(__file__).parents[2] / path).read_text()
        for name in names:
            assert f"def {name}(" in source or f"class {name}:" in source, test


def test_a_mutant_whose_passage_has_moved_on_is_an_error() -> None:
    gone = replace(MUTANTS[0], old="no such passage")
    with pytest.raises(Moved, match="0 times"):
        mutated("something else\n", gone)
    with pytest.raises(Moved, match="2 times"):
        mutated("no such passage, no such passage\n", gone)


def test_planted_bugs_are_caught_by_their_tests_and_not_by_others(tmp_path: pathlib.Path) -> None:
    copy_tree(tmp_path)
    assert [judge(named(name), tmp_path).verdict for name in CAUGHT] == [Verdict.KILLED] * len(CAUGHT)
    elsewhere = replace(named(CAUGHT[0]), test="tests/metadata/test_rows.py::test_counting_is_a_range")
    assert judge(elsewhere, tmp_path).verdict is Verdict.SURVIVED
    nowhere = replace(named(CAUGHT[0]), test="tests/metadata/test_rows.py::test_that_is_not_there")
    assert judge(nowhere, tmp_path).verdict is Verdict.BROKEN
    path = tmp_path / named(CAUGHT[0]).file
    assert path.read_text() == (package_folder() / named(CAUGHT[0]).file).read_text()
