"""Cheaper modules for single layers as a plan: where they can matter at all, which gain, which are missed least."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from gossamer.core.context import Context
from gossamer.core.layer_names import by_reason
from gossamer.core.record import Edit
from gossamer.core.task import Task
from gossamer.methods.lowrank._common import LowRank
from gossamer.methods.restructure._rewrite import BlockReplacement
from gossamer.ptq.isolated_layers import isolated_costs
from gossamer.search.axes import SearchAxis, Steps, cheapest_first, layer_axis, swap_losses
from gossamer.search.checkpoint_store import CheckpointStore
from gossamer.search.cost_model import CostModel
from gossamer.search.failures import FailureGuard, left_unchanged
from gossamer.search.replacements import FoundReplacements, Replacement, compared, find_swaps, reasons_to_leave

MOST = 0.75  # of a layer's cost: what a cheaper module saves at best, as long as nothing is measured
DOUBT = 1.15  # times: what is measured alone may be so far from what it is in the network


@dataclass(frozen=True)
class ReplacementSearch:
    """What cheaper modules for single layers can do for a goal. Everything measured is in the store."""

    original: nn.Module
    task: Task
    context: Context
    store: CheckpointStore
    cost_model: CostModel

    def axis(self, worst: float, limit: float) -> SearchAxis | None:
        """Cheaper modules for more and more layers; None where all of them together do not bring the cost ratio of the
        uncut network, `worst`, within the limit."""
        if not self._enough(self._at_most(), worst, limit):
            return None
        found = self._found()
        if not found.swaps:
            return None
        saved = sum(swaps[-1].saved for swaps in found.swaps.values())
        moves = self._moves(found) if self._enough(saved, worst, DOUBT * limit) else []
        return layer_axis(moves) if moves else None

    def some(self, worst: float, limit: float) -> Steps | None:
        """The half of the cheaper modules that is missed least, where layers that may have some have most of the
        cost; for the rest of the way to be gone otherwise."""
        if self._at_most() < MOST / 2:
            return None
        moves = self._moves(self._found())
        return layer_axis(moves).steps(0.5) if len(moves) > 1 else None

    def left(self, steps: Sequence[Any]) -> list[Edit]:
        """Which layers the steps leave as they are, and why, for the history."""
        taken = {name for step in steps if isinstance(step, LowRank | BlockReplacement) for name in step.layers} - {"*"}
        reasons = {name: reason for name, reason in self._reasons().items() if name not in taken}
        if self._measured:
            found = self._found()
            reasons |= {
                name: found.left.get(name) or _unneeded(found.swaps.get(name, []), taken)
                for name, reason in reasons.items()
                if not reason
            }
        rows = []
        for reason, names in by_reason(reasons).items():
            why = reason or "no cheaper module was tried: even four times cheaper, such layers do not reach the goal"
            rows.append(left_unchanged(", ".join(names), why))
        return rows

    def _reasons(self) -> dict[str, str]:
        return reasons_to_leave(self.original, self.cost_model.layer_costs())

    def _at_most(self) -> float:
        """The share of the network's cost that may be saved, as long as nothing is measured."""
        costs, reasons = self.cost_model.layer_costs(), self._reasons()
        worth = sum(cost for name, cost in costs.items() if reasons.get(name) == "")
        return MOST * worth / max(sum(costs.values()), 1e-12)

    def _enough(self, saved: float, worst: float, limit: float) -> bool:
        if worst * (1 - saved) <= limit:
            return True
        self.context.progress.say(f"cheaper layers: at best {100 * saved:.0f} % less, which is not enough alone")
        return False

    @property
    def _key(self) -> str:
        return "layers alone" + (f", measured again {self.cost_model.remeasured}" if self.cost_model.remeasured else "")

    @property
    def _measured(self) -> bool:
        return self._key in self.store.results

    def _found(self) -> FoundReplacements:
        names = [name for name, reason in self._reasons().items() if not reason]

        def measure() -> Any:
            with self.context.progress.busy("measuring cheaper layers"):
                return compared(self.original, names, self.task.example_inputs, self._compare, self.trials)

        # The network can be deployed, some layer of it perhaps not alone.
        table = self.store.get_or_compute(
            self._key, lambda: (self.trials("cheaper layers", self._key, measure) or {}) if names else {}
        )
        return find_swaps(self.original, self.cost_model.layer_costs(), table)

    @property
    def trials(self) -> FailureGuard:
        """What fails is left out."""
        return FailureGuard(self.store, self.context.progress)

    def _compare(self, groups: Any, inputs: Any) -> list[list[float]]:
        return isolated_costs(groups, inputs, self.cost_model.goal, self.cost_model.folder, int8=self.cost_model.int8)

    def _moves(self, found: FoundReplacements) -> list[Replacement]:
        rises = self.store.get_or_compute(
            f"{self._key}: losses",
            lambda: swap_losses(self.original, self.task, found.swaps, self.context, trials=self.trials),
        )
        return cheapest_first(found.swaps, rises)


def _unneeded(swaps: Sequence[Replacement], taken: set[str]) -> str:
    if not swaps:
        return "cheaper modules could not be measured"
    why = "not needed for the goal" if taken else "another shape did better"
    return f"cheaper modules gain, at best {1 / swaps[-1].ratio:.1f} times, but {why}"
