"""The scripts of examples/ are short and run as they stand, without the network."""

import runpy
from pathlib import Path

import pytest
from places import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LINES = 40


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
@pytest.mark.usefixtures("quick")
def test_an_example_runs(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out


def test_examples_are_short_and_say_what_they_show() -> None:
    assert len(EXAMPLES) >= 5
    for script in EXAMPLES:
        text = script.read_text()
        assert text.startswith('"""') and len(text.splitlines()) <= LINES, script
