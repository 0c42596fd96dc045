"""What the commands share that train for long: going on after Ctrl-C, and the result of a job."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gossamer.cli.console import Console
from gossamer.cli.errors import GOAL_MISSED, Stopped

if TYPE_CHECKING:
    from gossamer.jobs.job import Artifact


def command_line() -> str:
    """What was typed."""
    return shlex.join(["gossamer", *sys.argv[1:]])


def default_folder(model: str, data: str) -> Path:
    """Where the result goes when nobody says so."""
    parts = (Path(text.rpartition(":")[2] or text).stem for text in (model, data))
    return Path("out") / "-".join(parts)


@contextmanager
def resumable(kept: Path) -> Iterator[None]:
    """Ctrl-C within says how to go on. kept: what holds the work so far."""
    try:
        yield
    except KeyboardInterrupt as error:
        if not kept.exists():
            raise Stopped("stopped before there was anything to keep") from error
        how = f"To continue, run the same command:\n  {command_line()}"
        raise Stopped(f"stopped; {kept} keeps what is done. {how}") from error


def conclude(console: Console, artifact: "Artifact", columns: Sequence[str]) -> None:
    """Show what came of a job, in so many columns, and exit with status 3 if it missed its goal."""
    from gossamer.report import summary_rows
    from gossamer.report.table import plain_rows
    from gossamer.report.verdict import sentence, unsteady, warnings

    document, folder = artifact.document, artifact.folder
    rows = []
    for row in summary_rows(document):
        name = f"{row.name} ({row.conditions})" if row.conditions else row.name
        rows.append((name, plain_rows(row.before), plain_rows(row.after), plain_rows(row.change))[: 1 + len(columns)])
    console.table("", ("", *columns), rows)
    console.line(sentence(document))
    for missed in document.missed:
        console.note(f"missed: {missed}")
    for line in document.why:
        console.note(line)
    for warning in warnings(document):
        console.note(f"warning: {warning}")
    if scattered := unsteady(document):
        console.note(f"note: {scattered}; measure again on a quiet one")
    console.line(f"report: {(folder / 'report.html').resolve()}")
    console.document({"folder": folder.resolve(), "document": document})
    if not document.met:
        raise typer.Exit(GOAL_MISSED)
