"""What every method's page says: `gossamer methods NAME` shows it, docs/methods.md refers to it."""

import ast
import inspect
import re
import sys
from dataclasses import fields

import pytest

from gossamer.methods import catalogue
from gossamer.methods._base import Method

HEADINGS = ["What it does:", "Cost:", "When it fails:", "Equation:", "Source:"]
each = pytest.mark.parametrize("name", list(catalogue()))


def page(name: str) -> str:
    return inspect.getdoc(sys.modules[catalogue()[name].__module__]) or ""


@each
def test_a_page_has_the_name_in_the_literature_and_the_headings(name: str) -> None:
    title, empty, *rest = page(name).splitlines()
    assert re.fullmatch(r"[^:].+: \S.+\.", title) and not empty
    assert [line.split(":")[0] + ":" for line in rest if line.startswith(tuple(HEADINGS))] == HEADINGS


@each
def test_every_setting_is_described(name: str) -> None:
    bases = catalogue()[name].__mro__
    text = "\n".join(inspect.cleandoc(base.__doc__ or "") for base in bases[: bases.index(Method)])
    named = {word for line in re.findall(r"^    ([a-z_0-9, ]+):", text, re.MULTILINE) for word in line.split(", ")}
    assert {field.name for field in fields(catalogue()[name])} <= named


@each
def test_the_class_has_an_example_of_its_own(name: str) -> None:
    """In the source, not inherited; `tests/house/test_doctests.py` runs it."""
    cls = catalogue()[name]
    [node] = [n for n in ast.parse(inspect.getsource(cls)).body if isinstance(n, ast.ClassDef)]
    assert f"gossamer.methods.{name.partition('.')[0]}.{cls.__name__}(" in (ast.get_docstring(node) or "")
