"""Rewrites of a whole network: which there are, and which of them a network takes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from gossamer.core.context import Context, Silent
from gossamer.core.task import Task
from gossamer.errors import BadInput
from gossamer.methods._base import Method
from gossamer.methods.restructure.global_pool import GlobalAveragePooling
from gossamer.methods.restructure.resolution import ResolutionMultiplier
from gossamer.methods.restructure.stride import PoolingToStride
from gossamer.search.axes import SearchAxis
from gossamer.search.checkpoint_store import CheckpointStore
from gossamer.search.failures import FailureGuard

SHARES = (0.875, 0.75, 0.625, 0.5)  # of the height and width


@dataclass(frozen=True)
class Form:
    """One way to rewrite a network. what: in words."""

    what: str
    step: Method


def _smaller(share: float) -> Form:
    size = "half the height and width" if share == 0.5 else f"{100 * share:g} % of the height and width"
    return Form(size, ResolutionMultiplier(share=share))


# Of each kind, the gentlest first.
KINDS: Mapping[str, Sequence[Form]] = {
    "pooled head": [
        Form("the head's first layer reads the mean of the map", GlobalAveragePooling(whole=False)),
        Form("the head reads the mean of the map", GlobalAveragePooling()),
    ],
    "strides for pools": [Form("convolutions that take the steps of the pools behind them", PoolingToStride())],
    "smaller images": [_smaller(share) for share in SHARES],
}


def taken(model: nn.Module, task: Task, forms: Sequence[Form], trials: FailureGuard | None = None) -> Iterator[Form]:
    """Those of the forms that the network takes; each is roughly made to find that out."""
    trials = trials or FailureGuard(CheckpointStore(None, ""), Silent())
    for form in forms:
        if trials(form.what, f"rewrite {form.step!r}", _takes, form, model, task):
            yield form


def _takes(form: Form, model: nn.Module, task: Task) -> bool:
    try:
        form.step.roughly()(model, task, Context())
    except BadInput:  # a refusal is no failure
        return False
    return True


def rewrite_families(
    model: nn.Module, task: Task, journal: CheckpointStore, trials: FailureGuard | None = None
) -> list[SearchAxis]:
    """A family of each kind that the network takes."""

    def of_kind(kind: str, names: Sequence[str]) -> SearchAxis:
        steps = [(form.step,) for form in KINDS[kind] if form.what in names]
        grid = tuple(k / len(steps) for k in range(1, len(steps) + 1))
        return SearchAxis(kind, grid, lambda strength: steps[round(strength * len(steps)) - 1])

    def look() -> dict[str, list[str]]:
        return {kind: [form.what for form in taken(model, task, forms, trials)] for kind, forms in KINDS.items()}

    return [of_kind(kind, names) for kind, names in journal.remember("rewrites", look).items() if names]
