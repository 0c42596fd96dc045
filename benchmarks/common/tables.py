"""Markdown tables beside the JSON that they are made from."""

import textwrap
from pathlib import Path

from gossamer.core.record import write_text

WIDTH = 100


def write_table(results: Path, markdown: str) -> None:
    """Write the tables of a JSON of results beside it, prose in lines that can be read."""
    write_text(results.with_suffix(".md"), wrapped(markdown))


def wrapped(markdown: str) -> str:
    """Markdown whose prose has lines of at most 100 characters; tables and headings stay as they are."""
    return "\n".join(line if line.startswith(("|", "#")) else _wrapped(line) for line in markdown.split("\n"))


def _wrapped(line: str) -> str:
    indent = "  " if line.startswith("- ") else ""
    lines = textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)
