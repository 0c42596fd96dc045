"""The targets by name: what writes a file for each, and what runs it here."""

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.constraints.apply import materialize
from gossamer.core.batches import as_inputs, inputs_and_target
from gossamer.core.outputs import tensors
from gossamer.core.progress import Progress, Silent
from gossamer.errors import BadInput, ExportMismatch, GossamerError, own_error, unknown
from gossamer.targets.int8 import write_nearer

Run = Callable[..., tuple[Tensor, ...]]
SAMPLES = 16  # that are compared
CALIBRATION = 64  # samples that ranges are taken from


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime to export for.

    Attributes:
        suffix: of its file.
        module: of this folder, with `write_MODULE(model, inputs, path, samples)` and `open_MODULE(path)`.
        quantized: whether it is int8, and so needs samples to calibrate on.
        least_step: the smallest step of weights that its quantizer takes.
        tolerance: the largest difference of an output that is rounding, over its largest value.
        options: what the writer is told besides.

    Example:
        >>> TARGETS["litert-int8"].suffix, TARGETS["litert-int8"].quantized
        ('.tflite', True)
    """

    suffix: str
    module: str
    quantized: bool = False
    least_step: float = 0.0
    tolerance: float = 1e-3
    options: Mapping[str, Any] = field(default_factory=dict)


TARGETS = {
    "executorch": Target(suffix=".pte", module="executorch"),
    "executorch-int8": Target(
        suffix=".pte", module="executorch", quantized=True, tolerance=float("inf"), least_step=2**-12
    ),
    "litert": Target(suffix=".tflite", module="litert"),
    "litert-int8": Target(suffix=".tflite", module="litert", quantized=True, tolerance=float("inf")),
    "ncnn": Target(suffix=".param", module="ncnn", tolerance=2e-2),  # its weights are stored in 16 bits
    "onnx-binary": Target(suffix=".onnx", module="onnx_binary", tolerance=0.1),  # rounding may turn a sign
    "onnx-w4": Target(suffix=".onnx", module="onnx_weights", tolerance=float("inf"), options={"bits": 4}),
    "onnx-w8": Target(suffix=".onnx", module="onnx_weights", tolerance=0.1, options={"bits": 8}),
    "onnx-web": Target(suffix=".onnx", module="onnx_web"),
}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What a written network gives against the network itself. cosine: mean over samples; top1: the share of samples
    with the same largest output, None where outputs are no rows of numbers."""

    relative: float
    cosine: float
    top1: float | None
    samples: int


def write_target(
    name: str,
    model: nn.Module,
    inputs: Any,
    path: Path | str,
    *,
    calibration: Iterable[Any] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a network for a target, for one sample a call.

    Of a target that is int8, the runtime's own quantizer writes the file twice: from the weights as they are, and from
    weights that gossamer has rounded to the quantizer's grid (`ptq.exported`). The one whose outputs on the calibration
    samples are nearer stays.

    Args:
        name: of the target.
        model: is not touched.
        inputs: example inputs, a tensor or a tuple of them; their first sample gives the shapes.
        path: of the file.
        calibration: batches, for a target that is int8.
        progress: where it says what it does.

    Returns:
        The path.

    Raises:
        MissingExtra: what writes for this target is not installed.
        BadInput: the network cannot be written for it.

    Example:
        >>> import gossamer, tempfile
        >>> net, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> with tempfile.TemporaryDirectory() as place:
        ...     path = write_target("onnx-web", net, task.example_inputs, Path(place) / "net.onnx")
        ...     path.name, path.stat().st_size > 1000
        ('net.onnx', True)
    """
    target, path, inputs = _known(name), Path(path), as_inputs(inputs, "write_target")
    if path.suffix != target.suffix:
        raise BadInput(f"{path}: files of {name} end in {target.suffix}")
    if target.quantized and calibration is None:
        raise BadInput(f"{name} needs data to calibrate on", shell=f"--target {name} needs --data to calibrate on")
    plain = materialize(model).cpu().float().eval()
    one = tuple(x[:1].detach().cpu() for x in inputs)
    samples = list(_samples(calibration, CALIBRATION)) if target.quantized and calibration is not None else None
    writer = importlib.import_module(f"gossamer.targets.{target.module}")
    try:
        write = getattr(writer, f"write_{target.module}")
        with torch.no_grad():
            if samples is None:
                write(plain, one, path, None, **target.options)
            else:
                write_nearer(
                    lambda network, to: write(network, one, to, samples, **target.options),
                    getattr(writer, f"open_{target.module}"),
                    plain,
                    path,
                    samples,
                    least_step=target.least_step,
                    progress=progress or Silent(),
                )
    except GossamerError:
        raise
    except Exception as error:
        raise BadInput(f"the network cannot be written for {name}: {own_error(error)}") from error
    return path


def open_target(name: str, path: Path) -> Run:
    """A function that runs a written network on one sample and gives its outputs.

    Args:
        name: of the target.
        path: of the file.

    Returns:
        A function of the network's inputs, tensors with one sample each, that gives a tuple of tensors.

    Raises:
        MissingExtra: the runtime is not installed.

    Example:
        >>> import tempfile
        >>> from gossamer.modules.binary import BinaryLinear
        >>> net, x = nn.Sequential(BinaryLinear(64, 4), nn.Linear(4, 2)).eval(), torch.rand(1, 64)
        >>> _ = net[0].weight.data.sign_()
        >>> with tempfile.TemporaryDirectory() as place:
        ...     path = write_target("onnx-binary", net, (x,), Path(place) / "net.onnx")
        ...     open_target("onnx-binary", path)(x)[0].shape
        torch.Size([1, 2])
    """
    module = _known(name).module
    run: Run = getattr(importlib.import_module(f"gossamer.targets.{module}"), f"open_{module}")(path)
    return run


@torch.no_grad()
def compare_target(name: str, model: nn.Module, path: Path, loader: Iterable[Any]) -> Difference:
    """Run a written network on the first samples of a loader, and the network itself.

    Args:
        name: of the target.
        model: the network.
        path: of the written one.
        loader: of batches.

    Returns:
        How far they are from one another.

    Raises:
        ExportMismatch: they differ by more than rounding.

    Example:
        >>> import tempfile
        >>> from gossamer.modules.binary import BinaryLinear
        >>> net, x = nn.Sequential(BinaryLinear(64, 4), nn.Linear(4, 2)).eval(), torch.rand(1, 64)
        >>> _ = net[0].weight.data.sign_()
        >>> with tempfile.TemporaryDirectory() as place:
        ...     path = write_target("onnx-binary", net, (x,), Path(place) / "net.onnx")
        ...     compare_target("onnx-binary", net, path, [x]).samples
        1
    """
    run, plain = open_target(name, path), materialize(model).cpu().float().eval()
    relative, cosines, same = 0.0, list[float](), list[bool]()
    rows = True
    for one in _samples(loader, SAMPLES):
        expected, given = list(tensors(plain(*one))), run(*one)
        if len(expected) != len(given):
            raise ExportMismatch(f"{path}: {name} gives {len(given)} outputs, the network {len(expected)}")
        for ours, theirs in zip(expected, _in_order(expected, given, path)):
            scale = max(float(ours.abs().max()), 1e-6)
            relative = max(relative, float((ours - theirs).abs().max()) / scale)
        both = [torch.cat([x.flatten().float() for x in side]) for side in (expected, _in_order(expected, given, path))]
        cosines.append(float(torch.cosine_similarity(both[0], both[1], dim=0)))
        rows = rows and expected[0].ndim == 2 and expected[0].shape[1] > 1
        same.append(rows and bool(expected[0].argmax() == given[0].argmax()))
    if not relative <= _known(name).tolerance:
        raise ExportMismatch(f"{path}: {name} gives other values than the network: {relative:.2g} relative")
    top1 = sum(same) / len(same) if rows else None
    return Difference(relative=relative, cosine=sum(cosines) / len(cosines), top1=top1, samples=len(cosines))


def _known(name: str) -> Target:
    if name not in TARGETS:
        raise unknown("target", name, TARGETS)
    return TARGETS[name]


def _samples(loader: Iterable[Any] | None, most: int) -> Iterable[tuple[Tensor, ...]]:
    """The first samples of a loader, one by one."""
    left = most
    for batch in loader or ():
        inputs, _ = inputs_and_target(batch)
        for i in range(min(left, len(inputs[0]))):
            yield tuple(x[i : i + 1].detach().cpu() for x in inputs)
        left -= len(inputs[0])
        if left <= 0:
            return


def _in_order(expected: list[Tensor], given: tuple[Tensor, ...], path: Path) -> list[Tensor]:
    """Outputs in the shapes of the network's own, which runtimes may give without the dimension of samples."""
    for ours, theirs in zip(expected, given):
        if ours.numel() != theirs.numel():
            raise ExportMismatch(f"{path}: an output has the shape {tuple(theirs.shape)}, expected {tuple(ours.shape)}")
    return [theirs.reshape(ours.shape).float() for ours, theirs in zip(expected, given)]
