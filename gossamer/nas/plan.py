"""How long is searched, by whom, and what networks can be limited by."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gossamer.core.validation import KnownArguments
from gossamer.errors import BadInput, unknown
from gossamer.nas.searchers import SEARCHERS
from gossamer.nas.space import Genes

LEAST_EPOCHS, LEAST_STEPS, FINAL = 2, 150, 5  # shorter trainings leave every network near chance
LIMITS = {
    "latency_ms": "ms",
    "macs": "multiply-adds",
    "params": "parameters",
    "activation_bytes": "bytes of activations",
}


@dataclass(frozen=True, kw_only=True)
class SearchPlan(KnownArguments):
    """How long is searched, and by whom.

    Args:
        searcher: one of `SEARCHERS`.
        trials: trainings, at most.
        epochs: of a full training of the search; None: 2, or as many as give 150 steps.
        final_epochs: of the training of the best one, from fresh weights; None: five times `epochs`.
        lr: peak of the learning rate, for all alike.
        concurrent: trials that may run at the same time, on all workers together. Architecture k is proposed as soon as
            the results of all trials before k - concurrent + 1 are known, and from those alone. So what is decided
            depends on this number, and not on how many workers there are or which one is faster.
        pick: which network of the front is given: the best whose cost of this name ("latency_ms", "macs", "params" or
            "activation_bytes") is at most so much; None: the best of all. Another pick of a finished search costs one
            final training.
        activation_bytes: of activations in int8 that live at once, of one sample, at most
            (`gossamer.modules.activation_memory`); None: no limit.
        start: architectures that are tried first, as vectors of the space, such as one that is known to be good.
            Evolution goes on from them.

    Raises:
        BadInput: another searcher, or nothing to do.

    Example:
        >>> SearchPlan(searcher="random", trials=5).lengths(batches=10)
        (15, 75)
    """

    searcher: str = "evolution"
    trials: int = 20
    epochs: int | None = None
    final_epochs: int | None = None
    lr: float = 0.1
    concurrent: int = 4
    pick: tuple[str, float] | None = None
    activation_bytes: int | None = None
    start: Sequence[Genes] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", tuple(tuple(genes) for genes in self.start))  # JSON gives lists
        if self.searcher not in SEARCHERS:
            raise unknown("searcher", self.searcher, SEARCHERS)
        for name in ("trials", "epochs", "final_epochs", "concurrent"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise BadInput(f"{name} = {value} must be at least 1")
        if self.activation_bytes is not None and self.activation_bytes < 1:
            raise BadInput(f"activation_bytes = {self.activation_bytes} must be at least 1")
        if not 0 < self.lr <= 100:
            raise BadInput(f"lr = {self.lr} must be above 0 and at most 100")
        if self.pick is not None and self.pick[0] not in LIMITS:
            raise unknown("cost to pick by", self.pick[0], LIMITS)

    def lengths(self, batches: int) -> tuple[int, int]:
        """Epochs of a training of the search, and of the final one, for so many batches an epoch."""
        epochs = self.epochs or max(LEAST_EPOCHS, math.ceil(LEAST_STEPS / batches))
        return epochs, self.final_epochs or FINAL * epochs
