"""Tree-structured Parzen estimator (TPE), by Optuna (Bergstra et al. 2011; Akiba et al. 2019, arXiv:1907.10902)."""

from typing import Any

from gossamer.errors import require
from gossamer.nas.result import Found
from gossamer.nas.searchers._base import Proposal, Searcher
from gossamer.nas.space import Genes, Space

STARTUP = 8  # random proposals first


class TPESearch(Searcher):
    """Proposes what is likely among the good and unlikely among the rest. Needs the extra `search`.

    Args:
        space: that it proposes from.
        seed: of everything that is drawn.

    Raises:
        MissingExtra: Optuna is not installed.

    Example:
        >>> TPESearch.__name__
        'TPESearch'
    """

    def __init__(self, space: Space, seed: int = 0) -> None:
        super().__init__(space, seed)
        optuna = require("optuna")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, constant_liar=True)
        self.study = optuna.create_study(direction="maximize", sampler=sampler)
        self.failed = optuna.trial.TrialState.FAIL
        self.running: dict[Genes, Any] = {}

    def ask(self) -> Proposal:
        trial = self.study.ask()
        drawn = tuple(trial.suggest_categorical(f"g{i}", list(range(n))) for i, n in enumerate(self.space.choices))
        genes = self.space.canonical(drawn)
        self.running[genes] = trial
        return Proposal(genes)

    def tell(self, found: Found) -> None:
        trial = self.running.pop(found.genes, None)
        if trial is None:
            return
        if found.value is None:
            self.study.tell(trial, state=self.failed)
        else:
            self.study.tell(trial, found.value)
