"""Numbers that another benchmark has measured already, on other data than the paper's: only orders can be compared."""

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.common import paths
from benchmarks.papers._row import Numbers


def document(name: str) -> Any:
    """A JSON of results."""
    return json.loads((paths.RESULTS / name).read_text())


def distilled(row: str, seed: int, chosen: Mapping[str, tuple[str, ...]]) -> Numbers:
    """Numbers of a row of `benchmarks.distill.compare`: by our name, the path to it."""
    found = {}
    for name, path in chosen.items():
        value = document("distill.json")[f"{row}/fashion-mnist/1/{seed}"]["numbers"]
        for key in path:
            value = value[key]
        found[name] = float(value)
    return found


def ordering(claim: str, seed: int) -> Numbers:
    """All numbers of a claim of `benchmarks.papers.orderings`, "variant, setting" by name."""
    settings = document("reproduce.json")[claim][str(seed)]["numbers"]
    return {f"{variant}, {setting}": value for setting, found in settings.items() for variant, value in found.items()}
