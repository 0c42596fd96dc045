"""Once-for-all training (OFA): train one network so that its sub-networks work without training of their own.

What it does: sorts the channels of every group by importance, so that the first ones are the best. Then it trains the
network together with sub-networks that share its weights: in every step the whole network, the smallest one and some
drawn at random (the sandwich rule). Sub-networks have fewer channels and leave out residual blocks. The whole network
learns from the labels and the original, its sub-networks from the whole network (in-place distillation). The result is
the same network with other weights. Cut it with `prune.channels` (criterion "order") and `restructure.blocks`.
Cost: each sub-network is one more forward and backward pass of every step; all in all, two to three times a usual
training.
When it fails: the whole network may lose some tenths of a point to its sub-networks. Small sub-networks of a short
training are far behind what they would reach alone, but keep their order. Sub-networks need their batch norms
estimated again, as `distill.recover` does.
Equation: L = CE(y, f(x; W)) + sum over sub-networks s of KL(f(x; W) || f(x; W_s)), W_s a part of W.
Source: Cai et al. 2020, arXiv:1908.09791 (sub-networks of sorted channels); Yu & Huang 2019, arXiv:1903.05134,
sections 3.1 and 3.3 (the sandwich rule, in-place distillation).
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from torch import nn

from gossamer.core.context import Context
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.methods._base import Settings
from gossamer.methods._training import LimitedRetrain
from gossamer.methods.prune._criteria import element_scores
from gossamer.modules.elastic import elastic_network, sort_channels
from gossamer.train.sandwich import Sandwich


@dataclass(frozen=True, kw_only=True)
class OnceForAll(LimitedRetrain):
    """Sort channels by importance, and train the network together with its sub-networks.

    The other options are those of `Retrain`. With steps = 0 the channels are sorted and nothing is trained.

    Args:
        subnetworks: random ones in each step, besides the smallest, at least 0.
        round_to: widths of sub-networks are multiples of it.

    Raises:
        NoEffect: the network has no sub-networks.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.distill.OnceForAll(epochs=1, lr=0.01)
        >>> trained, edits = method(model, task)
        >>> half, _ = gossamer.methods.prune.ChannelPruning(sparsity=0.5, criterion="order", reconstruct=False)(
        ...     trained, task
        ... )
        >>> half.conv1.out_channels
        4
    """

    stage: ClassVar[int | None] = None  # may stand anywhere
    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01}

    subnetworks: Annotated[int, Range(0, 64)] = 2
    round_to: Annotated[int, Range(1, 4096)] = 1

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        ordered = sort_channels(model, task.example_inputs, element_scores(model, "l2"))
        self.note(
            context,
            EditKind.ASSIGN,
            f"channels of {len(ordered.groups)} groups",
            before="in the order of the original",
            after="by importance, the largest first",
            proof=ordered.difference,
            note=f"in their old order: {', '.join(ordered.left)}" if ordered.left else "",
        )
        if self.steps == 0:
            return ordered.model
        elastic = elastic_network(ordered.model, task.example_inputs, round_to=self.round_to)
        if self.repeated(task) is None:
            context = replace(context, cache=None)
        sandwich = Sandwich(
            ordered.model, elastic, count=self.subnetworks, temperature=self.temperature, seed=context.seed
        )
        fitted = self.train(ordered.model, self.data(task), context, loss_terms=[sandwich])
        return self.noted(fitted, context).model

    def shape_only(self) -> "OnceForAll":
        return replace(self, epochs=None, steps=0)
