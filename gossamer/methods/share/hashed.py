"""HashedNets (the hashing trick): share weights by a hash of their position, storing K values and a seed.

What it does: every weight of a layer is one of K values, or its negative; a hash of its position decides which. The
initial values are the least-squares fit to the given network (the mean of a bucket's signed weights), or, with
fresh=True, random for training from scratch. Later training moves the values. Weights that are zero stay zero.
Cost: nothing to compute; K numbers and a seed for each layer in the compact file.
When it fails: random sharing destroys a trained network, which must then be trained as if from scratch. A network that
is already small loses accuracy. It reduces bytes, never time.
Equation: w_ij = v[h(i, j)] xi(i, j), xi = +-1; dL/dv_k = sum over its n_k places of dL/dw xi, here over sqrt(mean n).
Source: Chen et al. 2015, arXiv:1504.04788, section 4. The hash is SplitMix64 (Steele et al. 2014) of seed and position.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from gossamer.constraints.apply import constrain
from gossamer.constraints.codebook import take_entries
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.gsr.format.generated import GeneratedWeight, Rule, hashed_places
from gossamer.methods._base import Method, Settings
from gossamer.methods.share._decoded import Decoded


def layer_seed(seed: int, name: str) -> int:
    """Return a 63-bit seed for the layer of this name."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()) >> 1


class Hashed(Decoded):
    """The constraint of hashed weights: `values` (K,) are trained; buckets and signs follow from the seed.

    Buckets and signs are in no state dict. A value's gradient is the signed sum over its bucket. Signs are random, so
    its mean square is that of a single weight times the weights in a bucket. It is divided by the root of their number,
    so that learning rates for single weights fit. (The plain sum diverges at a usual rate with 64 weights in a bucket;
    the mean hardly learns.)
    """

    buckets: Tensor
    signs: Tensor
    spread: Tensor

    def __init__(self, weight: Tensor, values: Tensor, seed: int) -> None:
        super().__init__(weight)
        self.shape, self.seed = tuple(weight.shape), seed
        self.values = nn.Parameter(values.detach().clone())
        self.rebuild()

    def rebuild(self) -> None:
        buckets, signs = hashed_places(self.shape, len(self.values), self.seed)
        self.register_buffer("buckets", buckets.to(self.values.device), persistent=False)
        self.register_buffer("signs", signs.to(self.values), persistent=False)
        size = signs.new_tensor([max(1.0, signs.numel() / len(self.values))], dtype=torch.float32)
        self.register_buffer("spread", size.sqrt().to(self.values), persistent=False)

    def decode(self) -> Tensor:
        return take_entries(self.values, self.buckets.flatten(), self.spread).view(self.signs.shape) * self.signs

    def generated(self) -> GeneratedWeight:
        numbers = self.values.detach()
        return GeneratedWeight(rule=Rule.HASHED, shape=self.shape, numbers=numbers, seed=self.seed, keep=self.keep)


def bucket_means(weight: Tensor, k: int, seed: int) -> Tensor:
    """Return the K values that are nearest to the weight in least squares: the means of the signed members.

    Args:
        weight: any shape. Zeros do not count.
        k: how many values.
        seed: of the hash.

    Returns:
        Shape (K,); 0 for an empty bucket.
    """
    buckets, signs = (x.to(weight.device).flatten() for x in hashed_places(weight.shape, k, seed))
    alive = (weight.detach() != 0).flatten()
    members, signed = buckets[alive].long(), (weight.detach().flatten() * signs)[alive].double()
    sums = torch.zeros(k, dtype=torch.float64, device=weight.device).index_add_(0, members, signed)
    return (sums / torch.bincount(members, minlength=k).clamp(min=1)).to(weight.dtype)


@dataclass(frozen=True, kw_only=True)
class HashedNet(Method):
    """HashedNets (Chen et al. 2015).

    Args:
        share: number of values K over the number of weights, in every layer, in (0, 1].
        fresh: start from random values instead of the least-squares fit, for training from scratch.
        layers: names or patterns of the layers whose weights are shared, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are.

    Example:
        >>> import torch, gossamer
        >>> model = torch.nn.Linear(64, 4)
        >>> shared, edits = gossamer.methods.share.HashedNet(share=0.125)(model)
        >>> len(shared.weight.abs().unique()) <= 32
        True
    """

    stage: ClassVar[int | None] = 60
    example: ClassVar[Settings] = {"share": 0.5}

    share: Annotated[float, Range(0, 1, open_=("low",))] = 0.125
    fresh: bool = False
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        generator = torch.Generator().manual_seed(context.seed)
        constrained = {}
        for name in weights_of(model, self.layers, self.ignore):
            w = effective_weight(model, name)
            k, seed = max(1, round(self.share * w.numel())), layer_seed(context.seed, name)
            if self.fresh:  # He et al. 2015: the variance 2 / fan-in keeps the activations' size
                values = torch.randn(k, generator=generator).to(w) * (2 / w[0].numel()) ** 0.5
            else:
                values = bucket_means(w, k, seed)
            constrained[name] = Hashed(w, values, seed)
            self.note(
                context, EditKind.CONSTRAIN, name, before=f"{w.numel():,} weights", after=f"{k:,} values, seed {seed}"
            )
        return constrain(model, constrained)
