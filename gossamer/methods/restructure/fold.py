"""Batch-norm folding and structural re-parameterization: merge branches and norms into one convolution.

What it does: a block that sums convolutions, batch norms and its own input becomes one convolution (structural
re-parameterization). A batch norm behind a convolution or linear layer is merged into its weight and bias. A ReLU whose
input is never negative becomes an identity. All of it follows from what the network computes, whatever its classes are,
and is exact up to rounding. No data, no training.
Cost: two traces of the network. It saves the branches' and the norms' time and parameters.
When it fails: without batch norms a network is harder to train, so apply it after the last training. Norms whose layer
is used twice, or whose input is read by something else, stay.
Equation: W'_o = g_o / sqrt(v_o + e) W_o, b'_o = (b_o - m_o) g_o / sqrt(v_o + e) + h_o; kernels of branches, padded to
one size, add up.
Source: Ding et al. 2021, arXiv:2101.03697, section 3.3; Jacob et al. 2018, arXiv:1712.05877, section 3.2.
"""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.calibration.inputs import layer_inputs
from gossamer.constraints.apply import refuse_constrained
from gossamer.core.context import Context
from gossamer.core.placement import evaluating, place
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.edits.swap import swap
from gossamer.errors import BadInput, NoEffect
from gossamer.graph.isolation import mode
from gossamer.graph.proof import relative_difference
from gossamer.graph.tracer import output_tensors, trace
from gossamer.methods._base import Method, Needs, Settings
from gossamer.methods.restructure._rewrite import diagram
from gossamer.modules.cost import total_macs
from gossamer.modules.folding import NotAffine, as_one_convolution, idle_relus, norms_after, with_norm

# Largest difference of outputs, over their largest absolute value, that rounding may make.
ROUNDING = 1e-4


def matching(names: Iterable[str], layers: tuple[str, ...], ignore: tuple[str, ...]) -> set[str]:
    """Return the names that match a pattern of `layers` and none of `ignore`.

    Raises:
        NoEffect: a pattern matches no name.
    """
    names = list(names)
    for field, patterns in (("layers", layers), ("ignore", ignore)):
        for pattern in patterns:
            if not fnmatch.filter(names, pattern) and pattern != "*":
                raise NoEffect(f"{field}={pattern!r} matches nothing that can be folded: {sorted(names)}")
    return {
        name
        for name in names
        if any(fnmatch.fnmatchcase(name, p) for p in layers) and not any(fnmatch.fnmatchcase(name, p) for p in ignore)
    }


@torch.no_grad()
def branched_blocks(model: nn.Module, example_inputs: tuple[Any, ...]) -> dict[str, nn.Module]:
    """Return, for every outermost module that is one convolution written as several branches, that convolution."""
    names = [name for name, module in model.named_modules() if name and any(module.children())]
    with evaluating(model), layer_inputs(model, names) as seen:
        model(*place(model, (example_inputs, None)))
    found: dict[str, nn.Module] = {}
    for name in names:
        calls, block = seen.get(name, []), model.get_submodule(name)
        if any(name.startswith(f"{outer}.") for outer in found) or not calls or not _is_image(calls[0]):
            continue
        try:
            one = as_one_convolution(block, calls[0])
        except (NotAffine, BadInput):  # BadInput: a module that takes more than a tensor
            continue
        if one is None or total_macs(one, (calls[0],)) > total_macs(block, (calls[0],)):
            continue
        with mode(block, False):
            [wanted] = output_tensors(block(calls[0]))
        if relative_difference(one(calls[0]), wanted) <= ROUNDING:
            found[name] = one.train(block.training)
    return found


def _is_image(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dim() == 4


@torch.no_grad()
def eval_outputs(model: nn.Module, example_inputs: tuple[Any, ...]) -> list[Tensor]:
    """Return the outputs of the model in eval mode."""
    with mode(model, False):
        return output_tensors(model(*place(model, (example_inputs, None))))


@dataclass(frozen=True, kw_only=True)
class Folding(Method):
    """Fold branches and batch norms into convolutions, and remove ReLUs without effect.

    Args:
        layers: patterns of names: of blocks with branches, of layers with a norm behind, and of ReLUs without effect.
        ignore: patterns of names to leave.

    Raises:
        BadInput: weights are constrained.
        NoEffect: there is nothing to fold, or a pattern matches nothing.

    Example:
        >>> import gossamer, torch
        >>> model, inputs = gossamer.data.tiny_network(), torch.zeros(1, 1, 8, 8)
        >>> folded, edits = gossamer.methods.restructure.Folding()(model, inputs)
        >>> [(edit.before, edit.after) for edit in edits]
        [('Conv2d and bn1', 'one layer'), ('Conv2d and bn2', 'one layer')]
    """

    saves: ClassVar[tuple[str, ...]] = ("params",)
    needs: ClassVar[Needs] = "inputs"
    example: ClassVar[Settings] = {}

    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        refuse_constrained(model, self.name())
        inputs = task.example_inputs
        branched = branched_blocks(model, inputs)
        inside = tuple(f"{name}." for name in branched)
        t = trace(model, inputs)
        norms = {k: v for k, v in norms_after(model, t).items() if not k.startswith(inside)}
        idle = [name for name in idle_relus(model, t) if not name.startswith(inside)]
        wanted = matching([*branched, *norms, *idle], self.layers, self.ignore)
        new: dict[str, nn.Module] = {}
        edits: list[tuple[str, str, str]] = []
        shown = {name: diagram(model, name, branched[name], task, context) for name in branched if name in wanted}
        for name in (name for name in branched if name in wanted):
            new[name] = branched[name]
            edits.append((name, f"branches of {type(model.get_submodule(name)).__name__}", "one convolution"))
        for name in (name for name in norms if name in wanted):
            new |= {name: with_norm(model.get_submodule(name), model.get_submodule(norms[name]))}
            new |= {norms[name]: nn.Identity()}
            edits.append((name, f"{type(model.get_submodule(name)).__name__} and {norms[name]}", "one layer"))
        for name in (name for name in idle if name in wanted):
            new[name] = nn.Identity()
            edits.append((name, "ReLU of what is not negative", "identity"))
        if not new:
            raise NoEffect(f"{self.name()}: no branches, no batch norms behind layers and no idle ReLUs to fold")
        result = swap(model, new)
        pairs = zip(eval_outputs(result, inputs), eval_outputs(model, inputs))
        proof = max(relative_difference(after, before) for after, before in pairs)
        for target, before, after in edits:
            kind = EditKind.ASSIGN if target in norms else EditKind.SWAP  # a layer takes its norm into its weights
            self.note(context, kind, target, before=before, after=after, proof=proof, swapped=shown.get(target))
        return result
