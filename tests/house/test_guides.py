"""The Python in README.md and docs/guides runs as it stands; lines of prose can be read."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from guide_pages import GUIDES, blocks, run, written
from places import PAGES, ROOT

import gossamer
from gossamer.task import check


def page_of(page: Path) -> Any:
    """A guide as a parameter; those with jobs and exports take their time."""
    heavy = any(f"gossamer.{name}(" in page.read_text() for name in ("compress", "quantize_int8"))
    return pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if heavy else [])


@pytest.mark.parametrize("page", [page_of(page) for page in GUIDES])
@pytest.mark.usefixtures("quick")
@pytest.mark.slow
def test_the_python_of_a_guide_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert blocks(page)
    with written(page, tmp_path):
        run(page, {"__name__": "guide"})


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the tiny network, with a recipe in the place of the search for a speed-up, which takes minutes."""
    monkeypatch.chdir(tmp_path)
    task, model = gossamer.data.tiny_task(), gossamer.data.tiny_network()
    whole = gossamer.compress
    recipe = gossamer.Recipe(name="r", steps=(gossamer.methods.prune.Magnitude(sparsity=0.5),), int8=False)

    def compress(model: Any, task: Any, *, goal: gossamer.Goal, **options: Any) -> gossamer.Artifact:
        check(task, model)
        return whole(model, task, recipe=recipe, goal=replace(goal, speedup=None, max_drop=100), **options)

    monkeypatch.setattr(gossamer, "compress", compress)
    given = {"model": model, "train_loader": task.train, "validation_loader": task.validation}
    run(ROOT / "README.md", {"__name__": "readme", "test_loader": task.test, **given})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_of_prose_can_be_read(page: Path) -> None:
    """At most 100 characters but in tables, in what a program printed, and in what is one word (numbers in hex)."""
    fences = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    lines = fences.sub(lambda fence: fence[2] if fence[1] else "", page.read_text()).splitlines()
    long = [line for line in lines if len(line) > 100 and not line.startswith("|") and len(line.split()) > 1]
    assert long == []
