"""Arguments of a wrong kind are refused by name, before any work is done."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gossamer
from gossamer.core.kinds import _kinds, checked_arguments
from gossamer.methods import distill, prune

NET, X = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.rand(3, 4)
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "seed": (lambda: gossamer.prune_channels(NET, X, seed="a"), "prune_channels: seed = 'a' must be a whole number"),
    "sparsity": (
        lambda: gossamer.prune_channels(NET, X, "half"),
        "prune_channels: sparsity = 'half' must be a number or a mapping",
    ),
    "true": (lambda: gossamer.prune_channels(NET, X, round_to=True), "round_to = True must be a whole number"),
    "a half": (lambda: gossamer.prune_channels(NET, X, round_to=1.5), "round_to = 1.5 must be a whole number"),
    "prove": (lambda: gossamer.prune_channels(NET, X, prove="no"), "prove = 'no' must be True or False"),
    "ignore": (lambda: gossamer.prune_channels(NET, X, ignore=3), "ignore = 3 must be several values"),
    "path": (lambda: gossamer.save(NET, 7, (X,)), "save: path = 7 must be a path or a text"),
    "none": (lambda: gossamer.load(None), "load: path = None must be a path or a text"),
    "list": (lambda: gossamer.build("resnet8", classes=["a", "b"]), "build: classes = a list must be a whole number"),
    "context": (lambda: gossamer.Context(seed="a"), "Context: seed = 'a' must be a whole number"),
    "folder": (lambda: gossamer.Context(folder=3), "Context: folder = 3 must be a path or None"),
    "method": (lambda: distill.KD(clip="x"), "clip = 'x' must be a number"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kind_is_named_with_what_it_must_be(name: str) -> None:
    act, said = WRONG[name]
    with pytest.raises(gossamer.BadInput) as error:
        act()
    assert said in str(error.value)


def test_numbers_of_other_libraries_are_numbers(tmp_path: Path) -> None:
    found = gossamer.prune_channels(NET, X, np.float32(0.5), round_to=np.int64(2), prove=np.True_, seed=np.int32(1))
    assert dict(found.widths) == {"0": (8, 4)}
    assert gossamer.Goal(macs=np.int64(50), max_drop=np.float64(1)).macs == 50
    assert prune.Magnitude(sparsity=np.float32(0.5)).sparsity == 0.5


def test_every_public_function_checks_its_arguments() -> None:
    functions = [f for name in gossamer.__all__ if inspect.isfunction(f := getattr(gossamer, name))]
    assert len(functions) > 15
    assert [f.__name__ for f in functions if not hasattr(f, "__wrapped__")] == []


def test_what_other_classes_are_named_is_left_to_the_function() -> None:
    @checked_arguments
    def of(model: nn.Module | None, count: int = 1, *, name: "str | None" = None) -> int:
        return count

    assert list(_kinds(of)) == ["count"] and of(3, name=4) == 1
