"""Rewrites of a whole network: which there are, and which of them a network takes."""

from collections.abc import Iterator, Sequence

from torch import nn

from gossamer.core.context import Context
from gossamer.core.progress import Silent
from gossamer.core.task import Task
from gossamer.errors import BadInput
from gossamer.methods._base import NetworkCandidate
from gossamer.methods._catalogue import catalogue
from gossamer.search.axes import SearchAxis
from gossamer.search.checkpoint_store import CheckpointStore
from gossamer.search.failures import FailureGuard


def kinds() -> dict[str, list[NetworkCandidate]]:
    """What the methods themselves propose for whole networks, by axis, the gentlest of each first."""
    found: dict[str, list[NetworkCandidate]] = {}
    for method in catalogue().values():
        for one in method.network_candidates():
            found.setdefault(one.axis, []).append(one)
    return found


def taken(
    model: nn.Module, task: Task, forms: Sequence[NetworkCandidate], trials: FailureGuard | None = None
) -> Iterator[NetworkCandidate]:
    """Those of the forms that the network takes; each is made, shape only, to find that out."""
    trials = trials or FailureGuard(CheckpointStore(None, ""), Silent())
    for form in forms:
        if trials(form.what, f"rewrite {form.step!r}", _takes, form, model, task):
            yield form


def _takes(form: NetworkCandidate, model: nn.Module, task: Task) -> bool:
    try:
        form.step.shape_only()(model, task, Context())
    except BadInput:  # a refusal is no failure
        return False
    return True


def rewrite_axes(
    model: nn.Module, task: Task, store: CheckpointStore, trials: FailureGuard | None = None
) -> list[SearchAxis]:
    """A search axis for each kind that the network takes."""
    known = kinds()

    def of_kind(kind: str, names: Sequence[str]) -> SearchAxis:
        steps = [(form.step,) for form in known[kind] if form.what in names]
        grid = tuple(k / len(steps) for k in range(1, len(steps) + 1))
        return SearchAxis(kind, grid, lambda ratio: steps[round(ratio * len(steps)) - 1])

    def look() -> dict[str, list[str]]:
        return {kind: [form.what for form in taken(model, task, forms, trials)] for kind, forms in known.items()}

    return [of_kind(kind, names) for kind, names in store.get_or_compute("rewrites", look).items() if names]
