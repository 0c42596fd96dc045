"""Coarse pruning (best of N random masks): feature maps, then kernels, by the loss of random candidates.

What it does: for each group of channels in turn, some numbers of random choices of the channels to remove are tried,
and the one that does least harm to the loss on some batches is taken. Then, if that is asked for, kernels of each
convolution are masked in the same way. Nothing is trained: a recovery comes behind it.
Cost: for each group, a run of the batches for every candidate.
When it fails: in wide groups, few of the possible choices can be tried, and all of them are mediocre.
Equation: m = argmin over N random masks m_1 ... m_N of the loss with the mask; where there are at most N masks, all.
Source: Anwar & Sung 2016, arXiv:1610.09639, section 2.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.constraints.apply import constrain, materialize, refuse_constrained
from gossamer.constraints.mask import Mask
from gossamer.core.context import Context
from gossamer.core.placement import place_whole
from gossamer.core.record import EditKind
from gossamer.core.task import Task, loss_of
from gossamer.core.validation import Range
from gossamer.errors import BadInput, NoEffect
from gossamer.methods._base import Method, Needs, Settings
from gossamer.modules.dead_units import remove_dead
from gossamer.modules.element_groups import ElementGroups, channel_groups, kernel_groups


def random_sets(members: int, gone: int, most: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the sets of `gone` of the numbers below `members` to try: all of them where there are at most `most`,
    else random ones. More are tried before fewer ones are repeated: the first of a longer series are the same."""
    if math.comb(members, gone) <= most:
        yield from (torch.tensor(one) for one in itertools.combinations(range(members), gone))
    else:
        yield from (torch.randperm(members, generator=generator)[:gone] for _ in range(most))


@torch.no_grad()
def best_masks(
    model: nn.Module,
    groups: ElementGroups,
    sparsity: float,
    most: int,
    loss: Callable[[nn.Module], float],
    *,
    seed: int,
    track: Callable[[Any], Any] = iter,
) -> Tensor:
    """Choose groups to clear, layer by layer, and clear them in place.

    Args:
        model: is changed.
        groups: of its elements.
        sparsity: fraction of the groups of each layer.
        most: candidates for each layer.
        loss: of the model; smaller is better.
        seed: of the candidates.
        track: wraps the layers, for a progress bar.

    Returns:
        True for the groups that stay, shape (groups,).
    """
    alive = torch.ones(len(groups), dtype=torch.bool)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    before = {name: parameters[name].clone() for name in groups.cleared}
    for name in track(list(dict.fromkeys(groups.names))):
        members = torch.tensor([i for i, own in enumerate(groups.names) if own == name])
        count = min(round(sparsity * len(members)), len(members) - 1)
        best, least = None, math.inf
        for gone in random_sets(len(members), count, most, torch.Generator().manual_seed(seed)) if count else ():
            trial = alive.clone()
            trial[members[gone]] = False
            groups.clear(parameters, trial)
            lost = loss(model)
            for key, value in before.items():
                parameters[key].copy_(value)
            if best is None or lost < least:
                best, least = trial, lost
        alive = alive if best is None else best
    groups.clear(parameters, alive)
    return alive


@dataclass(frozen=True, kw_only=True)
class CoarsePruning(Method):
    """Coarse pruning (Anwar & Sung 2016). Give sparsity, kernels or both.

    Args:
        sparsity: fraction of the channels to remove in every group, in [0, 1).
        kernels: fraction of the kernels to mask in every convolution that is left, in [0, 1).
        candidates: random masks that are tried for each group.
        batches: batches of labelled training data that the loss is measured on.
        layers: names or patterns of the layers, such as ("conv*",).
        ignore: names or patterns of layers to leave as they are.

    Raises:
        BadInput: both fractions are zero.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.prune.CoarsePruning(sparsity=0.5, candidates=5, layers=("conv*",))
        >>> smaller, edits = method(model, task)
        >>> smaller.conv1
        Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """

    stage: ClassVar[int | None] = 30
    saves: ClassVar[tuple[str, ...]] = ("params", "macs")
    needs: ClassVar[Needs] = "labels"
    example: ClassVar[Settings] = {"sparsity": 0.5, "candidates": 3, "batches": 1}

    sparsity: Annotated[float, Range(0, 1, open_=("high",))] = 0.0
    kernels: Annotated[float, Range(0, 1, open_=("high",))] = 0.0
    candidates: Annotated[int, Range(1, 100_000)] = 50
    batches: Annotated[int, Range(1, 100_000)] = 4
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sparsity and not self.kernels:
            raise BadInput(f"{self.name()}: give sparsity, kernels or both; both are 0")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        refuse_constrained(model, self.name())
        sample = [place_whole(model, batch) for batch, _ in zip(task.train, range(self.batches))]

        def loss(network: nn.Module) -> float:
            return sum(float(loss_of(task, network, batch)) for batch in sample)

        result = materialize(model)
        if self.sparsity:
            groups = channel_groups(result, task.example_inputs, layers=self.layers, ignore=self.ignore)
            alive = self._choose(result, groups, self.sparsity, loss, context)
            cleared = remove_dead(result, task.example_inputs)
            self._note(context, EditKind.RESIZE, groups, alive, "channels", proof=cleared.max_relative)
            result = cleared.model
        if not self.kernels:
            return result
        kernels = kernel_groups(result, layers=self.layers, ignore=self.ignore)
        alive = self._choose(result, kernels, self.kernels, loss, context)
        self._note(context, EditKind.CONSTRAIN, kernels, alive, "kernels")
        masks = {name: Mask(result.get_parameter(name).detach() != 0) for name in kernels.cleared}
        return constrain(result, masks)

    def _choose(
        self,
        model: nn.Module,
        groups: ElementGroups,
        sparsity: float,
        loss: Callable[[nn.Module], float],
        context: Context,
    ) -> Tensor:
        layers = len(dict.fromkeys(groups.names))

        def track(names: list[str]) -> Any:
            return context.progress.bar(names, label="trying random masks", total=layers)

        alive = best_masks(model, groups, sparsity, self.candidates, loss, seed=context.seed, track=track)
        if bool(alive.all()):
            raise NoEffect(f"{self.name()}: {sparsity:g} of the smallest groups is less than one; ask for more")
        return alive

    def _note(
        self,
        context: Context,
        kind: EditKind,
        groups: ElementGroups,
        alive: Tensor,
        what: str,
        proof: float | None = None,
    ) -> None:
        for name in dict.fromkeys(groups.names):
            own = [lives for group, lives in zip(groups.names, alive.tolist()) if group == name]
            if not all(own):
                self.note(context, kind, name, before=f"{len(own)} {what}", after=f"{sum(own)} {what}", proof=proof)
