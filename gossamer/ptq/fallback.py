"""A trained network as an int8 `.onnx`, with as little effort as keeps its accuracy."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from gossamer.core.conditions import own_conditions
from gossamer.core.context import Context
from gossamer.core.goal import Goal
from gossamer.core.kinds import checked_arguments
from gossamer.core.metric import Evaluation
from gossamer.core.progress import Progress, Silent
from gossamer.core.record import FallbackStep
from gossamer.core.task import Task, description
from gossamer.errors import BadInput, NoEffect
from gossamer.measure.accuracy import Drop, evaluate, paired_drop
from gossamer.ptq import activation_ranges, dynamic, equalization, qdq, rounding, smoothing
from gossamer.ptq.activation_ranges import ActivationHistogram, Range
from gossamer.ptq.weights import attributes
from gossamer.runtime.onnx_export import export_onnx, write_onnx
from gossamer.runtime.runners import open_runner
from gossamer.runtime.sessions import open_session

# Values of which more than this becomes 0 are no use in 256 steps: scores of attention with -1e38 where a mask is.
MOST_LOST = 0.9
BETWEEN = ("Add", "Mul")
MUCH = 4  # times smaller the error of the outputs must be for sums and products to stay in float32
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
RULES: dict[str, Callable[[ActivationHistogram], Range]] = {
    "min-max": activation_ranges.min_max,
    "least squares": activation_ranges.least_squares,
    "percentile 99.99": activation_ranges.percentile,
}


# Samples that tell which layers int8 costs most: one run for each layer, so that large images cannot be many.
LEAST_RANKED, MOST_RANKED, RANKED_NUMBERS = 16, 128, 16 * 3 * 224 * 224


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """The int8 file and how it came about.

    Attributes:
        path: of the file.
        steps: what was tried, in order.
        chosen: the name of what was taken.
        drop: lost on validation data.
        scores: of the validation samples.
        met: whether the drop is within the budget.

    Example:
        >>> import tempfile, gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> goal, reference = gossamer.Goal(max_drop=50), float32_scores(model, task)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = quantize_int8(model, task, Path(folder), goal=goal, reference=reference)
        >>> found.met, found.chosen in [step.name for step in found.steps]
        (True, True)
    """

    path: Path
    steps: list[FallbackStep]
    chosen: str
    drop: Drop
    scores: Evaluation
    met: bool


@dataclass(frozen=True)
class QuantizedCandidate:
    """All that determines an int8 network."""

    name: str
    network: onnx.ModelProto
    seen: Mapping[str, ActivationHistogram]
    rule: str = "min-max"
    exclude: tuple[str, ...] = ()
    note: str = ""
    steps: Mapping[str, NDArray[np.float32]] | None = None
    dynamic: bool = False

    def build(self) -> onnx.ModelProto:
        if self.dynamic:
            return dynamic.quantize(self.network, exclude=self.exclude, steps=self.steps)
        ranges = {name: RULES[self.rule](one) for name, one in self.seen.items()}
        lost = {name for name, one in self.seen.items() if activation_ranges.lost(one, ranges[name]) > MOST_LOST}
        touching = [node.name for node in self.network.graph.node if lost & {*node.input, *node.output}]
        return qdq.quantize_graph(self.network, ranges, exclude={*self.exclude, *touching}, steps=self.steps)


@checked_arguments
@own_conditions()
def quantize_int8(
    model: nn.Module | Path,
    task: Task,
    folder: Path,
    *,
    goal: Goal,
    reference: Evaluation,
    samples: int = 512,
    context: Context | None = None,
) -> Quantized:
    """Write `folder/model.int8.onnx`: static post-training quantization, no training and no labels for calibration.

    What is tried, until it loses no more than the budget: ranges by min-max, least squares, percentile; even ranges
    across channels; weights rounded by GPTQ, with corrected biases; the layers measured to be the worst left in
    float32, 1, 2, 4, ... of them. If none is within the budget, the best one is written.

    Networks that are mostly products by matrices (transformers) begin with ranges that ONNX Runtime takes while it
    runs, and tables of embeddings in int8; then even ranges across channels (SmoothQuant), GPTQ and float32 layers as
    above.

    Args:
        model: a module, or the path of its float32 `.onnx`.
        task: its calibration data, and validation data and metric to judge by.
        folder: of the file.
        goal: `max_drop` is what may be lost on validation data; judged on `runtime` ("onnxruntime" or "openvino"), with
            `threads`.
        reference: what the float32 network gives of every validation sample (`float32_scores`).
        samples: how many of the calibration data are looked at, batch by batch.
        context: where it says what it does.

    Returns:
        The file, and what was tried.

    Raises:
        BadInput: another runtime, or no calibration data.

    Example:
        >>> import tempfile, gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> goal, reference = gossamer.Goal(max_drop=50), float32_scores(model, task)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = quantize_int8(model, task, Path(folder), goal=goal, reference=reference)
        ...     found.path.name, found.drop.within(50)
        ('model.int8.onnx', True)
    """
    if goal.runtime not in ("onnxruntime", "openvino"):
        raise BadInput(f"int8 runs on onnxruntime or openvino, not on {goal.runtime!r}")
    context = context or Context()
    folder = Path(folder)
    path, trial = folder / "model.int8.onnx", folder / ".trial.int8.onnx"
    float_path = model if isinstance(model, Path) else _exported(model, task, folder)
    sequence = FallbackSequence(
        onnx.load(float_path),
        task,
        folder,
        threads=goal.threads,
        samples=samples,
        dynamic_ranges=goal.runtime == "onnxruntime",  # OpenVINO runs them slower than float32
        progress=context.progress,
    )
    steps: list[FallbackStep] = []
    best: tuple[Drop, Evaluation] | None = None
    try:
        candidates = sequence.candidates()
        while (candidate := _next(candidates, context.progress)) is not None:
            write_onnx(candidate.build(), trial)
            runner = open_runner(goal.runtime, trial, threads=goal.threads, precision="int8")
            with context.progress.busy(f"{task.metric.name} of int8 {candidate.name}"):
                scores = evaluate(runner, task)
            drop = paired_drop(reference, scores)
            accepted = drop.within(goal.max_drop)
            steps.append(
                FallbackStep(
                    name=candidate.name, score=scores.shown, drop=drop.points, accepted=accepted, note=candidate.note
                )
            )
            context.progress.say(f"int8 {candidate.name}: {scores}, drop {drop.points:+.2f} points")
            if best is None or accepted or sequence.improves(candidate, best[1], scores):
                best = drop, scores
                sequence.best = candidate
                trial.replace(path)
            if accepted:
                break
    finally:
        trial.unlink(missing_ok=True)
        if not isinstance(model, Path):
            float_path.unlink(missing_ok=True)
    assert best is not None
    drop, scores = best
    met = drop.within(goal.max_drop)
    return Quantized(path=path, steps=steps, chosen=sequence.best.name, drop=drop, scores=scores, met=met)


def _exported(model: nn.Module, task: Task, folder: Path) -> Path:
    return export_onnx(model, task.example_inputs, folder / ".float.onnx", about=description(task))


def _next(candidates: Iterator[QuantizedCandidate], progress: Progress) -> QuantizedCandidate | None:
    with progress.busy("int8: preparing the next setting"):
        return next(candidates, None)


class FallbackSequence:
    """What to try next. `best`, the best candidate so far, is told by whoever judges; each candidate builds on it."""

    def __init__(
        self,
        network: onnx.ModelProto,
        task: Task,
        folder: Path,
        *,
        threads: int,
        samples: int,
        dynamic_ranges: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.network, self.loader, self.folder = network, task.calibration, folder
        self.threads, self.samples, self.progress = threads, samples, progress or Silent()
        self.dynamic = dynamic_ranges and dynamic.is_mostly_products(network)
        numbers = max(1, sum(x[:1].numel() for x in task.example_inputs if isinstance(x, Tensor) and x.ndim))
        self.ranked = max(LEAST_RANKED, min(MOST_RANKED, RANKED_NUMBERS // numbers))
        self.best = QuantizedCandidate("", network, {})

    def improves(self, candidate: QuantizedCandidate, before: Evaluation, after: Evaluation) -> bool:
        """Whether a candidate that scored `after` is better than the best so far, which scored `before`.

        Where the price is speed, by more than chance explains (95 %). Where chance explains the difference, the outputs
        on calibration samples say which is nearer to the float32 network: they are known far more exactly than scores.
        """
        change = paired_drop(before, after)
        if set(candidate.exclude) - set(self.best.exclude):
            return change.high < 0
        if change.low <= 0 <= change.high:
            return self.output_error(candidate.build()) < self.output_error(self.best.build())
        return change.points < 0

    def candidates(self) -> Iterator[QuantizedCandidate]:
        """Candidates from the simplest to the costliest."""
        if not any(node.op_type in WEIGHTED for node in self.network.graph.node):
            raise NoEffect(f"int8: the network has no layer with weights ({', '.join(WEIGHTED)})")
        if self.dynamic:
            yield QuantizedCandidate("dynamic ranges", self.network, {}, dynamic=True)
            yield self.smoothed(self.best)
        else:
            seen = self.observe(self.network)
            apart = self.between_layers(seen)
            note = "sums and products between layers in float32" if apart else ""
            for name in RULES:
                yield QuantizedCandidate(name, self.network, seen, name, exclude=apart, note=note)
            yield from self.equalized(apart)
        if rounding.rounded_layers(self.network):
            yield self.rounded(self.best)
        yield from self.float_layers(self.best)

    def equalized(self, exclude: tuple[str, ...]) -> Iterator[QuantizedCandidate]:
        """Even ranges across channels, where there are channels that can be scaled."""
        names = equalization.channel_values(self.network)
        if names:
            largest = activation_ranges.channel_ranges(
                self.network, names, self.loader, self.folder, threads=self.threads, samples=self.samples
            )
            network = equalization.equalize(self.network, largest)
            base = QuantizedCandidate("channel equalization", network, self.observe(network), exclude=exclude)
            yield self.with_best_rule(base)

    def between_layers(self, seen: Mapping[str, ActivationHistogram]) -> tuple[str, ...]:
        """Names of the sums and products between layers, where int8 costs most by them; none where it does not.

        Norms and activations that an exporter wrote as many operations have squares and cubes among their values, and
        transformers a few large channels.
        """
        others = tuple(node.name for node in self.network.graph.node if node.op_type in BETWEEN)
        whole = QuantizedCandidate("min-max", self.network, seen)
        alone = replace(whole, exclude=others)
        if not others or self.output_error(whole.build()) < MUCH * self.output_error(alone.build()):
            return ()
        return others

    def smoothed(self, base: QuantizedCandidate) -> QuantizedCandidate:
        """With even ranges of what goes into products by matrices, as even as leaves the outputs nearest."""
        names = list(smoothing.product_inputs(base.network))
        largest = activation_ranges.channel_ranges(
            base.network, names, self.loader, self.folder, threads=self.threads, samples=self.samples, axis=-1
        )
        candidates = [
            replace(
                base, name="SmoothQuant", network=smoothing.even_inputs(base.network, largest, s), note=f"alpha {s}"
            )
            for s in smoothing.STRENGTHS
        ]
        return min(candidates, key=lambda one: self.output_error(one.build()))

    def observe(self, network: onnx.ModelProto) -> dict[str, ActivationHistogram]:
        return activation_ranges.observe(network, self.loader, self.folder, threads=self.threads, samples=self.samples)

    def with_best_rule(self, base: QuantizedCandidate) -> QuantizedCandidate:
        """With the rule for ranges whose outputs are nearest: what was best before a change need not be so after it."""
        candidates = [replace(base, rule=rule, note=f"{base.note}ranges: {rule}") for rule in RULES]
        return min(candidates, key=lambda one: self.output_error(one.build()))

    def rounded(self, base: QuantizedCandidate) -> QuantizedCandidate:
        """The best so far with weights rounded so that outputs change least, and corrected biases."""
        network, steps = rounding.round_weights(
            base.network, self.loader, self.folder, threads=self.threads, samples=self.samples, progress=self.progress
        )
        note = f"on top of: {base.name}, "
        found = replace(base, name="GPTQ", network=network, steps=steps, note=note)
        return found if base.dynamic else self.with_best_rule(found)

    def float_layers(self, base: QuantizedCandidate) -> Iterator[QuantizedCandidate]:
        """The best so far with the 1, 2, 4, ... worst layers in float32, at most half of them."""
        errors = self.layer_errors(base)
        worst = sorted(errors, key=lambda name: -errors[name])
        count = 1
        while count <= max(1, len(worst) // 2):
            chosen = tuple(worst[:count])
            name, exclude = f"float layers: {count}", (*base.exclude, *chosen)
            yield replace(base, name=name, exclude=exclude, note=", ".join(chosen))
            count *= 2

    def layer_errors(self, base: QuantizedCandidate) -> dict[str, float]:
        """Error of the network's outputs when one weighted node alone is in int8, by node."""
        layers = rounding.rounded_layers(base.network)
        names = [node.name for node in layers] if base.dynamic else list(rounded_weights(base.build()))
        errors = {}
        for name in self.progress.bar(names, label="int8: what each layer costs"):
            others = [node.name for node in base.network.graph.node if node.name != name]
            errors[name] = self.output_error(replace(base, exclude=tuple(others)).build())
        return errors

    def output_error(self, network: onnx.ModelProto) -> float:
        """Squared error of the outputs on some calibration samples, as a fraction of their squares."""
        error = 0.0
        for exact, given in zip(self.exact_outputs, self.outputs(network), strict=True):
            # Shapes that hang on the data (boxes that were kept) differ where decisions do.
            same = exact.shape == given.shape
            error += float(((exact - given) ** 2).sum() / max((exact**2).sum(), 1e-30)) if same else 1.0
        return error

    @cached_property
    def exact_outputs(self) -> list[NDArray[np.float64]]:
        return self.outputs(self.network)

    def outputs(self, network: onnx.ModelProto) -> list[NDArray[np.float64]]:
        """All outputs on some calibration samples, fewer where these are large."""
        path = self.folder / ".layer.onnx"
        path.write_bytes(network.SerializeToString())
        try:
            session = open_session(path, threads=self.threads)
        finally:
            path.unlink(missing_ok=True)
        chunks = activation_ranges.feeds(session, self.loader, self.ranked)
        return [np.asarray(value, np.float64) for feed in chunks for value in session.run(None, feed)]


def rounded_weights(quantized: onnx.ModelProto) -> dict[str, Any]:
    """The weights that an int8 network really has, as float arrays by node name."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    made = {node.output[0]: node for node in quantized.graph.node if node.op_type == "DequantizeLinear"}
    weights = {}
    for node in quantized.graph.node:
        source = made.get(node.input[1]) if node.op_type in WEIGHTED else None
        if source is None or source.input[0] not in arrays:
            continue
        codes, scale = arrays[source.input[0]], arrays[source.input[1]]
        axis = attributes(source).get("axis", 0)
        shape = [-1 if i == axis else 1 for i in range(codes.ndim)] if scale.ndim else []
        weights[node.name] = codes.astype(np.float32) * scale.reshape(shape)
    return weights


def float32_scores(model: nn.Module, task: Task) -> Evaluation:
    """What the float32 module gives of every validation sample, in eval mode.

    Args:
        model: comes back in the mode that it was in.
        task: data and metric.

    Returns:
        The reference of `quantize_int8`.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> 0 <= float32_scores(model, task).value <= 1
        True
    """
    training = model.training
    model.eval()
    try:
        return evaluate(model, task)
    finally:
        model.train(training)
