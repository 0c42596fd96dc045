"""Folders of the repository that tests read from, and that other processes import from."""

import os
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
FOLDERS = ("docs", "benchmarks", "examples")
# All documents of the repository.
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])


def importing(folder: Path) -> dict[str, str]:
    """Environment of a process that imports test modules of `folder` and what these import."""
    folders = [str(folder), str(TESTS), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}
