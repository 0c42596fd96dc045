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
        start: architectures that are proposed first.
    """

    directions: Sequence[str]

    def __init__(self, space: Space, seed: int = 0, *, start: Sequence[Genes] = ()) -> None:
        super().__init__(space, seed, start=start)
        optuna = require("optuna")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(directions=self.directions, sampler=self.sampler(optuna, seed))
        self.failed = optuna.trial.TrialState.FAIL
        categories = [optuna.distributions.CategoricalDistribution(list(range(n))) for n in space.choices]
        self.distributions = {f"g{i}": one for i, one in enumerate(categories)}
        self.finished = optuna.trial.create_trial
        for genes in self.start:
            self.study.enqueue_trial(self._named(genes))
        self.running: dict[Genes, list[Any]] = {}  # an architecture can be proposed again while it is trained

    @abstractmethod
    def sampler(self, optuna: Any, seed: int) -> Any:
        """What proposes."""

    @abstractmethod
    def objectives(self, found: Found) -> tuple[float, ...] | None:
        """The numbers that the study is told, in the order of its directions; None for a failed trial."""

    def ask(self) -> Proposal:
        trial = self.study.ask()
        drawn = [trial.suggest_categorical(name, one.choices) for name, one in self.distributions.items()]
        genes = self.space.canonical(tuple(drawn))
        self.running.setdefault(genes, []).append(trial)
        return Proposal(genes)

    def tell(self, found: Found) -> None:
        values = self.objectives(found)
        if not self.running.get(found.genes):
            if values is not None:  # a repaired proposal: nobody asked for it, but its score is known
                named = self._named(found.genes)
                self.study.add_trial(self.finished(params=named, distributions=self.distributions, values=values))
            return
        trial = self.running[found.genes].pop(0)
        if values is None:
            self.study.tell(trial, state=self.failed)
        else:
            self.study.tell(trial, values)

    @staticmethod
    def _named(genes: Genes) -> dict[str, int]:
        return {f"g{i}": gene for i, gene in enumerate(genes)}
