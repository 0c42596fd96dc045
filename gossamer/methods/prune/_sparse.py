"""What the methods share that empty groups while they train: targets, the training, and the cut afterwards."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from gossamer.constraints.apply import materialize, refuse_constrained
from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.edit_details import GroupPath
from gossamer.core.placement import evaluating, place_whole
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput, NoEffect
from gossamer.methods._training import Retrain
from gossamer.modules.blocks import find_blocks, remove_blocks
from gossamer.modules.cost import total_macs
from gossamer.modules.dead_units import remove_dead
from gossamer.modules.element_groups import ElementGroups, channel_groups
from gossamer.modules.gathering import gather_columns
from gossamer.modules.group_cost import group_cost
from gossamer.train.sparsity import ALIVE, NUMBERS, PATH, TRIMMED, ShrinkRule, Sparsify, SparsityTarget, remembered

TARGETS = ("speedup", "macs", "params", "max_drop")


@dataclass(frozen=True, kw_only=True)
class SparseTraining(Retrain):
    """Base of the methods that empty groups of weights while they train. Give one target.

    Args:
        speedup: multiply-adds of the network before over those after, > 1.
        macs: multiply-adds of one sample to keep.
        params: parameters to keep.
        max_drop: how much of the metric may be lost on validation data, in points, >= 0: groups go until more is lost.
        until: share of the training, in (0, 1), in which groups are emptied; the rest trains what is left.
        layers: names or patterns of the layers whose groups may become zero, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are.
        epochs, lr, weight_decay, clip, temperature, alpha: the training; see `Retrain`.
    """

    stage: ClassVar[int | None] = 30
    saves: ClassVar[tuple[str, ...]] = ("params", "macs")

    speedup: Annotated[float | None, Range(1, 1e6, open_=("low",))] = None
    macs: Annotated[int | None, Range(1, 10**15)] = None
    params: Annotated[int | None, Range(1, 10**15)] = None
    max_drop: Annotated[float | None, Range(0, 1e6)] = None
    until: Annotated[float, Range(0, 1, open_=("low", "high"))] = 0.6
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in self.ways() if getattr(self, name) is not None]
        if len(given) != 1:
            raise BadInput(f"{self.name()}: give one of {', '.join(self.ways())}, not {' and '.join(given) or 'none'}")

    def ways(self) -> tuple[str, ...]:
        """Return the fields of which one says how far to go."""
        return TARGETS

    def families(self, model: nn.Module, task: Task) -> Sequence[ElementGroups]:
        """Return the groups that may become zero: by default the rows that make a channel."""
        return (channel_groups(model, task.example_inputs, layers=self.layers, ignore=self.ignore),)

    def implied(self, model: nn.Module, task: Task) -> Sequence[ElementGroups]:
        """Return groups that go with others, and are not shrunk by themselves: none by default."""
        return ()

    def target(self, model: nn.Module, task: Task) -> SparsityTarget:
        """Return what the training is to reach for this network."""
        if self.speedup is not None:
            return SparsityTarget("macs", total_macs(model, task.example_inputs) / self.speedup)
        if self.macs is not None:
            return SparsityTarget("macs", float(self.macs))
        if self.params is not None:
            return SparsityTarget("params", float(self.params))
        assert self.max_drop is not None
        return SparsityTarget("drop", self.max_drop)

    def sparsify(
        self,
        network: nn.Module,
        rule: ShrinkRule,
        task: Task,
        context: Context,
        *,
        every: int = 1,
        by_size: bool = True,
        keeps_previous: bool = False,
    ) -> nn.Module:
        """Train a copy of the network until its groups are empty, cut these, and note what was done.

        Args:
            network: without constraints.
            rule: shrinks the groups.
            task: data, loss and metric.
            context: of the training.
            every: steps from one shrinking to the next.
            by_size: whether larger groups have larger weights.
            keeps_previous: whether the rule needs the values of the last step.

        Returns:
            The smaller network.
        """
        refuse_constrained(network, self.name())
        plain = materialize(network)
        hook = self.hook(plain, rule, task, every=every, by_size=by_size, keeps_previous=keeps_previous)
        hook.attach(plain)
        trained = self.noted(self.train(plain, task, context, after_step=hook), context).model
        return self.cut(trained, hook, task, context)

    def hook(
        self,
        plain: nn.Module,
        rule: ShrinkRule,
        task: Task,
        *,
        every: int = 1,
        by_size: bool = True,
        keeps_previous: bool = False,
    ) -> Sparsify:
        """Return what shrinks the groups of a network without constraints. Arguments as of `sparsify`."""
        families, target = tuple(self.families(plain, task)), self.target(plain, task)
        what: Literal["macs", "params"] = "params" if target.what == "params" else "macs"
        return Sparsify(
            families=families,
            rule=rule,
            target=target,
            until=self.until,
            cost=group_cost(plain, task.example_inputs, families, what, self.implied(plain, task)),
            every=every,
            by_size=by_size,
            keeps_previous=keeps_previous,
            drop=validation_drop(plain, task) if target.what == "drop" else None,
        )

    def cut(self, trained: nn.Module, hook: Sparsify, task: Task, context: Context) -> nn.Module:
        """Return the network without its empty groups, and note what became of each layer's."""
        alive, numbers, path = (remembered(trained, key).cpu() for key in (ALIVE, NUMBERS, PATH))
        Sparsify.detach(trained)
        if bool(alive.all()):
            raise NoEffect(f"{self.name()}: no group became zero; ask for more, or train for more epochs")
        smaller, proof = without_zeros(materialize(trained), task)
        trimmed = int(numbers[TRIMMED])
        self.note(
            context,
            EditKind.TRAIN,
            "groups of weights",
            before=f"{len(alive):,} groups",
            after=f"{int(alive.sum()):,} that are not zero",
            note=f"{trimmed:,} were the smallest at the end and were cut for the target" if trimmed else "",
            path=group_path(hook, path),
        )
        for name, (before, after) in living(hook, alive).items():
            if after < before:
                left = f"{after} that are not zero" if after else "removed"
                self.note(context, EditKind.RESIZE, name, before=f"{before} groups", after=left, proof=proof)
        return smaller

    def thinned(self, smaller: nn.Module, task: Task, context: Context) -> nn.Module:
        """Return the network with layers that gather what they read in the place of those with empty columns."""
        thin, found = gather_columns(smaller, task.example_inputs)
        for name, module in found.items():
            before, after = (next(m.get_submodule(name).parameters()).shape for m in (smaller, thin))
            self.note(
                context,
                EditKind.SWAP,
                name,
                before=f"{before[1:].numel()} columns",
                after=f"{after[1:].numel()} columns, gathered by a {type(module).__name__}",
            )
        return thin


@dataclass(frozen=True, kw_only=True)
class Penalized(SparseTraining):
    """Base of the methods that empty groups by a penalty. Give one target, or the strength of the penalty.

    Args:
        strength: of the penalty, in units of the loss, > 0; instead of a target.
        speedup, macs, params, max_drop, until, layers, ignore: the target; see `SparseTraining`.
        epochs, lr, weight_decay, clip, temperature, alpha: the training; see `Retrain`.
    """

    strength: Annotated[float | None, Range(0, 1e6, open_=("low",))] = None

    def ways(self) -> tuple[str, ...]:
        return ("strength", *TARGETS)

    def target(self, model: nn.Module, task: Task) -> SparsityTarget:
        if self.strength is not None:
            return SparsityTarget("strength", self.strength)
        return super().target(model, task)


def unread(model: nn.Module, task: Task) -> tuple[ElementGroups, ...]:
    """Return the channels that go when all columns that read them are empty."""
    try:
        return (channel_groups(model, task.example_inputs, sides="read"),)
    except NoEffect:
        return ()


def validation_drop(original: nn.Module, task: Task) -> Callable[[nn.Module], float]:
    """Return a function that says how many points a network has lost on validation data.

    Raises:
        BadInput: the task has no validation data.
    """
    if not len(task.validation):
        raise BadInput(f"max_drop needs validation data, and task {task.name!r} has none; give speedup, macs or params")

    def score(model: nn.Module) -> float:
        with evaluating(model), torch.no_grad():
            return task.metric.score(model, (place_whole(model, batch) for batch in task.validation))

    before = score(original)
    return lambda model: task.metric.lost(before, score(model))


def without_zeros(model: nn.Module, task: Task) -> tuple[nn.Module, float]:
    """Return a copy without residual blocks whose parameters are all zero and without dead units, and the largest
    relative difference of its outputs."""
    silent = [
        block
        for block in find_blocks(model, task.example_inputs)
        if not any(bool(p.any()) for p in model.get_submodule(block.name).parameters())
    ]
    left = remove_blocks(model, silent) if silent else copy_network(model)
    cleared = remove_dead(left, task.example_inputs)
    return cleared.model, cleared.max_relative


def living(hook: Sparsify, alive: Tensor) -> dict[str, tuple[int, int]]:
    """Return how many groups each layer had, and how many of them are alive, by name."""
    names = [name for family in hook.families for name in family.names]
    before, after = Counter(names), Counter(name for name, lives in zip(names, alive.tolist()) if lives)
    return {name: (count, after[name]) for name, count in before.items()}


def group_path(hook: Sparsify, path: Tensor) -> GroupPath:
    """Return what was kept while groups were emptied, as a row of a document."""
    rows = path[path[:, 0] >= 0]
    return GroupPath(
        steps=[int(n) for n in rows[:, 0].tolist()],
        strength=rows[:, 1].tolist(),
        cost=rows[:, 2].tolist(),
        alive={name: [int(n) for n in rows[:, 3 + i].tolist()] for i, name in enumerate(hook.layers())},
    )
