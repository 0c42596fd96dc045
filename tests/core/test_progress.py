"""What library calls say, and where."""

import logging
import sys

import pytest

from gossamer.core.context import Context
from gossamer.core.progress import Logged, Quiet, Silent


class Terminal:
    """Standard error that says it is a terminal, or not."""

    def __init__(self, tty: bool) -> None:
        self.tty, self.text = tty, ""

    def isatty(self) -> bool:
        return self.tty

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None: ...


@pytest.fixture
def instantly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.core.progress.LATE", -1.0)
    monkeypatch.setattr("gossamer.core.progress.EVERY", -1.0)


def test_messages_go_to_the_logger_of_the_library(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="gossamer"):
        Logged().say("a network")
    assert [(record.name, record.levelname, record.message) for record in caplog.records] == [
        ("gossamer", "INFO", "a network")
    ]


@pytest.mark.usefixtures("instantly")
@pytest.mark.parametrize("tty", [True, False])
def test_a_bar_is_drawn_on_terminals_alone_and_taken_away(tty: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(tty)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(Logged().bar([7, 8, 9], label="epoch")) == [7, 8, 9]
    with Logged().busy("export"):
        pass
    assert ("epoch [########................] 1/3" in terminal.text) is tty and ("export ..." in terminal.text) is tty
    assert terminal.text.endswith("\r\x1b[K") is tty


def test_bars_of_unknown_length_and_those_that_end_early(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(Logged().bar(iter([1, 2]), label="x")) == [1, 2]
    bar = Logged().bar([1, 2], label="x")
    assert next(bar) == 1
    bar.close()  # type: ignore[attr-defined]


def test_library_calls_speak_unless_another_progress_was_chosen() -> None:
    quiet, own = Quiet(), Logged()
    assert isinstance(Context().with_progress(True).progress, Logged)
    assert (
        Context(progress=own).with_progress(True).progress is own
        and Context(progress=quiet).with_progress(True).progress is quiet
    )
    assert isinstance(Context(progress=own).with_progress(False).progress, Quiet) and isinstance(Quiet(), Silent)
