"""The commands that documents and help texts show are commands of this version: names, options and values."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from places import PAGES, ROOT

from gossamer.cli import app

GROUP: Any = typer.main.get_command(app)
INLINE = re.compile(r"`(gossamer [a-z][^`]*)`")
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)


def shown_commands(text: str) -> list[str]:
    """The lines of console blocks that begin with `gossamer` behind a prompt, with their continuations."""
    lines = [line for block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    found = (re.match(r"(?:\S+ |\s+)?\$ (gossamer .*)", line) for line in lines)
    return [match[1] for match in found if match]


def helped(command: Any, path: str = "gossamer") -> Iterator[tuple[str, str]]:
    """The example of every command below, with the command's name."""
    for name, one in getattr(command, "commands", {}).items():
        yield from helped(one, f"{path} {name}")
    for line in re.findall(r"Example: (gossamer .*)", command.epilog or ""):
        yield path, line


def parse(words: list[str]) -> None:
    """What the command line does before a command runs."""
    command, context, name = GROUP, None, "gossamer"
    while True:
        if not hasattr(command, "commands"):
            command.make_context(name, words, parent=context)
            return
        context = command.make_context(name, words, parent=context)
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])


def unknown_words(words: list[str]) -> list[str]:
    """The name of a command or an option that there is not, of a command that need not be complete."""
    command: Any = GROUP
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return words[:1]
        command, words = command.commands[words[0]], words[1:]
    options = {one for at in (command, GROUP) for param in at.params for one in (*param.opts, *param.secondary_opts)}
    named = {word.partition("=")[0] for word in words if word.startswith("--")}
    return sorted(named - options - {"--help"})


SHOWN = [(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in shown_commands(page.read_text())]


@pytest.mark.parametrize(("where", "line"), [*SHOWN, *helped(GROUP)])
def test_a_shown_command_is_accepted(where: str, line: str) -> None:
    parse(shlex.split(line, comments=True)[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_within_sentences_have_such_names_and_options(page: Path) -> None:
    lines = INLINE.findall(" ".join(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL).split()))
    assert {line: wrong for line in lines if (wrong := unknown_words(re.findall(r"[^\s,;()]+", line)[1:]))} == {}


def test_what_is_shown_is_found_and_what_is_wrong_is_refused() -> None:
    text = "```console\n$ gossamer models\nx $ gossamer bench a.onnx \\\n    --json\n$ scripts/demo\n```"
    assert shown_commands(text) == ["gossamer models", "gossamer bench a.onnx      --json"]
    assert len(SHOWN) > 10 and len(list(helped(GROUP))) > 10
    assert unknown_words(["export", "--target", "onnx-w4", "--no"]) == ["--no"]
    assert unknown_words(["recipes", "cop", "x"]) == ["cop"] and unknown_words(["compress", "--no-train"]) == []
    for wrong in (["recipes", "copy"], ["bench", "a.onnx", "--jsn"], ["modls"]):
        with pytest.raises(Exception, match=r"Missing|No such"):
            parse(wrong)
