"""What each scheme could save on a network, measured before any training."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gossamer.constraints.apply import materialize
from gossamer.constraints.grid import PerTensor
from gossamer.core.context import Context
from gossamer.core.copies import parameter_count
from gossamer.core.goal import FROM_MODULES, Goal
from gossamer.core.kinds import checked_arguments
from gossamer.core.progress import Progress, Silent
from gossamer.core.task import Task
from gossamer.errors import BadInput, MissingExtra
from gossamer.methods._base import Method
from gossamer.methods.lowrank._common import LowRank
from gossamer.methods.prune.channels import ChannelPruning
from gossamer.methods.quantize.uniform import UniformQuantization
from gossamer.methods.restructure.blocks import BlockRemoval
from gossamer.modules.blocks import removable
from gossamer.ptq.isolated_layers import isolated_costs
from gossamer.search.axes import apply_steps
from gossamer.search.binary_advice import binarized, bits_of, times_on_bits
from gossamer.search.checkpoint_store import CheckpointStore
from gossamer.search.cost_model import CostModel
from gossamer.search.network_rewrites import kinds, taken
from gossamer.search.replacements import (
    FoundReplacements,
    Replacement,
    compared,
    find_swaps,
    layer_kind,
    reasons_to_leave,
    together,
)

HELPS = 1.05  # times cheaper; less is nothing
UNITS = {"time": "time", "size": "bytes", "params": "parameters", "macs": "multiply-adds"}


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One scheme on one network.

    Attributes:
        scheme: int8, narrower layers, fewer blocks, ...
        times: how many times cheaper the whole network gets in `unit`, measured before any training: what it costs in
            accuracy is not in it.
        unit: "time", "bytes", "parameters" or "multiply-adds".
        tried: what was measured.
        reason: why it helps, or does not.
        layers: those that it changes.
        left: why layers keep what they have.

    Example:
        >>> one = Advice(scheme="int8", times=2.5, unit="time", tried="all layers", reason="less to load")
        >>> one.helps
        True
    """

    scheme: str
    times: float
    unit: str
    tried: str
    reason: str
    layers: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)

    @property
    def helps(self) -> bool:
        """Whether it saves anything worth the name."""
        return self.times >= HELPS


@checked_arguments
def advise(
    model: nn.Module, example_inputs: tuple[Any, ...], goal: Goal, *, progress: Progress | None = None
) -> list[Advice]:
    """What the schemes could save in the unit of the goal's first gain, the most first; each alone, at one ratio.

    Time is that of the whole network on the goal's runtime, against float32; bytes are those of parameters and codes.
    Single layers are looked at in `search.replacement_search`. Weights need not be trained.

    Args:
        model: the network.
        example_inputs: its positional inputs, as a batch.
        goal: its first gain is the unit.
        progress: where it says what it measures.

    Returns:
        One advice for each scheme.

    Example:
        >>> from gossamer import Goal
        >>> from gossamer.data import tiny_network, tiny_task
        >>> found = advise(tiny_network(), tiny_task().example_inputs, Goal(params=1))
        >>> found[0].times >= found[-1].times
        True
    """
    with tempfile.TemporaryDirectory() as folder:
        return Adviser(model, example_inputs, goal, Path(folder), progress or Silent()).advice()


class Adviser:
    """The schemes, one after the other."""

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...], goal: Goal, folder: Path, progress: Progress) -> None:
        self.model, self.inputs, self.progress, self.folder = materialize(model).eval(), inputs, progress, folder
        gain = next(iter(goal.gains))
        self.unit = "time" if goal.time_gains else "size" if gain in goal.size_gains else gain
        # Bytes follow the parameters, whatever codes them.
        self.goal = goal if goal.shape_gains else replace(goal, compression_ratio=None, file_bytes=None, params=1)
        sample: Any = inputs if len(inputs) != 1 else inputs[0]
        batch = (sample, None) if isinstance(sample, tuple) else sample
        self.task = Task(
            name="advice", train=[batch], validation=[batch], test=[batch], calibration=[batch], example_inputs=inputs
        )
        self.cost_model = self._make_cost_model(int8=False)
        self.whole = self.cost_model("original", lambda: self.model)
        self.costs = self.cost_model.layer_costs()
        self.where = where(self.model, self.costs, UNITS[self.unit])

    def advice(self) -> list[Advice]:
        """All of it, the best first."""
        found: list[Advice] = []
        parts: list[tuple[str, Callable[[], list[Advice]]]] = [
            ("coded weights" if self.unit == "size" else "int8", self._int8),
            ("binary layers", lambda: self._binary(found)),
            ("narrower layers", self._narrower),
            ("fewer blocks", self._fewer_blocks),
            ("rewrites", self._rewrites),
            ("single layers", self._layers),
        ]
        for name, part in parts:
            with self.progress.busy(f"measuring {name}"):
                found += part()
        return sorted(found, key=lambda row: -row.times)

    def _make_cost_model(self, *, int8: bool) -> CostModel:
        return CostModel(self.model, self.task, self.goal, CheckpointStore(None, ""), self.folder, int8=int8)

    def _row(self, scheme: str, times: float, tried: str, reason: str, **more: Any) -> Advice:
        return Advice(scheme=scheme, times=times, unit=UNITS[self.unit], tried=tried, reason=reason, **more)

    def _times(self, steps: Sequence[Method]) -> float:
        """How many times cheaper the whole network is after the steps."""
        shapes = [step.shape_only() for step in steps]
        estimate = self.cost_model(repr(steps), lambda: apply_steps(self.model, shapes, self.task, Context()))
        if estimate.speedup is not None:
            return estimate.speedup
        return self.whole.macs / estimate.macs if self.unit == "macs" else self.whole.params / estimate.params

    def _int8(self) -> list[Advice]:
        if self.unit == "size":
            return [self._coded(bits) for bits in (8, 4)]
        if self.unit != "time":
            return []
        if self.goal.runtime in FROM_MODULES:
            return [self._row("int8", 1.0, "none", f"{self.goal.runtime} runs float32 here")]
        times = self._make_cost_model(int8=True)("int8", lambda: self.model).speedup or 1.0
        reason = f"8-bit kernels for all layers; {self.where}"
        if times < HELPS:
            reason = f"{self.goal.runtime} has no faster 8-bit kernels for this network here"
        return [self._row("int8", times, "the int8 fallback sequence", reason)]

    def _binary(self, found: Sequence[Advice]) -> list[Advice]:
        """Signs for inputs and weights; found: the advice for int8."""
        if self.unit not in ("time", "size"):
            return []
        made = binarized(self.model)
        tried = f"signs for inputs and weights of {len(made.layers)} layers"
        if not made.layers:
            why = "; ".join(list(dict.fromkeys(made.left.values()))[:2]) or "no layer has weights"
            return [self._row("binary layers", 1.0, "none", why, left=made.left)]
        training = "it needs training from the start, and loses more than int8"
        if self.unit == "size":
            times = 32 * parameter_count(self.model) / bits_of(made.model, made.layers)
            reason = f"one bit for a weight; {training}"
        else:
            try:
                times = times_on_bits(self.cost_model.reference_source(), made.model, self.cost_model.inputs, self.goal)
            except (BadInput, MissingExtra) as error:
                return [self._row("binary layers", 1.0, tried, str(error), left=made.left)]
            int8 = max((row.times for row in found if row.scheme == "int8"), default=1.0)
            reason = f"on the runtime `binary`; {training}"
            if int8 >= times:
                reason = f"int8 on {self.goal.runtime} is faster here: {int8:.2f} times; {training}"
        return [self._row("binary layers", times, tried, reason, layers=made.layers, left=made.left)]

    def _coded(self, bits: int) -> Advice:
        """Bytes by the order-0 entropy of the codes, which the coder of the compact file comes near to."""
        step = UniformQuantization(bits=bits, granularity=PerTensor())
        coded = list(materialize(step(self.model).model).parameters())
        total = sum(entropy_bits(p) if p.dim() > 1 else 8 * p.numel() for p in coded)
        times = 32 * sum(p.numel() for p in coded) / total
        reason = f"{32 / bits:.0f} times by {bits} bits, the rest by coding frequent values short; {self.where}"
        return self._row(f"sharing and coding, {bits} bits", times, f"{step.name()}: {bits} bits", reason)

    def _narrower(self) -> list[Advice]:
        step = ChannelPruning(sparsity=0.5, round_to=8)
        return [self._whole("narrower layers", step, "half the channels, in multiples of 8")]

    def _whole(self, scheme: str, step: Method, tried: str, layers: tuple[str, ...] = ()) -> Advice:
        try:
            times = self._times((step,))
        except BadInput as error:
            return self._row(scheme, 1.0, tried, str(error))
        worth = self.where if times >= HELPS else f"measured, it saves nothing worth the name; {self.where}"
        return self._row(scheme, times, f"{step.name()}: {tried}", worth, layers=layers)

    def _fewer_blocks(self) -> list[Advice]:
        blocks = [block.name for block in removable(self.model, self.inputs)]
        if not blocks:
            return [
                self._row(
                    "fewer blocks",
                    1.0,
                    "none",
                    "no residual block, and no convolution whose output has its input's shape",
                )
            ]
        some = tuple(blocks[1::2] or blocks)
        step = BlockRemoval(names=some)
        return [self._whole("fewer blocks", step, f"{len(some)} of {len(blocks)} removable blocks gone", some)]

    def _rewrites(self) -> list[Advice]:
        """Those of the whole network that can be made here and save something, the heaviest of each kind."""
        heaviest = {kind: next(taken(self.model, self.task, forms[::-1]), None) for kind, forms in kinds().items()}
        rows = [self._whole(kind, form.step, form.what) for kind, form in heaviest.items() if form is not None]
        return [row for row in rows if row.helps]

    def _layers(self) -> list[Advice]:
        left = reasons_to_leave(self.model, self.costs)
        names = [name for name, reason in left.items() if not reason]
        table = compared(self.model, names, self.inputs, self._compare) if names else {}
        found = find_swaps(self.model, self.costs, table)
        return [
            self._swaps(found, "low rank", lambda step: isinstance(step, LowRank)),
            self._swaps(found, "cheaper blocks", lambda step: not isinstance(step, LowRank)),
        ]

    def _compare(self, groups: Any, inputs: Any) -> list[list[float]]:
        return isolated_costs(groups, inputs, self.goal, self.folder, int8=False)

    def _swaps(self, found: FoundReplacements, scheme: str, belongs: Callable[[Method], bool]) -> Advice:
        """The cheapest swap of every layer that gains by this scheme."""
        best: dict[str, Replacement] = {}
        for name, swaps in found.swaps.items():
            of_scheme = [swap for swap in swaps if belongs(swap.step)]
            if of_scheme:
                best[name] = min(of_scheme, key=lambda swap: swap.ratio)
        if not best:
            why = list(dict.fromkeys(found.left.values())) or ["it gains on no layer"]
            return self._row(scheme, 1.0, "none", "; ".join(why[:2]), left=found.left)
        steps = together(swap.step for swap in best.values())
        top = max(best.values(), key=lambda swap: swap.saved)
        share = sum(self.costs[name] for name in best) / max(sum(self.costs.values()), 1e-12)
        reason = (
            f"gains in {len(best)} of {len(self.costs)} layers, {100 * share:.0f} % of the {UNITS[self.unit]}; most: "
            f"{top.layer} ({layer_kind(self.model.get_submodule(top.layer))}), alone {1 / top.ratio:.1f} times cheaper"
        )
        tried = ", ".join(dict.fromkeys(step.name() for step in steps))
        return self._row(scheme, self._times(steps), tried, reason, layers=tuple(best), left=found.left)


def entropy_bits(values: torch.Tensor) -> float:
    """Of all values together, if each stood for itself."""
    counts = torch.unique(values.detach(), return_counts=True)[1].double()
    return float(-(counts * (counts / counts.sum()).log2()).sum())


def where(model: nn.Module, costs: Mapping[str, float], unit: str) -> str:
    """Where a cost lies, in words: one layer if it has half of it, else the kind and stage that have most."""
    modules, total = dict(model.named_modules()), sum(costs.values())
    if not total:
        return f"no layer has {unit}"
    name, most = max(costs.items(), key=lambda pair: pair[1])
    if most >= total / 2 and name in modules:
        return f"{100 * most / total:.0f} % of the {unit} is in {name} ({layer_kind(modules[name])})"
    kinds, stages = dict[str, float](), dict[tuple[str, str], float]()
    for name, cost in costs.items():
        kind = layer_kind(modules[name]) if name in modules else "operations without weights"
        stage = name.split(".")[0]
        kinds[kind] = kinds.get(kind, 0.0) + cost
        stages[kind, stage] = stages.get((kind, stage), 0.0) + cost
    kind, most = max(kinds.items(), key=lambda pair: pair[1])
    (_, stage), part = max(((k, v) for k, v in stages.items() if k[0] == kind), key=lambda pair: pair[1])
    spread = sum(k == kind for k, _ in stages) > 1
    inside = f", {100 * part / total:.0f} % in those of {stage}" if spread else ""
    many = kind if kind.endswith("s") else f"{kind}s"
    return f"{100 * most / total:.0f} % of the {unit} is in {many}{inside}"
