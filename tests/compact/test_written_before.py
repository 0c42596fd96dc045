"""Files that earlier versions wrote: they load, to the same bits.

`written_before/` holds one file for a method of each kind, written by version 0.1.0 of 2026-11-29, and the digests of
the tensors that this version read from them. A change of the format must keep all of them readable.
"""

import hashlib
import json
from pathlib import Path

import pytest
from torch import nn

import gossamer

FOLDER = Path(__file__).parent / "written_before"
DIGESTS = json.loads((FOLDER / "digests.json").read_text())


def digest(model: nn.Module) -> str:
    """SHA-256 over names and bytes of all tensors of the state, in order."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def test_every_file_has_its_digest() -> None:
    assert {path.stem for path in FOLDER.glob("*.gsr")} == set(DIGESTS)


@pytest.mark.parametrize("name", sorted(DIGESTS))
def test_a_file_of_an_earlier_version_loads_to_the_same_bits(name: str) -> None:
    assert digest(gossamer.load(FOLDER / f"{name}.gsr")) == DIGESTS[name]
