"""3C: channel selection with spatial and channel factorization of each convolution in one pass, without training.

What it does: in the order of the network, the channels that a convolution reads are chosen by LASSO regression, its
weights are fitted to the outputs of the uncut network, and it is replaced by three thin ones: k x 1, 1 x k and 1 x 1.
The next layer is fitted on what these really give, so that it corrects their errors. Part of the target comes from
channels, the same share of every group; the ranks of all layers together bring the rest, so that they lose as little
energy as possible. Nothing is trained; a few hundred samples without labels are enough.
Cost: for each convolution, runs of both networks on some batches, a LASSO path, and a matrix of (inputs x positions)^2
numbers.
When it fails: narrow convolutions and those with one axis gain nothing by ranks; there the channels must bring all. A
chain has three times as many layers, which run slower per multiply-add. It needs scikit-learn.
Equation: W_(n, c i j) ~ sum_s P_ns sum_r H_(s, r j) V_(r, c i) over the channels c that LASSO keeps; V, H and P in the
metric of E[x x^T] of the inputs x that the layers before really give.
Source: He, Zhang & Sun 2017, arXiv:1707.06168, section 4.1.1 (3C); Jaderberg et al. 2014, arXiv:1405.3866, scheme 2;
Zhang et al. 2015, arXiv:1505.06798, section 3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor, nn

from gossamer.calibration.channel_selection import GramSystem, contributions, lasso_channels
from gossamer.calibration.weight_reconstruction import owners
from gossamer.constraints.weights import weights_of
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.methods._base import Settings
from gossamer.methods.lowrank._chain import calls_of
from gossamer.methods.lowrank._grams import Grams
from gossamer.methods.lowrank._ranks import by_budget
from gossamer.methods.prune._factoring import BATCHES, Factoring, can_be_chained, chain_options
from gossamer.methods.prune._selection import (
    Between,
    ChannelSelection,
    channels_made,
    channels_read,
    cost_of,
    nearest_widths,
)
from gossamer.modules.element_groups import ElementGroups
from gossamer.train.batches import Replayed


@dataclass(frozen=True, kw_only=True)
class ThreeC(ChannelSelection):
    """Channel selection with spatial and channel factorization (He, Zhang & Sun 2017). Give one of speedup, macs and
    params.

    Args:
        channels: share of the logarithm of the speedup that fewer channels bring, in (0, 1); ranks bring the rest.
        sparsity, widths: not for this method, which has a joint target.
        speedup, macs, params, residual, layers, ignore: how far to go, and where; see `ChannelSelection`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> smaller, edits = gossamer.methods.prune.ThreeC(speedup=2)(model, task)
        >>> [layer.kernel_size for layer in smaller.conv2]
        [(3, 1), (1, 3), (1, 1)]
    """

    example: ClassVar[Settings] = {"speedup": 1.8}

    channels: Annotated[float, Range(0, 1, open_=("low", "high"))] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sparsity", "widths"):
            if getattr(self, name):
                given = f"{name} = {getattr(self, name)!r}"
                raise BadInput(f"{self.name()}: {given} says nothing of ranks; give speedup, macs or params")

    def shape_only(self) -> "ThreeC":
        return self

    def choose(self, systems: Sequence[GramSystem], count: int, keep: int) -> list[int]:
        return lasso_channels(*contributions(systems, count), keep)

    def kept_counts(self, model: nn.Module, groups: ElementGroups, task: Task) -> dict[str, int]:
        sizes = {name: groups.names.count(name) for name in dict.fromkeys(groups.names)}
        cost, wanted = self.priced(model, groups, task)
        whole = cost_of(cost, groups, sizes)
        if wanted >= whole:
            raise BadInput(f"{self.name()}: {wanted:,.0f} is not less than the network costs now, {whole:,.0f}")
        return nearest_widths(cost, groups, sizes, whole * (wanted / whole) ** self.channels)

    def between(
        self, plain: nn.Module, groups: ElementGroups, widths: Mapping[str, int], task: Task, context: Context
    ) -> Between:
        """Return what factors the convolutions, with ranks for what the widths leave of the target."""
        layers: dict[str, Any] = {layer_name(key): None for key in weights_of(plain, self.layers, self.ignore)}
        layers = {name: plain.get_submodule(name) for name in layers}
        single = {name: one for name, one in layers.items() if can_be_chained(one) and owners(plain, one.weight) == 1}
        calls = calls_of(plain, list(single), task.example_inputs) if single else {}
        single = {name: single[name] for name in calls if len(calls[name]) == 1}
        if not single:
            raise BadInput(f"{self.name()}: no selected convolution has a kernel of two axes; use prune.lasso")
        read, made = channels_read(plain, groups), channels_made(groups)
        grams, options = Grams(plain, single, Replayed(task.train, context.seed), BATCHES), {}
        for name, layer in context.progress.bar(single.items(), label="ranks", total=len(single)):
            inputs = _left(groups, widths, read.get(name), layer.in_channels)
            outputs = _left(groups, widths, made.get(name), layer.out_channels)
            gram = grams(name, layer.weight.detach().double())
            assert gram is not None
            options[name] = chain_options(layer, inputs, outputs, gram, calls[name])
        cost, wanted = self.priced(plain, groups, task)
        what = "macs" if self.params is None else "params"
        dense = sum(getattr(one, f"dense_{what}") for one in options.values())
        picks = by_budget(options, 1 - (cost_of(cost, groups, widths) - wanted) / dense, what)
        ranks = {name: tuple(options[name].ranks[pick].tolist()) for name, pick in picks.items() if pick is not None}
        first = [name for name in ranks if name not in read]
        return Factoring(method=self, ranks=ranks, task=task, context=context, pending=first)


def _left(groups: ElementGroups, widths: Mapping[str, int], ids: Tensor | None, count: int) -> int:
    """Return how many of the channels with these groups stay; all of them where there are no groups."""
    if ids is None:
        return count
    names = [groups.names[i] for i in ids.tolist() if i >= 0]
    kept = sum(names.count(name) * widths[name] / groups.names.count(name) for name in dict.fromkeys(names))
    return round(kept) + int((ids < 0).sum())
