"""Synaptic flow (SynFlow): prune at initialization without data, by iterative conservation of flow.

What it does: takes the network with absolute weights and an input of ones. In many rounds it drops the connections
that carry the smallest part of the output's sum. Train afterwards. No layer loses all connections.
Cost: one gradient for each round. No data; example inputs give the shapes.
When it fails: it knows nothing of the data. Operations besides products, sums and ReLU (softmax, norms over the input
itself) break the equation, and with it the guarantee.
Equation: R = sum of the outputs of the network with |w| for an input of ones; score = w dR/dw. The scores of a unit's
incoming and of its outgoing connections have the same sum. Density after round k of n: d^(k/n).
Source: Tanaka et al. 2020, arXiv:2006.05467, sections 4 to 6.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.constraints.apply import materialize
from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.methods._base import Method, Needs, Settings
from gossamer.methods.prune._masks import joint_masks, mask_weights, selected_weights


@torch.no_grad()
def absolute(model: nn.Module) -> nn.Module:
    """Return a float64 copy in eval mode with absolute weights; biases and running means are zero."""
    plain = materialize(model).double().eval()
    for name, tensor in [*plain.named_parameters(), *plain.named_buffers()]:
        if name.rpartition(".")[2] in ("bias", "running_mean"):
            tensor.zero_()
        elif tensor.is_floating_point():
            tensor.abs_()
    return plain


def flow_scores(plain: nn.Module, inputs: tuple[Any, ...], names: Iterable[str]) -> dict[str, Tensor]:
    """Return the synaptic flow |w| dR/d|w| of these weights.

    Args:
        plain: a network of `absolute`.
        inputs: example inputs; only their shapes count. The flow is that of ones in the shape of one sample.
        names: of the weights ("conv1.weight").

    Returns:
        Scores by name, of the weights' shapes.

    Raises:
        BadInput: the network does not return a single tensor.

    Source: Tanaka et al. 2020, arXiv:2006.05467, section 6.
    """
    weights = {name: p for name, p in plain.named_parameters() if name in set(names)}
    ones = [torch.ones_like(x[:1], dtype=torch.double) if isinstance(x, Tensor) else x for x in inputs]
    flow = plain(*ones)
    if not isinstance(flow, Tensor):
        raise BadInput(f"prune.synflow: the network returns {type(flow).__name__}; it must give one tensor")
    gradients = torch.autograd.grad(flow.sum(), list(weights.values()), allow_unused=True)
    return {n: torch.zeros_like(w) if g is None else (w * g).detach() for (n, w), g in zip(weights.items(), gradients)}


def flow_masks(
    model: nn.Module, inputs: tuple[Any, ...], weights: Mapping[str, Tensor], sparsity: float, rounds: int
) -> dict[str, Tensor]:
    """Return masks after some rounds of SynFlow, each of which drops the same fraction of what is left.

    Args:
        model: is not changed.
        inputs: example inputs; only their shapes count.
        weights: effective weights by name.
        sparsity: fraction to drop over all weights together, in (0, 1).
        rounds: 100 in the paper.

    Returns:
        Bool tensors by name, of the weights' shapes; True keeps.

    Raises:
        BadInput: the flow overflows float64, or the network does not return a single tensor.
    """
    plain, total = absolute(model), sum(w.numel() for w in weights.values())
    parameters = dict(plain.named_parameters())
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
    for done in range(1, rounds + 1):
        scores = flow_scores(plain, inputs, weights)
        if not all(bool(torch.isfinite(s).all()) for s in scores.values()):
            raise BadInput("prune.synflow: the flow through the network overflows float64; scale its weights down")
        left = {name: s.where(masks[name], -1.0) for name, s in scores.items()}
        masks = joint_masks(left, round((1 - (1 - sparsity) ** (done / rounds)) * total))
        with torch.no_grad():
            for name, mask in masks.items():
                parameters[name].mul_(mask)
    return masks


@dataclass(frozen=True, kw_only=True)
class SynFlow(Method):
    """Synaptic flow, pruning at initialization without data (Tanaka et al. 2020).

    Args:
        sparsity: fraction of zeros over all selected layers together, in (0, 1).
        rounds: of scoring and dropping; 100 in the paper. With 1 a layer can lose all connections.
        layers: names or patterns of the layers to prune, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are.

    Example:
        >>> import torch, gossamer
        >>> model = gossamer.data.tiny_network()
        >>> pruned, edits = gossamer.methods.prune.SynFlow(sparsity=0.9, rounds=10)(model, torch.zeros(1, 1, 8, 8))
        >>> all(bool(p.any()) for name, p in pruned.named_parameters() if "conv" in name)
        True
    """

    stage: ClassVar[int | None] = 50
    saves: ClassVar[tuple[str, ...]] = ("nonzeros",)
    needs: ClassVar[Needs] = "inputs"
    example: ClassVar[Settings] = {"sparsity": 0.6, "rounds": 3}

    sparsity: Annotated[float, Range(0, 1, open_=("low", "high"))]
    rounds: Annotated[int, Range(1, 10_000)] = 100
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        weights = selected_weights(model, self.layers, self.ignore)
        masks = flow_masks(model, task.example_inputs, weights, self.sparsity, self.rounds)
        return mask_weights(model, masks, context, self.name())
