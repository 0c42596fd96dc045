"""The Python blocks of a page of the documentation, run as they stand."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

import gossamer
from gossamer.methods import _catalogue

GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# gossamer/methods/(\w+)/(\w+)\.py\n")


def blocks(page: Path) -> list[tuple[int, str]]:
    """The Python of a page: for each block the lines before it, and its text."""
    text = page.read_text()
    return [(text.count("\n", 0, found.start(1)), found[1]) for found in BLOCK.finditer(text)]


def run(page: Path, namespace: dict[str, Any]) -> None:
    """Execute the blocks of a page one after the other. A traceback has the lines of the page."""
    for before, text in blocks(page):
        if not FILE.match(text):
            exec(compile("\n" * before + text, str(page), "exec"), namespace)


@contextmanager
def written(page: Path, folder: Path) -> Iterator[list[str]]:
    """The files of methods that a page shows, as if they stood in the package; their names in recipes."""
    names = []
    with pytest.MonkeyPatch.context() as patch:
        for _, text in blocks(page):
            if found := FILE.match(text):
                scheme, file = found.groups()
                (folder / scheme).mkdir(exist_ok=True)
                (folder / scheme / f"{file}.py").write_text(text)
                package = getattr(gossamer.methods, scheme)
                patch.setattr(package, "__path__", [*package.__path__, str(folder / scheme)])
                names.append(f"{scheme}.{file}")
        _forget()
        try:
            yield names
        finally:
            _forget()


def _forget() -> None:
    _catalogue.catalogue.cache_clear()
    _catalogue.methods_of.cache_clear()
