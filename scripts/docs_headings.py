"""Griffe extension: headings of docstrings as the parser knows them, those of methods' pages as paragraphs."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)  # to the parser, only "Examples" holds code
HEADING = re.compile(r"^(What it does|Cost|When it fails|Equation|Source): *", re.MULTILINE)


def separated(text: str) -> str:
    """The docstring of a method's file as Markdown; its equation as it stands."""
    parts = HEADING.split(text)
    pairs = zip(parts[1::2], parts[2::2])
    paragraphs = [f"**{name}:** {_plain(body) if name == 'Equation' else body.strip()}" for name, body in pairs]
    return "\n\n".join([parts[0].strip(), *paragraphs])


def _plain(equation: str) -> str:
    return f"`{' '.join(equation.replace('`', '').split())}`"


class Headings(griffe.Extension):
    """Changes the docstrings of gossamer before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        if obj.is_module and obj.path.startswith("gossamer.methods.") and HEADING.search(obj.docstring.value):
            obj.docstring.value = separated(obj.docstring.value)
        obj.docstring.value = EXAMPLE.sub(r"\1Examples:", obj.docstring.value)
