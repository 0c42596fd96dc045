"""No pass over data is silent: whatever reads a loader does so under a bar or a label."""

from dataclasses import replace
from typing import Any

import pytest
from watched import Asking, Watched

import gossamer
from gossamer.core.context import Context
from gossamer.train import Training, fit


@pytest.mark.parametrize("lr", [0.01, None])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_training_and_its_validation_are_never_silent(lr: float | None, keep: Any) -> None:
    task, progress, silent = gossamer.data.tiny_task(), Watched(), list[int]()
    watched = {name: Asking(getattr(task, name), progress, silent) for name in ("train", "validation")}
    training = Training(epochs=2, lr=lr, keep=keep)
    fit(gossamer.data.tiny_network(), replace(task, **watched), training, Context(progress=progress))
    assert silent == []
