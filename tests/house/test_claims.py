"""Every measured number of README.md is in a JSON of `benchmarks/results`, with the conditions that it was made under.

`benchmarks/results/claims.json` says for each line of README.md which of its numbers comes from where. It is read both
ways: each number of the lines has an entry, and each entry gives the number that stands there.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from statistics import mean
from typing import Any

import pytest
from places import ROOT

RESULTS = ROOT / "benchmarks" / "results"
CLAIMS = json.loads((RESULTS / "claims.json").read_text())["lines"]
CONDITIONS = ("command", "commit", "date", "seeds", "threads", "processor", "cores", "versions")
# A part of a name (ResNet-20, float32, VGG-16) is no number.
NUMBER = re.compile(r"(?<![\w.,-])-?\d+(?:[,.]\d+)*")
Values = list[Any]
HOW: dict[str, Callable[[Values, Values], float]] = {
    "mean": lambda own, other: mean(own),
    "count": lambda own, other: len(own),
    "number in the text": lambda own, other: float(re.findall(r"\d+\.\d+", " ".join(own))[0]),
    "at the limit": lambda own, other: sum(error.startswith("no end in ") for error in own),
    "errors": lambda own, other: sum(not error.startswith("no end in ") for error in own),
    "drop": lambda own, other: mean(other) - mean(own),
    "times": lambda own, other: mean(other) / mean(own),
    "times, each seed": lambda own, other: mean(b / a for a, b in zip(own, other, strict=True)),
    "least % below": lambda own, other: min(100 - 100 * a / b for a, b in zip(own, other, strict=True)),
    "most % below": lambda own, other: max(100 - 100 * a / b for a, b in zip(own, other, strict=True)),
}


def values(document: Any, path: Sequence[Any]) -> Iterator[Any]:
    """What lies at a path: a key, "*" for all, {key: value} for the elements of a list with these values."""
    if not path:
        yield document
        return
    step, *rest = path
    if step == "*":
        found = list(document.values() if isinstance(document, dict) else document)
    elif isinstance(step, dict):
        found = [one for one in document if all(one[key] == value for key, value in step.items())]
    else:
        found = [document[step]] if step in document else []
    for one in found:
        yield from values(one, rest)


def value(source: dict[str, Any]) -> float:
    document = json.loads((RESULTS / source["json"]).read_text())
    own, other = (list(values(document, source.get(name, ()))) for name in ("path", "beside"))
    return HOW[source.get("how", "mean")](own, other)


def numbers(line: str) -> list[str]:
    """The numbers of a line, without those of links, commands and names."""
    return NUMBER.findall(re.sub(r"\]\([^)]*\)|`[^`]*`", " ", line))


def fits(text: str, number: float) -> bool:
    """Whether a number is rounded to this text."""
    plain = text.replace(",", "")
    digits = len(plain.partition(".")[2])
    return math.isclose(float(plain), number, abs_tol=0.5 * 10**-digits + 1e-9)


def measured_lines() -> list[str]:
    """The section on numbers, and all rows of other tables that have any."""
    text = (ROOT / "README.md").read_text()
    section = text.partition("\n## Numbers\n")[2].partition("\n## ")[0]
    assert section
    rows = [line for line in text.replace(section, "").splitlines() if line.startswith("|")]
    return [line for line in section.splitlines() + rows if numbers(line)]


def entry(line: str) -> dict[str, Any]:
    found = [one for one in CLAIMS if line.startswith(one["line"])]
    assert len(found) == 1, f"claims.json has {len(found)} entries for this line of README.md: {line}"
    return dict(found[0])


@pytest.mark.parametrize("line", measured_lines(), ids=lambda line: line[:50])
def test_every_number_of_a_line_is_the_rounded_value_of_its_json(line):
    sources = entry(line)["numbers"]
    assert numbers(line) == [one["number"] for one in sources]
    for one in sources:
        assert "json" in one or one["no measurement"], one
        if "json" in one:
            assert fits(one["number"], value(one)), f"{one} is {value(one)} in the JSON"


def test_every_entry_has_its_line():
    lines = measured_lines()
    for one in CLAIMS:
        assert sum(line.startswith(one["line"]) for line in lines) == 1, one["line"]


@pytest.mark.parametrize("name", sorted({s["json"] for one in CLAIMS for s in one["numbers"] if "json" in s}))
def test_each_json_has_the_conditions_of_its_numbers(name):
    document = json.loads((RESULTS / name).read_text())
    assert document["measured"]
    for run in document["measured"]:
        assert [key for key in CONDITIONS if run.get(key) in (None, "", [], {})] == []
        assert re.match(r"python (benchmarks/|-m benchmarks\.)", run["command"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\d( \d\d:\d\d UTC)?", run["date"])


def test_rounding_is_to_the_digits_that_are_shown():
    assert fits("5.04", 5.0449) and fits("-0.2", -0.15001) and fits("1,024", 1024.4) and fits("101", 101.4)
    assert not fits("5.04", 5.046) and not fits("101", 101.6)


def test_numbers_are_found_and_names_are_not():
    line = "| ResNet-20, `--speedup 5` | **5.04x**, -0.20 points, 2 of 3, float32, 32x32 | [x](a1.md) 1,024, 0.15. |"
    assert numbers(line) == ["5.04", "-0.20", "2", "3", "32", "1,024", "0.15"]


def test_the_numbers_of_a_listed_path_come_out():
    rows = {"rows": [{"by": "a", "ms": 2.0}, {"by": "b", "ms": 4.0}, {"by": "a", "ms": 6.0}]}
    assert list(values(rows, ["rows", {"by": "a"}, "ms"])) == [2.0, 6.0]
    assert list(values({"x": {"0": {"n": 1}, "1": {}}}, ["x", "*", "n"])) == [1]
