"""Repair a pruning that does not run: let an attribute follow, link two groups, or leave a group whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from gossamer.graph.coupling import Mask
from gossamer.graph.patches import candidates, of_siblings, shrinking_sizes
from gossamer.graph.shapes import Failure
from gossamer.graph.tracer import Op

if TYPE_CHECKING:
    from gossamer.graph.solver import CutSolver

TRIES = 400  # runs on shapes for one plan
PARTS = 48  # of these at one failure for attributes that are multiples or parts of a size
INNER = 2  # modules around a failure, from the innermost, whose groups may be linked


@dataclass(frozen=True)
class Repair:
    """One failure, and what can be done about it. A repair is kept only if the run then gets further.

    Args:
        solver: what is known of the network; a successful repair adds to it.
        failure: where the run left the predicted path.
        wanted: fractions to keep, by group name.
        scores: scores of the channels, by group name.
    """

    solver: "CutSolver"
    failure: Failure
    wanted: Mapping[str, float]
    scores: Mapping[str, Tensor]

    @property
    def ops(self) -> list[Op]:
        return self.solver.channels.propagations.of(self.failure.training).trace.ops

    def succeeds(self, mask: Mask) -> bool:
        """Find an attribute, or a link, with which the run gets further."""
        mismatch = self.failure.mismatch
        if mismatch.index >= len(self.ops) or self.solver.tries > TRIES or self._is_hopeless():
            return False
        # An error of the forward may come from outside the module that the operation ran in, and the other way round.
        expected, seen = self.ops[mismatch.index].modules, mismatch.modules
        stack = expected if len(expected) >= len(seen) else seen
        # An attribute with the very size is the likeliest explanation, a multiple or a part of it the least likely.
        if self._patch(stack, mask, exact=True) or self._link(stack) or self._patch(stack, mask, exact=False):
            return True
        self.solver.hopeless.add(self._kind())
        return False

    def _kind(self) -> tuple[type, str, str]:
        """What fails, alike for all modules of one class."""
        op = self.ops[self.failure.mismatch.index]
        inner = self.solver.modules[op.modules[-1] if op.modules else ""]
        return type(inner), op.name, str(self.failure.mismatch)

    def _is_hopeless(self) -> bool:
        """Whether nothing helped against the same failure in a module of the same class."""
        return self._kind() in self.solver.hopeless

    def _gets_further(self, mask: Mask) -> bool:
        try:
            result = self.solver.run(mask)
        except Exception:  # an attribute that does not take another value
            return False
        return not isinstance(result, Failure) or self.failure.is_before(result)

    def _patch(self, stack: Sequence[str], mask: Mask, *, exact: bool) -> bool:
        """Let attributes of the modules in which it fails follow the pruning, innermost first.

        Args:
            stack: names of the modules around the failure, outermost first.
            mask: the channel indices that stay.
            exact: try attributes that equal the size of what is pruned; else multiples and parts of it.
        """
        solver = self.solver
        propagation = solver.channels.propagations.of(self.failure.training)
        op = self.ops[self.failure.mismatch.index]
        around = [] if exact else propagation.trace.inside(op.modules[-1] if op.modules else "")
        likely = shrinking_sizes(propagation, around, mask)
        last = solver.tries + (TRIES if exact else PARTS)
        for name in dict.fromkeys(reversed(stack)):
            known, module = dict(solver.patches), solver.modules[name]
            for found in candidates(propagation, op, name, module, known, mask, exact=exact, likely=likely):
                if solver.tries > last:
                    break
                solver.patches = known | found
                if self._gets_further(mask):
                    # What one layer needs, its siblings need: a deep network is then solved in a few runs.
                    solver.patches |= of_siblings(propagation, op, name, found, solver.modules, solver.patches)
                    return True
            solver.patches = known
        return False

    def _link(self, stack: Sequence[str]) -> bool:
        """Keep the same fraction of all groups that meet in the failing module, and in its siblings."""
        widths = self.solver.widths
        for module in list(dict.fromkeys(reversed(stack)))[:INNER]:
            names = self._groups_in(module)
            if len(names) < 2 or module == "" or any(names <= link for link in widths.linked):
                continue
            # Links merge and cannot be taken apart again, so a failed attempt goes back to this copy.
            before = [set(link) for link in widths.linked]
            widths.link(names)
            # A link that leaves all of its groups whole would always run, and would prove nothing.
            if any(widths.fractions(self.wanted).get(name, 1.0) < 1 for name in names):
                counts = widths.counts(dict.fromkeys(widths.groups, 1.0) | dict(self.wanted))
                mask = self.solver.mask(counts, self.scores)
                # Linked widths may need an attribute too: d_head = C // heads, kept as a number.
                if self._gets_further(mask) or any(self._patch(stack, mask, exact=exact) for exact in (True, False)):
                    for name in self._siblings(module):
                        widths.link(self._groups_in(name))
                    return True
            widths.linked = before
        return False

    def _siblings(self, module: str) -> list[str]:
        modules = self.solver.modules
        return [name for name, other in modules.items() if type(other) is type(modules[module]) and name != module]

    def _groups_in(self, module: str) -> set[str]:
        propagation = self.solver.channels.propagations.of(self.failure.training)
        found = self.solver.widths.groups_in(propagation.trace.inside(module), propagation)
        return found.difference(self.solver.widths.skipped)

    def skip(self, mask: Mask) -> None:
        """Require the channels that the failing operation counts; or else leave groups whole, the nearest first."""
        widths, mismatch = self.solver.widths, self.failure.mismatch
        propagation = self.solver.channels.propagations.of(self.failure.training)
        op = self.ops[min(mismatch.index, len(self.ops) - 1)]
        if widths.require_part(propagation, op, mask):
            return
        shrinking = widths.shrinking(mask)
        # Groups in the operation, in its module, in the network; all, if the run never reads the ones that shrink.
        around = [[op], propagation.trace.inside(op.modules[-1] if op.modules else ""), self.ops]
        found = (widths.groups_in(ops, propagation) & shrinking for ops in around)
        names = next((names for names in found if names), shrinking)
        if not names:
            raise RuntimeError(f"the network does not run as traced: {mismatch}")
        for name in sorted(names):
            widths.skip(name, f"{mismatch} ({op.where}{f'; {mismatch.line}' if mismatch.line else ''})")
