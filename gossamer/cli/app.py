"""The `gossamer` command and its subcommands."""

from importlib import metadata
from typing import Annotated

import typer

from gossamer.cli import (
    analyze,
    catalog,
    compress,
    deploy,
    distill,
    quantize,
    search,
    train,
)
from gossamer.cli.errors import Commands
from gossamer.cli.streams import App

app = App(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Give it your trained network; get the same network back, smaller, faster, ready to deploy.",
    epilog="Exit status: 0 done, 1 a bug of gossamer, 2 bad input, 3 goal missed, 130 interrupted, 143 ended.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gossamer {metadata.version('gossamer')}")
        raise typer.Exit


@app.callback()
def _options(
    traceback: Annotated[bool, typer.Option("--traceback", help="With an error, show where it arose.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for group in (compress, quantize, distill, search, analyze, train, deploy, catalog):
    group.register(app)
