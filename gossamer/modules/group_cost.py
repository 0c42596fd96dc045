"""What a network costs as a function of the groups of its elements that are not zero."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gossamer.core.layer_names import layer_name
from gossamer.modules.cost import layer_costs
from gossamer.modules.element_groups import ElementGroups, spread


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupCost:
    """What a network costs while groups of its elements are zero.

    Args:
        prices: of one element of each parameter, by name: multiply-adds of one sample, or 1.
        shapes: of the parameters.
        families: the groups, whose numbers follow one another.
        implied: groups that are zero where all their carriers are, which costs less, too: channels that nothing reads.
        fixed: what costs nothing less.
    """

    prices: Mapping[str, float]
    shapes: Mapping[str, torch.Size]
    families: tuple[ElementGroups, ...]
    implied: tuple[ElementGroups, ...]
    fixed: float

    def __call__(self, alive: Tensor) -> float:
        """The cost where only these groups are alive: bool, over all families, shape (groups,)."""
        priced = self.densities(alive, self.prices)
        whole = self.shapes
        return self.fixed + sum(self.prices[name] * whole[name].numel() * share for name, share in priced.items())

    def densities(self, alive: Tensor, names: Iterable[str], *, shortcuts: bool = True) -> dict[str, float]:
        """The share of the elements of these parameters that are not zero. shortcuts: whether what is zero with its
        whole block counts as zero."""
        parts = torch.split(alive.double().cpu(), [len(family) for family in self.families])
        known = list(zip(self.families, parts))
        for family in self.implied:
            left = {name: _any_left(_factors(known, name), family.carried[name]) for name in family.carried}
            known.append((family, (family.sums(left) > 0).double()))
        found = {}
        for name in names:
            blocks = [(family, part) for family, part in known if family.whole and name in family.cleared]
            gone = not shortcuts and any(not bool(part[family.cleared[name][0]].any()) for family, part in blocks)
            found[name] = 1.0 if gone else math.prod(float(factor.mean()) for factor in _factors(known, name))
        return found

    def emptied(self, alive: Tensor) -> str | None:
        """The first parameter of which nothing is left, without a block around it that is gone as a whole; None where
        there is none."""
        touched = dict.fromkeys(name for family in self.families for name in family.cleared)
        empty = self.densities(alive, touched, shortcuts=False)
        return next((name for name, share in empty.items() if not share), None)


def _factors(known: Iterable[tuple[ElementGroups, Tensor]], name: str) -> list[Tensor]:
    """Tensors whose product is 1 where an element of a parameter is not zero, each varying along other dimensions than
    the rest: the mean of the product is the product of the means."""
    factors: list[Tensor] = []
    for family, part in known:
        for ids in family.cleared.get(name, ()):
            new = spread([ids], part, 1.0)
            for other in [one for one in factors if _varies(one) & _varies(new)]:
                factors = [one for one in factors if one is not other]
                new = new * other
            factors.append(new)
    return factors


def _varies(factor: Tensor) -> set[int]:
    return {d for d, size in enumerate(factor.shape) if size > 1}


def _any_left(factors: Sequence[Tensor], arrays: Sequence[Tensor]) -> Tensor:
    """What is not zero of a parameter, for groups with these numbers: 0 or more, with size 1 where nothing varies."""
    dims = set().union(*(_varies(ids) for ids in arrays))
    left = torch.ones([1] * arrays[0].ndim, dtype=torch.double)
    for factor in factors:
        left = left * (factor if _varies(factor) & dims else factor.max())
    return left


def group_cost(
    model: nn.Module,
    example_inputs: Any,
    families: Sequence[ElementGroups],
    what: Literal["macs", "params"],
    implied: Sequence[ElementGroups] = (),
) -> GroupCost:
    """The multiply-adds or parameters of a network as a function of the groups that are alive.

    Args:
        model: without constraints.
        example_inputs: what it is run on.
        families: of its groups.
        what: is counted.
        implied: further groups, which go when all their carriers are zero.

    Example:
        >>> from gossamer.modules.element_groups import channel_groups
        >>> model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
        >>> cost = group_cost(model, torch.zeros(1, 4), [channel_groups(model, torch.zeros(1, 4))], "macs")
        >>> cost(torch.tensor([True, True, False, False, False, False]))
        12.0
    """
    touched = {name for family in (*families, *implied) for name in family.cleared}
    shapes = {name: p.shape for name, p in model.named_parameters()}
    if what == "params":
        prices, total = dict.fromkeys(sorted(touched), 1.0), float(sum(shape.numel() for shape in shapes.values()))
    else:
        macs = {row.name: row.macs for row in layer_costs(model, example_inputs)}
        weights = sorted(name for name in touched if len(shapes[name]) > 1 and layer_name(name) in macs)
        prices = {name: macs[layer_name(name)] / shapes[name].numel() for name in weights}
        total = float(sum(macs.values()))
    fixed = total - sum(price * shapes[name].numel() for name, price in prices.items())
    return GroupCost(prices=prices, shapes=shapes, families=tuple(families), implied=tuple(implied), fixed=fixed)
