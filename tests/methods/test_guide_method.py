"""The method of docs/guides/writing-a-method.md keeps what every method keeps, with one file and nothing else."""

import doctest
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import test_contract
import test_pages
from guide_pages import written
from places import ROOT

METHOD = ROOT / "docs" / "guides" / "writing-a-method.md"
NAME = "prune.balanced"


def contract() -> list[Any]:
    """The tests of the contract that take the name of a method, and nothing more than a folder."""
    found = [*vars(test_contract).items(), *vars(test_pages).items()]
    tests = [one for name, one in found if name.startswith("test_")]
    return [one for one in tests if {"name"} <= set(inspect.signature(one).parameters) <= {"name", "tmp_path"}]


@pytest.mark.parametrize("test", contract(), ids=lambda test: test.__name__)
def test_the_method_of_the_guide_keeps_the_contract(test: Any, tmp_path: Path) -> None:
    """With one file and nothing else."""
    with written(METHOD, tmp_path) as names:
        assert names == [NAME]
        given = {"name": NAME, "tmp_path": tmp_path}
        test(**{name: given[name] for name in inspect.signature(test).parameters})


@pytest.mark.parametrize("other", test_contract.REPRESENTATIVES)
def test_it_stands_beside_other_methods(other: str, tmp_path: Path) -> None:
    with written(METHOD, tmp_path):
        for pair in ((NAME, other), (other, NAME)):
            test_contract.test_runs_before_and_after_every_other_or_is_refused_with_the_reason(*pair)


def test_its_example_runs(tmp_path: Path) -> None:
    with written(METHOD, tmp_path):
        home = type(test_contract.method(NAME)).__module__
        failed, tried = doctest.testmod(sys.modules[home])
    assert tried and not failed
