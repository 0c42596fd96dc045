"""What the searchers by Optuna share (Akiba et al. 2019, arXiv:1907.10902)."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from gossamer.errors import require
from gossamer.nas.result import Found
from gossamer.nas.searchers._base import Proposal, Searcher
from gossamer.nas.space import Genes, Space


class OptunaSearch(Searcher):
    """A study of Optuna in memory, which is told the same again after a stop, in the same order.

    Args:
        space: that it proposes from.
        seed: of everything that is drawn.
    """

    directions: Sequence[str]

    def __init__(self, space: Space, seed: int = 0) -> None:
        super().__init__(space, seed)
        optuna = require("optuna")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(directions=self.directions, sampler=self.sampler(optuna, seed))
        self.failed = optuna.trial.TrialState.FAIL
        self.running: dict[Genes, list[Any]] = {}  # an architecture can be proposed again while it is trained

    @abstractmethod
    def sampler(self, optuna: Any, seed: int) -> Any:
        """What proposes."""

    @abstractmethod
    def objectives(self, found: Found) -> tuple[float, ...] | None:
        """The numbers that the study is told, in the order of its directions; None for a failed trial."""

    def ask(self) -> Proposal:
        trial = self.study.ask()
        drawn = tuple(trial.suggest_categorical(f"g{i}", list(range(n))) for i, n in enumerate(self.space.choices))
        genes = self.space.canonical(drawn)
        self.running.setdefault(genes, []).append(trial)
        return Proposal(genes)

    def tell(self, found: Found) -> None:
        if not self.running.get(found.genes):
            return
        trial = self.running[found.genes].pop(0)
        values = self.objectives(found)
        if values is None:
            self.study.tell(trial, state=self.failed)
        else:
            self.study.tell(trial, values)
