"""From wanted fractions to a pruning plan that runs.

The solver proposes counts (`Widths`), predicts every shape and runs the network on shapes only (`ShapeRunner`). Where
the run leaves the prediction, it repairs what differs (`Repair`) and tries again:

1. Where the forward has a size of its own (an integer attribute), the attribute follows.
2. Where it takes one width from another one (C // heads), the two groups keep the same fraction from then on.
3. Where neither helps, the group stays whole and the reason is kept.

What was learned is remembered, so that later prunings of the same network take one run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from gossamer.errors import BadInput, own_error
from gossamer.graph.attributes import Attribute
from gossamer.graph.coupling import Mask
from gossamer.graph.patches import Patches, norms_without_parameters, patched_attributes
from gossamer.graph.repair import Repair
from gossamer.graph.shape_run import ShapeRunner
from gossamer.graph.shapes import Failure, kept_indices
from gossamer.graph.slicing import PruningPlan, changed_attributes
from gossamer.graph.tracer import Trace

if TYPE_CHECKING:
    from gossamer.graph.groups import ChannelGroups
from gossamer.graph.widths import Counts, Widths


@dataclass(frozen=True)
class Solution:
    """A plan that runs.

    Args:
        plan: what stays of the network.
        mask: the channel indices that stay.
        trace: the run of the pruned network in eval mode.
    """

    plan: PruningPlan
    mask: Mask
    trace: Trace


class CutSolver:
    """Finds plans for one network, and remembers what it learned about it.

    Args:
        channels: the network and its groups.
    """

    def __init__(self, channels: "ChannelGroups") -> None:
        self.channels = channels
        self.runner = ShapeRunner(channels)
        self.widths = Widths(channels)
        self.patches: Patches = norms_without_parameters(channels.propagations.eval, self.runner.modules)
        self.tries = 0  # runs on shapes that the last plan took
        self.hopeless: set[tuple[type, str, str]] = set()  # failures, by class of module, that nothing helped against

    @property
    def skipped(self) -> dict[str, str]:
        """Groups that stay whole, with the reason."""
        return self.widths.skipped

    def solve(self, wanted: Mapping[str, float], scores: Mapping[str, Tensor]) -> Solution:
        """Find a plan that keeps about these fractions of the groups.

        Args:
            wanted: fractions in (0, 1] by group name; groups that are not named stay whole.
            scores: scores of the channels by group name, shape (group size,); the largest stay.

        Returns:
            A plan that runs. Groups whose pruning cannot run are in `skipped` afterwards.
        """
        self.tries = 0
        while True:  # ends: every round learns something, or leaves a group whole
            try:
                found = self.step(wanted, scores)
            except Exception as error:  # of attributes that cannot be set, or of ours: no job ends for it
                left = [name for name in self.widths.counts(wanted) if name not in self.skipped]
                if not left:
                    network = type(self.channels.model).__name__
                    raise BadInput(f"{network} cannot be pruned: {own_error(error)}") from error
                for name in left:
                    self.widths.skip(name, f"solving fails ({own_error(error)})")
                continue
            if found is not None:
                return found

    def step(self, wanted: Mapping[str, float], scores: Mapping[str, Tensor]) -> Solution | None:
        """Run the network that these counts make, once: its plan if it runs, else what it needs is remembered."""
        counts = self.widths.counts(wanted)
        mask = self.mask(counts, scores)
        result = self.run(mask)
        if not isinstance(result, Failure):
            # Eval mode is what a proof compares; a run in training mode has only to succeed.
            return Solution(self.plan(counts, mask), mask, result[False])
        # A repair adds a patch or a link; a skip adds required channels or leaves a group whole. All of these are
        # finite in number, and none that has helped is taken back.
        repair = Repair(self, result, wanted, scores)
        if not repair.succeeds(mask):
            repair.skip(mask)
        return None

    def plan_as_learned(self, wanted: Mapping[str, float], scores: Mapping[str, Tensor]) -> PruningPlan:
        """The plan for these fractions by what earlier ones have taught, without a run."""
        counts = self.widths.counts(wanted)
        return self.plan(counts, self.mask(counts, scores))

    def learned(self) -> list[str]:
        """Attributes and links that the forward of this network needs, by name."""
        links = [" = ".join(sorted(link)[:3]) + (" ..." if len(link) > 3 else "") for link in self.widths.linked]
        return [*(f"{module}.{path}".lstrip(".") for module, path in self.patches), *links]

    def mask(self, counts: Counts, scores: Mapping[str, Tensor]) -> Mask:
        """The channel indices that stay where these counts of the best channels do."""
        return self.channels.index_mask(self.channels.select(counts, scores, self.widths.required))

    def run(self, mask: Mask) -> dict[bool, Trace] | Failure:
        """Run the pruned network on shapes only: its traces by mode, or where it leaves the predicted path."""
        self.tries += 1
        return self.runner.run(mask, self.attributes(mask))

    def attributes(self, mask: Mask) -> dict[str, dict[str, Attribute]]:
        """New values of module attributes: those of standard layers, and those that the forward was found to need."""
        # Patches come last: what a failing run has shown outweighs what the class of a module suggests.
        found = changed_attributes(self.channels.model, self.runner.shapes_after(mask))
        for module, values in patched_attributes(self.patches, mask).items():
            found.setdefault(module, {}).update(values)
        return found

    def plan(self, counts: Counts, mask: Mask) -> PruningPlan:
        """The pruning as a value that can be stored and replayed."""
        # Positions, not channel indices: a plan is replayed without a trace.
        kept = kept_indices(self.channels.graph.parameters, mask)
        shapes = {name: tuple(self.runner.tensors[name].shape) for name in kept}
        widths = {name: (self.widths.size(name), int(count.sum())) for name, count in counts.items()}
        return PruningPlan(kept, shapes, self.attributes(mask), widths)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Modules of the stand-in by name, which have the attributes of those of the network."""
        return self.runner.modules
