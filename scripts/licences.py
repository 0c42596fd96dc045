"""The table of docs/dependencies.md: what gossamer needs, directly or not, and under which licence.

python scripts/licences.py > table.md
"""

import re
import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("deploy", "openvino", "train", "codec", "data", "timm", "torchvision")
# What a user of an Apache-2.0 package may combine it with and ship, without duties for his own code.
ALLOWED = ("Apache-2.0", "BSD", "MIT", "ISC", "PSF", "MPL-2.0", "HPND", "Zlib", "BSL-1.0", "Unlicense", "CC0-1.0")
WORDS = {
    "Apache": "Apache-2.0",
    "BSD": "BSD",
    "MIT": "MIT",
    "ISC": "ISC",
    "Python Software Foundation": "PSF",
    "PSF": "PSF",
    "MPL": "MPL-2.0",
    "Mozilla": "MPL-2.0",
    "HPND": "HPND",
    "Zlib": "Zlib",
    "Unlicense": "Unlicense",
    "CC0": "CC0-1.0",
    "0BSD": "BSD",
}


def needed() -> Iterator[metadata.Distribution]:
    """Every installed distribution that gossamer needs, with its extras, by name."""
    found: dict[str, metadata.Distribution] = {}
    done: set[tuple[str, str]] = set()
    todo = [("gossamer", extra) for extra in ("", *EXTRAS)]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in done:
            continue
        done.add((name, extra))
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # not for this platform, or an extra that is not installed
        for one in map(Requirement, found[name].requires or []):
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(one.name), more) for more in ("", *one.extras)]
    theirs = ("gossamer", "nvidia-", "cuda-")  # torch's CUDA builds bring NVIDIA's, under NVIDIA's own terms
    yield from (found[key] for key in sorted(found) if not key.startswith(theirs))


def licence(one: metadata.Distribution) -> list[str]:
    """The names of its licences, shortened; what no rule knows as it stands."""
    meta = one.metadata
    said = meta.get("License-Expression") or ""
    classifiers = [
        text.rpartition(" :: ")[2] for text in meta.get_all("Classifier") or [] if text.startswith("License")
    ]
    said = said or ", ".join(classifiers) or (meta.get("License") or "unknown").strip().splitlines()[0]
    parts = [part.strip(" ()") for part in re.split(r"\bAND\b|\bOR\b|,|;| and ", said)]
    return sorted({next((short for word, short in WORDS.items() if word in part), part) for part in parts if part})


def table() -> str:
    """One line for each package."""
    rows = [f"| {one.metadata['Name']} | {', '.join(licence(one))} |" for one in needed()]
    return "\n".join(["| package | licence |", "|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
