"""How far to step back from a goal that costs too much: between what was within the budget and what was not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

UNSPENT = 0.1  # points of the budget that may be left, and at most a fifth of it
FAR = 1.4  # times: between cost ratios so far apart there is something to try although the budget is spent
DIVIDES = 1.04  # times: cost ratios that are nearer are not told apart
LEAST, MOST = 0.2, 0.8  # of the way from inside to outside, in ratios: the next attempt makes either side shorter
NEAR = 1.5, 0.1  # times the budget, and points more: what lost no more may come back by training on


@dataclass(frozen=True)
class Point:
    """cost_ratio: cost over what the goal allows; drop: points lost on validation, infinite where no network is so
    cheap."""

    cost_ratio: float
    drop: float


def bracket(points: Sequence[Point], whole: Point, budget: float) -> tuple[Point, Point | None]:
    """The fastest point within the budget, `whole` where there is none, and the slowest one outside that is faster."""
    inside = min([whole, *(p for p in points if within_budget(p.drop, budget))], key=lambda p: p.cost_ratio)
    outside = [p for p in points if not within_budget(p.drop, budget) and p.cost_ratio < inside.cost_ratio]
    return inside, max(outside, key=lambda p: p.cost_ratio) if outside else None


def next_cost_ratio(inside: Point, outside: Point, budget: float) -> float | None:
    """The cost ratio to try next, None where both ends are too near to be divided: the nearer where little of the
    budget is left, since what a network loses is known to a few samples only and depends on its training, too.

    Losses grow about with the square of how far a network is cut, in ratios, so the roots of the losses are divided.
    """
    left = min(UNSPENT, budget / 5)
    if inside.cost_ratio < (FAR if budget - inside.drop <= left else DIVIDES) * outside.cost_ratio:
        return None
    share = 0.5
    if math.isfinite(outside.drop):
        low, high, target = (math.sqrt(max(drop, 0.0)) for drop in (inside.drop, outside.drop, budget - left / 2))
        share = min(max((target - low) / max(high - low, 1e-9), LEAST), MOST)
    return float(inside.cost_ratio ** (1 - share) * outside.cost_ratio**share)


def within_budget(drop: float, budget: float) -> bool:
    """The decision rule, as `Drop.within`."""
    return drop <= budget + 1e-9


def near_miss(drop: float, budget: float) -> bool:
    """Whether a longer recovery may bring the loss within the budget."""
    return not within_budget(drop, budget) and drop <= NEAR[0] * budget + NEAR[1]
