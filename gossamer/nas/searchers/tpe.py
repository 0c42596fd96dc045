"""Tree-structured Parzen estimator (TPE), by Optuna (Bergstra et al. 2011; Akiba et al. 2019, arXiv:1907.10902)."""

from typing import Any

from gossamer.nas.result import Found
from gossamer.nas.searchers._optuna import OptunaSearch

STARTUP = 8  # random proposals first


class TPESearch(OptunaSearch):
    """Proposes what is likely among the good and unlikely among the rest. Needs the extra `search`.

    Args:
        space: that it proposes from.
        seed: of everything that is drawn.

    Raises:
        MissingExtra: Optuna is not installed.

    Example:
        >>> TPESearch.directions
        ('maximize',)
    """

    directions = ("maximize",)

    def sampler(self, optuna: Any, seed: int) -> Any:
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, constant_liar=True)

    def objectives(self, found: Found) -> tuple[float, ...] | None:
        return None if found.value is None else (found.value,)
