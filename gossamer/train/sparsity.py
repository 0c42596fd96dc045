"""Training that empties groups of elements: after each step the groups shrink, and what becomes zero stays zero.

How strongly they shrink is given, or is controlled so that the network costs what is wanted when the training has got
to a given share of its steps.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from gossamer.errors import BadInput
from gossamer.modules.element_groups import ElementGroups, Values
from gossamer.modules.group_cost import GroupCost
from gossamer.train.loop import TrainingStep

PREFIX = "_gossamer_sparsity_"  # of the buffers
NUMBERS, ALIVE, CHOSEN, PATH, PREVIOUS = "numbers", "alive", "chosen", "path", "previous"
STRENGTH, BEGAN, STAGE, FROZEN, RATE, TRIMMED = range(6)  # places in the numbers
POINTS = 60  # of the path that is kept for the report
CONTROLS, SWING, STIFF = 500, 80.0, 3.0  # of the controller: how often, how far, how hard
FEW = 40  # shrinkings of a stage: fewer, and each is aimed
NEAR = 0.02  # how far the cost may be below the target
EARLY = 0.9  # share of a stage at whose end the chosen groups are to be zero
STAGES = 12  # in which a cost falls whose end only the validation data say


@dataclass(frozen=True, kw_only=True)
class Shrinking:
    """What a rule shrinks in one step.

    Attributes:
        groups: one family of groups.
        parameters: of the model by name, to change in place.
        amounts: the step along the penalty for each group, shape (groups,): learning rate * strength * its weight.
        chosen: the groups that are to become zero, bool (groups,): all of them where no cost is wanted.
        previous: the carriers after the last step, by name, where the rule asks for them.
    """

    groups: ElementGroups
    parameters: Values
    amounts: Tensor
    chosen: Tensor
    previous: Values


class ShrinkRule(Protocol):
    """Makes groups smaller, some of them exactly zero."""

    def __call__(self, step: Shrinking) -> None: ...


@dataclass(frozen=True)
class SparsityTarget:
    """What a training under a sparsity penalty is to reach.

    Attributes:
        what: "strength": nothing; the strength of the penalty is given. "macs", "params": a cost. "drop": the smallest
            network within a drop on validation data.
        value: the strength, the cost or the drop.
    """

    what: Literal["strength", "macs", "params", "drop"]
    value: float


@dataclass(frozen=True, kw_only=True)
class Sparsify:
    """Shrink groups after every step, and keep at zero what has become zero.

    What it must remember lies in buffers of the model, which checkpoints hold: between `attach` and `detach`.

    Attributes:
        families: of groups; each is shrunk in turn.
        rule: shrinks them.
        target: what is to be reached.
        until: share of the training after which nothing shrinks any more.
        cost: of the network as a function of the groups that are alive.
        every: steps from one shrinking to the next.
        by_size: whether the weight of a group is the square root of its number of carriers.
        keeps_previous: whether the rule needs the values of the last step.
        drop: of the model on validation data, in points, where a drop is wanted.
    """

    families: tuple[ElementGroups, ...] = field(repr=False)
    rule: ShrinkRule
    target: SparsityTarget
    until: float
    cost: GroupCost = field(repr=False)
    every: int = 1
    by_size: bool = True
    keeps_previous: bool = False
    drop: Callable[[nn.Module], float] | None = field(default=None, repr=False)

    def attach(self, model: nn.Module) -> None:
        """Register the buffers. Raises BadInput where the target cannot be reached."""
        self._refuse_unreachable()
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        alive = torch.cat([family.norms(parameters) > 0 for family in self.families])
        path = torch.full((POINTS, 3 + len(self.layers())), -1.0)  # finite, as all of a model in training has to be
        numbers = torch.zeros(6, dtype=torch.double)
        numbers[STAGE] = -1
        if self.target.what == "strength":
            numbers[STRENGTH] = self.target.value
        for key, buffer in ((NUMBERS, numbers), (ALIVE, alive), (CHOSEN, alive.clone()), (PATH, path)):
            model.register_buffer(PREFIX + key, buffer)
        for number, name in enumerate(self._carriers() if self.keeps_previous else ()):
            model.register_buffer(f"{PREFIX}{PREVIOUS}{number}", parameters[name].clone())

    @staticmethod
    def detach(model: nn.Module) -> nn.Module:
        """Take the buffers out of the model."""
        for name in [name for name in model._buffers if name.startswith(PREFIX)]:
            delattr(model, name)
        return model

    def layers(self) -> list[str]:
        """The names of the groups, each once."""
        return list(dict.fromkeys(name for family in self.families for name in family.names))

    def last(self, steps: int) -> int:
        """The number of the step after which nothing shrinks any more, in a training of so many."""
        return min(max(round(self.until * steps / self.every), 1) * self.every, steps)

    @torch.no_grad()
    def __call__(self, step: TrainingStep) -> None:
        parameters = {name: p.detach() for name, p in step.model.named_parameters()}
        numbers: Tensor = getattr(step.model, PREFIX + NUMBERS)
        alive: Tensor = getattr(step.model, PREFIX + ALIVE)
        last = self.last(step.steps)
        numbers[RATE] += step.optimizer.param_groups[0]["lr"]
        due = step.number % self.every == 0 or step.number == last
        if step.number <= last and due and not numbers[FROZEN]:
            self._shrink(step, parameters, numbers, alive, last)
            numbers[RATE] = 0.0
        for family, part, _ in self._places(alive):
            family.clear(parameters, part)
        self._remember(step, parameters, alive, numbers)

    def _shrink(self, step: TrainingStep, parameters: Values, numbers: Tensor, alive: Tensor, last: int) -> None:
        ranks = self.ranks(parameters)
        alive &= ranks > 0  # what went with groups of another family
        chosen, goal = alive, None
        if self.target.what != "strength":
            stage, share = self._stage(step.number / last)
            goal, chosen = self._goal(stage), getattr(step.model, PREFIX + CHOSEN)
            if numbers[STAGE] != stage or step.number % self._refresh(step) == 0:
                chosen.copy_(self._to_go(ranks, alive, goal))
                self._control(step, numbers, ranks[chosen], (stage, share), last)
        rate, previous = float(numbers[RATE] * numbers[STRENGTH]), self._previous(step.model)
        for family, _, offset in self._places(alive):
            part = slice(offset, offset + len(family))
            before = {name: parameters[name].clone() for name in family.carried}
            amounts = rate * self._weights(family, parameters)
            self.rule(
                Shrinking(groups=family, parameters=parameters, amounts=amounts, chosen=chosen[part], previous=previous)
            )
            dying = torch.zeros_like(alive)
            dying[part] = alive[part] & (family.norms(parameters) == 0)
            dies = self._allowed(dying, alive, ranks, goal, step)
            family.restore(parameters, before, (dying & ~dies)[part])
            alive &= ~dies
        if goal is not None and self._ends_stage(step.number, last):
            self._end_stage(step, numbers, parameters, ranks, alive, goal)

    def _end_stage(
        self, step: TrainingStep, numbers: Tensor, parameters: Values, ranks: Tensor, alive: Tensor, goal: float
    ) -> None:
        """Clear what is still above the goal, the smallest groups first; look at the drop where one is wanted."""
        before = alive.clone()
        alive &= ~self._allowed(alive & self._free(alive, ranks), alive, ranks, goal, step, enough=True)
        while self.cost(alive) > goal:  # groups too large to come near the goal: the next below it
            left = {
                index: self.cost(_without(alive, index))
                for index in self._free(alive, ranks).nonzero().flatten().tolist()
                if self.cost.emptied(_without(alive, index)) is None
            }
            if not left:
                break
            below = {index: cost for index, cost in left.items() if cost <= goal}
            alive[max(below, key=below.__getitem__) if below else min(left, key=lambda i: float(ranks[i]))] = False
        numbers[TRIMMED] += int((before & ~alive).sum())
        if self.drop is not None:
            for family, part, _ in self._places(alive):
                family.clear(parameters, part)
            numbers[FROZEN] = float(self.drop(step.model) > self.target.value)

    def _control(self, step: TrainingStep, numbers: Tensor, ranks: Tensor, stage: tuple[int, float], last: int) -> None:
        """Steer the strength so that the mean rank of the groups that are to go falls to zero in equal steps.

        stage: its number, and the share of it that is done.
        """
        size = float(ranks.mean()) if len(ranks) else 0.0
        rate, begins = max(float(numbers[RATE]), 1e-12), bool(numbers[STAGE] != stage[0])
        if begins:
            numbers[STAGE], numbers[BEGAN] = stage[0], max(size, 1e-12)
        shrinks = last / self._stages() / self.every
        if self.every > 1 and shrinks < FEW:  # too few to find the strength by looking: by what ranks are too large now
            left = float(numbers[BEGAN]) * (1 - stage[1] / EARLY)
            over = size - left if left > 0 else 2 * float(ranks.max()) if len(ranks) else 0.0
            numbers[STRENGTH] = max(over, 0.0) / rate
            return
        if begins:
            if not numbers[STRENGTH]:
                numbers[STRENGTH] = size / max(shrinks, 1) / rate / 10
            return
        wanted = float(numbers[BEGAN]) * max(1 - stage[1] / EARLY, 0.02)
        off = max(-1.0, min(1.0, STIFF * math.log(max(size, 1e-12) / wanted)))
        numbers[STRENGTH] *= math.exp(min(0.5, SWING * self._refresh(step) / step.steps) * off)

    def _refresh(self, step: TrainingStep) -> int:
        """Steps from one look at the cost to the next."""
        return self.every * max(min(step.steps // CONTROLS, 16) // self.every, 1)

    def ranks(self, parameters: Values) -> Tensor:
        """The norm of every group over its weight, shape (all groups,): the smaller, the sooner it goes."""
        return torch.cat([family.norms(parameters) / self._weights(family, parameters) for family in self.families])

    def _weights(self, family: ElementGroups, parameters: Values) -> Tensor:
        sizes = family.sizes(parameters).clamp_min(1)
        return sizes.sqrt() if self.by_size else torch.ones_like(sizes)

    def _stages(self) -> int:
        return STAGES if self.target.what == "drop" else 1

    def _stage(self, progress: float) -> tuple[int, float]:
        """The stage that a share of the shrinking steps is in, and the share of the stage."""
        at = progress * self._stages()
        stage = min(math.ceil(at) - 1, self._stages() - 1)
        return stage, at - stage

    def _ends_stage(self, number: int, last: int) -> bool:
        return number == last or self._stage(number / last)[0] != self._stage((number + self.every) / last)[0]

    def _goal(self, stage: int) -> float:
        """The cost at the end of a stage."""
        if self.target.what != "drop":
            return self.target.value
        whole, least = self._limits()
        return float(whole * (least / whole) ** ((stage + 1) / self._stages()))

    def _limits(self) -> tuple[float, float]:
        """The cost with all groups, and with as few as there may be."""
        every = torch.ones(sum(len(family) for family in self.families), dtype=torch.bool)
        fewest = ~self._free(every, torch.arange(len(every)).float())
        return self.cost(every), self.cost(fewest)

    def _refuse_unreachable(self) -> None:
        if self.target.what in ("macs", "params"):
            _, least = self._limits()
            if self.target.value < least:
                raise BadInput(
                    f"{self.target.what} = {self.target.value:,.0f} cannot be reached: with one group of each layer "
                    f"left there would still be {least:,.0f}; ask for more, or leave fewer layers out"
                )

    def _free(self, alive: Tensor, ranks: Tensor) -> Tensor:
        """The groups that may go: not the largest of each name, where the layer has no shortcut."""
        free = alive.clone()
        for family, part, offset in self._places(alive):
            if family.whole:
                continue
            for members in _members(family.names):
                live = members[part[members].cpu()]
                if len(live):
                    free[offset + int(live[ranks[offset + live].argmax()])] = False
        return free

    def _to_go(self, ranks: Tensor, alive: Tensor, goal: float) -> Tensor:
        """The groups that must be zero for the goal, the smallest first; those that are zero already among them."""
        free = self._free(alive, ranks) | ~alive
        order = torch.where(free, ranks.where(alive, -1.0), math.inf).argsort(stable=True)[: int(free.sum())]
        low, high = int((~alive).sum()), len(order)
        while low < high:  # the smallest number of groups whose absence costs no more than the goal
            middle = (low + high) // 2
            if self.cost(_without(alive, order[:middle])) <= goal:
                high = middle
            else:
                low = middle + 1
        chosen = torch.zeros_like(alive)
        chosen[order[:low]] = True
        return chosen

    def _allowed(
        self,
        dying: Tensor,
        alive: Tensor,
        ranks: Tensor,
        goal: float | None,
        step: TrainingStep,
        *,
        enough: bool = False,
    ) -> Tensor:
        """Those of the dying groups that may go: the smallest first, as long as the cost stays at the goal, and one of
        each layer stays. enough: only as many as the goal needs."""
        if not bool(dying.any()):
            return dying
        if goal is None:
            self._refuse_empty(alive & ~dying, step)
            return dying
        least = goal * (1 - NEAR)
        whole = dying & self._free(alive, ranks)
        fits = self.cost(alive & ~whole) >= least and self.cost.emptied(alive & ~whole) is None
        if not enough and fits:
            return whole
        gone = torch.zeros_like(dying)
        for index in ranks.where(whole, math.inf).argsort(stable=True)[: int(whole.sum())].tolist():
            if enough and self.cost(alive & ~gone) <= goal:
                break
            gone[index] = True
            left = alive & ~gone
            gone[index] = self.cost(left) >= least and self.cost.emptied(left) is None
        return gone

    def _refuse_empty(self, alive: Tensor, step: TrainingStep) -> None:
        empty = self.cost.emptied(alive)
        if empty is not None:
            raise BadInput(
                f"step {step.number}: the penalty would empty {empty}, which has no shortcut around it; lower the "
                "strength, list its layer under `ignore`, or give a target instead"
            )

    def _places(self, values: Tensor) -> Iterator[tuple[ElementGroups, Tensor, int]]:
        """Every family, its part of the values, and the number of its first group."""
        offset = 0
        for family in self.families:
            yield family, values[offset : offset + len(family)], offset
            offset += len(family)

    def _carriers(self) -> list[str]:
        return list(dict.fromkeys(name for family in self.families for name in family.carried))

    def _previous(self, model: nn.Module) -> Values:
        if not self.keeps_previous:
            return {}
        return {name: getattr(model, f"{PREFIX}{PREVIOUS}{i}") for i, name in enumerate(self._carriers())}

    def _remember(self, step: TrainingStep, parameters: Values, alive: Tensor, numbers: Tensor) -> None:
        """Keep what the rule needs in the next step, and now and then a point of the path."""
        for name, value in self._previous(step.model).items():
            value.copy_(parameters[name])
        point, before = ((step.number * POINTS - i) // step.steps for i in (1, POINTS + 1))
        path: Tensor = getattr(step.model, PREFIX + PATH)
        if point != before or step.number == step.steps:
            counts = dict.fromkeys(self.layers(), 0)
            for family, part, _ in self._places(alive):
                for name, lives in zip(family.names, part.tolist()):
                    counts[name] += lives
            path[point] = torch.tensor([step.number, float(numbers[STRENGTH]), self.cost(alive), *counts.values()])


def _members(names: Sequence[str]) -> list[Tensor]:
    places: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        places.setdefault(name, []).append(index)
    return [torch.tensor(members) for members in places.values()]


def _without(alive: Tensor, gone: Any) -> Tensor:
    left = alive.clone()
    left[gone] = False
    return left


def remembered(model: nn.Module, key: str) -> Any:
    """What `Sparsify` remembers in the model: its numbers, what is alive, or the path."""
    return getattr(model, PREFIX + key)
