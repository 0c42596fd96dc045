"""The papers' rows: what makes a number met, what a page shows, and that the page is what the JSON gives."""

import json
import sys
from typing import Any

import pytest
import torch

from benchmarks.common import tables
from benchmarks.papers import __main__ as command
from benchmarks.papers import _page, _results
from benchmarks.papers._mnist import Mapped
from benchmarks.papers._row import Number, Order, Row
from benchmarks.papers.rows import all_rows
from gossamer.data import load_task
from gossamer.train.batches import batches_of_epoch

NUMBER = Number(name="error", paper=1.5, where="table 1", tolerance=0.2)
ORDER = Order(says="a before b", names=("a", "b"), where="table 2", tolerance=0.1)
FIRST: dict[str, Any] = {"title": "T", "paper": "P 2000", "setting": "s", "ours": "o"}


def made(measure: Any = lambda seed: {"error": 1.6 + 0.2 * seed, "a": 1.0, "b": 2.0}, **more: Any) -> Row:
    return Row(**FIRST, measure=measure, numbers=(NUMBER,), orders=(ORDER,), **more)


def document(error: float, a: float = 1.0, b: float = 2.0, reason: str = "") -> dict[str, Any]:
    seed = {"numbers": {"error": error, "a": a, "b": b, "c": 7.0}, "processor_seconds": 60}
    at = {"threads": 1, "processor": "X", "date": "2026-01-01", "seeds": [0, 1, 2]}
    facts = json.loads(json.dumps(made(reason=reason).facts("1-x")))
    return facts | {"measured": [at], "by_seed": {"0": seed, "1": seed, "2": seed}}


def test_the_page_is_what_the_json_gives() -> None:
    assert _page.PAGE.read_text() == _page.page(_results.read())


def test_every_row_has_its_json_with_the_facts_of_today() -> None:
    assert sorted(one["row"] for one in _results.read()) == sorted(all_rows())
    for one in _results.read():
        assert one == _results.document_of(one["row"], all_rows()[one["row"]]), f"{one['row']}: `table` writes it again"


def test_seeds_of_other_processors_keep_their_conditions() -> None:
    measured: list[dict[str, Any]] = []
    for seed, processor in ((0, "X"), (1, "Y"), (2, "Y"), (0, "Y")):
        measured = _results.with_seed(measured, {"seeds": [seed], "processor": processor, "date": str(seed)})
        if seed == 2:
            assert [(one["processor"], one["seeds"]) for one in measured] == [("X", [0]), ("Y", [1, 2])]
    assert measured == [{"seeds": [0, 1, 2], "processor": "Y", "date": "0"}]


@pytest.mark.parametrize("name", all_rows())
def test_every_row_compares_something_that_it_measures(name: str) -> None:
    row = all_rows()[name]
    compared = {one.name for one in row.numbers} | {key for one in row.orders for key in one.names}
    assert compared and row.paper and row.setting and row.ours
    assert (row.measure is not None and row.minutes > 0) or (row.command and row.needs)
    for seed in _results.document_of(name, row)["by_seed"].values():
        assert compared <= set(seed["numbers"])


@pytest.mark.parametrize(
    "side, ours, result",
    [
        ("at most", 1.7, "met"), ("at most", 1.0, "met"), ("at most", 1.71, "**missed by 0.21** %"),
        ("at least", 1.3, "met"), ("at least", 9.0, "met"), ("at least", 1.29, "**missed by 0.21** %"),
        ("about", 1.3, "met"), ("about", 1.71, "**missed by 0.21** %"), ("about", 1.2, "**missed by 0.30** %"),
    ],
)  # fmt: skip
def test_a_number_is_met_on_its_right_side_and_within_its_tolerance(side: str, ours: float, result: str) -> None:
    assert _page.distance({"paper": 1.5, "tolerance": 0.2, "side": side, "unit": "%"}, ours) == result


def test_names_are_shown_without_what_they_share() -> None:
    assert _page.distinct(("error, 8 bits, a", "error, 8 bits, b, c")) == ["a", "b, c"]


def test_an_order_is_contradicted_by_its_worst_pair() -> None:
    order = {"higher": False, "tolerance": 0.1, "unit": "%"}
    assert _page.ordered(order, [1.0, 1.1, 1.0]) == "met"
    assert _page.ordered(order, [1.0, 3.0, 2.5]) == "**contradicted by 0.50** %"
    assert _page.ordered(order | {"tolerance": -2}, [1.0, 2.5]) == "**leads by 1.50** %, 2 are expected"
    assert _page.ordered(order | {"higher": True}, [1.0, 3.0, 2.5]) == "**contradicted by 2.00** %"


def test_a_row_that_contradicts_its_paper_stands_in_the_same_table_with_its_reason() -> None:
    text = _page.page([document(1.5), document(2.5, a=3.0, reason="The network is smaller.")])
    rows = [line for line in text.splitlines() if line.startswith("| [1-x]")]
    assert [line.split(" | ")[-1] for line in rows] == [
        "met |", "met |", "**missed by 1.00** % |", "**contradicted by 1.00** % |",
    ]  # fmt: skip
    assert "2 are met and 2 are missed" in text.replace("\n", " ")
    assert "Why it is missed: The network is smaller." in text
    assert "Why it is missed: not looked for." in _page.page([document(2.5)])
    assert "| this order | 1.00 ± 0.00 (a), 2.00 ± 0.00 (b) | met |" in text
    assert "Also measured: c: 7.00 ± 0.00." in text


def test_few_seeds_and_rows_that_were_not_run_are_marked() -> None:
    few = document(1.5)
    few["by_seed"].pop("2")
    waiting = Row(**FIRST, command="do it", needs="ImageNet, 3 GPU hours", numbers=(NUMBER,), orders=(ORDER,))
    text = _page.page([few, json.loads(json.dumps(waiting.facts("2-y"))) | {"measured": [], "by_seed": {}}])
    assert "| 1.50 ± 0.00, 2 seed(s) | met |" in text
    assert "| 2-y | T: error 1.5 % (table 1); a before b (table 2) | `do it` | ImageNet, 3 GPU hours |" in text
    assert text == tables.wrapped(text)


def test_a_run_that_was_stopped_continues(tmp_path, monkeypatch) -> None:
    asked = []

    def measure(seed: int) -> dict[str, float]:
        asked.append(seed)
        if asked == [0, 1]:
            raise KeyboardInterrupt
        return {"error": float(seed)}

    monkeypatch.setattr(sys, "argv", [command.__file__])
    monkeypatch.setattr(_results, "all_rows", lambda: {"1-x": made(measure), "2-y": Row(**FIRST, command="c")})
    with pytest.raises(KeyboardInterrupt):
        _results.run(["1-x", "2-y"], folder=tmp_path)
    _results.run(["1-x", "2-y"], folder=tmp_path)
    found = json.loads((tmp_path / "1-x.json").read_text())
    assert asked == [0, 1, 1, 2] and [file.name for file in tmp_path.iterdir()] == ["1-x.json"]
    assert {seed: one["numbers"] for seed, one in found["by_seed"].items()} == {
        "0": {"error": 0.0}, "1": {"error": 1.0}, "2": {"error": 2.0},
    }  # fmt: skip
    assert found["measured"][0]["seeds"] == [0, 1, 2] and len(found["measured"]) == 1


def test_batches_that_are_changed_are_changed_in_a_training_as_well() -> None:
    plain = load_task("digits", augment=False).train
    changed = Mapped(plain, lambda x, y: (x[:2] + 5, y[:2]))
    again = changed.unaugmented()
    assert again is not None
    for loader in (changed, again):
        _, (x, y) = next(batches_of_epoch(loader, 0, 1, 0, 0))
        _, (whole, labels) = next(batches_of_epoch(plain, 0, 1, 0, 0))
        assert torch.equal(x, whole[:2] + 5) and torch.equal(y, labels[:2])


def test_the_command_line_knows_its_rows(capsys) -> None:
    assert command.parse(["run", "all"]).rows == [name for name, row in all_rows().items() if not row.needs]
    with pytest.raises(SystemExit):
        command.parse(["run", "0-nothing"])
    assert "unknown rows ['0-nothing']" in capsys.readouterr().err
