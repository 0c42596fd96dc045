"""Drop, before training and without data, the connections through which least can flow.

What it does: in many small rounds drops the connections that carry the smallest part of what a network of absolute
weights lets through from an input of ones; train afterwards. No layer loses all connections.
Cost: one gradient for each round.
When it fails: it knows nothing of the data. What a network does besides products, sums and ReLU (softmax, norms over
the input itself) breaks the equation, and with it the guarantee.
Equation: R = sum of the outputs of the network with |w| for an input of ones; score = w dR/dw. What the scores of a
unit's inputs sum to, those of its outputs sum to. Density after round k of n: d^(k/n).
Source: Tanaka et al. 2020, arXiv:2006.05467, sections 4 to 6.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.constraints.base import materialize
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.methods._base import Method, Needs, Settings
from gossamer.methods.prune._masks import held_weights, hold, joint_masks


@torch.no_grad()
def absolute(model: nn.Module) -> nn.Module:
    """A copy in double precision and eval mode with the absolute values of all weights, without biases and means."""
    plain = materialize(model).double().eval()
    for name, tensor in [*plain.named_parameters(), *plain.named_buffers()]:
        if name.rpartition(".")[2] in ("bias", "running_mean"):
            tensor.zero_()
        elif tensor.is_floating_point():
            tensor.abs_()
    return plain


def flow_scores(plain: nn.Module, inputs: tuple[Any, ...], names: Iterable[str]) -> dict[str, Tensor]:
    """|w| dR/d|w| by name of the weight, for an `absolute` network and ones in the shape of one sample."""
    weights = {name: p for name, p in plain.named_parameters() if name in set(names)}
    ones = [torch.ones_like(x[:1], dtype=torch.double) if isinstance(x, Tensor) else x for x in inputs]
    flow = plain(*ones)
    if not isinstance(flow, Tensor):
        raise BadInput(f"prune.synflow: the network gives {type(flow).__name__}, it must give one tensor")
    gradients = torch.autograd.grad(flow.sum(), list(weights.values()), allow_unused=True)
    return {n: torch.zeros_like(w) if g is None else (w * g).detach() for (n, w), g in zip(weights.items(), gradients)}


def flow_masks(
    model: nn.Module, inputs: tuple[Any, ...], weights: Mapping[str, Tensor], sparsity: float, rounds: int
) -> dict[str, Tensor]:
    """Masks by name after so many rounds that drop the same share of what is left each."""
    plain, total = absolute(model), sum(w.numel() for w in weights.values())
    parameters = dict(plain.named_parameters())
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
    for done in range(1, rounds + 1):
        scores = flow_scores(plain, inputs, weights)
        if not all(bool(torch.isfinite(s).all()) for s in scores.values()):
            raise BadInput("prune.synflow: what flows through the network is too large for double precision")
        left = {name: s.where(masks[name], -1.0) for name, s in scores.items()}
        masks = joint_masks(left, round((1 - (1 - sparsity) ** (done / rounds)) * total))
        with torch.no_grad():
            for name, mask in masks.items():
                parameters[name].mul_(mask)
    return masks


@dataclass(frozen=True, kw_only=True)
class SynFlow(Method):
    """sparsity: of all named layers together. rounds: 100 in the paper; 1 can empty a layer."""

    stage: ClassVar[int | None] = 50
    saves: ClassVar[tuple[str, ...]] = ("nonzeros",)
    needs: ClassVar[Needs] = "inputs"
    example: ClassVar[Settings] = {"sparsity": 0.6, "rounds": 3}

    sparsity: Annotated[float, Range(0, 1, open_=("low", "high"))]
    rounds: Annotated[int, Range(1, 10_000)] = 100
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        weights = held_weights(model, self.layers, self.ignore)
        masks = flow_masks(model, task.example_inputs, weights, self.sparsity, self.rounds)
        return hold(model, masks, context, self.name())
