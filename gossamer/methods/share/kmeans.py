"""k-means weight sharing (trained quantization of Deep Compression): replace weights by the centers of a clustering.

What it does: clusters the weights as scalars, of all layers together or of each layer, and constrains each weight to
its center. Later training moves the centers. Zeros have an entry of their own and stay zero.
Cost: the exact optimum takes seconds for 2^bits = 256; the importances "hessian" and "adam" also take gradients, one
backward pass for each sample or batch. The file stores a code of `bits` bits per weight, less after entropy coding.
When it fails: below 3 or 4 bits accuracy falls unless training follows. After entropy coding, uniform steps
(`share.ecsq`) give smaller files than clusters. It reduces bytes, never time.
Equation: min over c of sum_i h_i min_j (w_i - c_j)^2; h = 1, or the diagonal of the Hessian, or sqrt of Adam's moments.
Source: Han et al. 2015, arXiv:1510.00149, section 3; Choi et al. 2016, arXiv:1612.01543, section 3.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from gossamer.constraints.apply import constrain
from gossamer.constraints.codebook import Codebook
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Method, Needs, Settings
from gossamer.methods.share._clusters import Start, lloyd, optimal_centers, start_centers
from gossamer.methods.share._decoded import Books, groups, shared_values
from gossamer.methods.share._importance import Importance, importance_of

Gradient = Literal["mean", "sum"]


def share_values(
    weight: Tensor, k: int, how: str, generator: torch.Generator, importance: Tensor | None = None
) -> Tensor:
    """Return at most k centers, ascending, for the weights that are not zero.

    Args:
        weight: any shape.
        k: how many centers.
        how: "optimal": the global optimum; "linear", "density" or "random": Lloyd's iteration from that start.
        generator: for "random".
        importance: of the squared error of each weight, of the weight's shape; None: 1.

    Returns:
        Shape (at most k,); empty if all weights are zero.
    """
    alive = weight.detach() != 0
    values, h = weight.detach()[alive], None if importance is None else importance[alive]
    if how == "optimal" or len(values) <= k:
        return optimal_centers(values, k, h) if len(values) else values
    return lloyd(values, start_centers(values, k, how, generator), h)


@dataclass(frozen=True, kw_only=True)
class KMeans(Method):
    """k-means weight sharing (Han et al. 2015; Choi et al. 2016).

    Args:
        bits: the codebook has 2^bits values besides zero, bits in [1, 12].
        codebook: "network": one for all layers; "layer": one for each layer.
        start: "optimal": the global optimum of the clustering; "linear", "density" or "random": Lloyd's iteration from
            that start, as published.
        importance: weights of the squared errors: "none", "hessian", "fisher" or "adam"; see `importance_of`.
        samples: training samples for the estimate of the importance.
        gradient: of a center in later training. "mean" over its members: usual learning rates fit; "sum", as published:
            needs a learning rate some 10,000 times smaller.
        layers: names or patterns of the layers whose weights are shared, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are.

    Example:
        >>> import torch, gossamer
        >>> model = torch.nn.Linear(64, 4)
        >>> shared, edits = gossamer.methods.share.KMeans(bits=3)(model)
        >>> len(shared.weight.unique())
        8
    """

    stage: ClassVar[int | None] = 60
    example: ClassVar[Settings] = {"bits": 4}

    bits: Annotated[int, Range(1, 12)] = 5
    codebook: Books = "network"
    start: Start = "optimal"
    importance: Importance = "none"
    samples: Annotated[int, Range(1, 10_000_000)] = 512
    gradient: Gradient = "mean"
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def needed(self) -> Needs:
        return "weights" if self.importance == "none" else "labels"

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        generator = torch.Generator().manual_seed(context.seed)
        weights = {name: effective_weight(model, name) for name in weights_of(model, self.layers, self.ignore)}
        h = importance_of(model, weights, self.importance, task, context, self.samples)
        constrained: dict[str, Codebook] = {}
        for names in groups(weights, self.codebook):
            every, minds = (torch.cat([x[name].flatten() for name in names]) for x in (weights, h))
            centers = share_values(every, 2**self.bits, self.start, generator, minds)
            constrained |= shared_values({name: weights[name] for name in names}, centers, mean=self.gradient == "mean")
        for name, one in constrained.items():
            after = f"{len(one.codebook)} values" + (" of all layers" if one.joint else "")
            self.note(context, EditKind.CONSTRAIN, name, before=f"{weights[name].numel():,} weights", after=after)
        return constrain(model, constrained)
