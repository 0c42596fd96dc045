"""The targets by name: what writes a file for each, and what runs it here."""

import importlib
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.constraints.apply import materialize
from gossamer.core.batches import inputs_and_target
from gossamer.core.outputs import tensors
from gossamer.errors import BadInput, ExportMismatch, GossamerError, own_error, unknown
from gossamer.ptq.even_network import even_network

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
        tolerance: the largest difference of an output that is rounding, over its largest value.

    Example:
        >>> TARGETS["litert-int8"].suffix, TARGETS["litert-int8"].quantized
        ('.tflite', True)
    """

    suffix: str
    module: str
    quantized: bool = False
    tolerance: float = 1e-3


TARGETS = {
    "executorch": Target(suffix=".pte", module="executorch"),
    "executorch-int8": Target(suffix=".pte", module="executorch", quantized=True, tolerance=float("inf")),
    "litert": Target(suffix=".tflite", module="litert"),
    "litert-int8": Target(suffix=".tflite", module="litert", quantized=True, tolerance=float("inf")),
    "ncnn": Target(suffix=".param", module="ncnn", tolerance=2e-2),  # its weights are stored in 16 bits
    "onnx-binary": Target(suffix=".onnx", module="onnx_binary", tolerance=0.1),  # rounding may turn a sign
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
    name: str, model: nn.Module, inputs: tuple[Any, ...], path: Path, *, calibration: Iterable[Any] | None = None
) -> Path:
    """Write a network for a target, for one sample a call.

    Args:
        name: of the target.
        model: is not touched.
        inputs: example inputs; their first sample gives the shapes.
        path: of the file.
        calibration: batches, for a target that is int8. The network is quantized as it is and with even ranges across
            channels (`gossamer.ptq.even_network`); the file that is nearer to it on these samples is kept.

    Returns:
        The path.

    Raises:
        MissingExtra: what writes for this target is not installed.
        BadInput: the network cannot be written for it.

    Example:
        >>> import gossamer
        >>> net, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> with tempfile.TemporaryDirectory() as place:
        ...     path = write_target("onnx-web", net, task.example_inputs, Path(place) / "net.onnx")
        ...     path.name, path.stat().st_size > 1000
        ('net.onnx', True)
    """
    target = _known(name)
    if path.suffix != target.suffix:
        raise BadInput(f"{path}: files of {name} end in {target.suffix}")
    if target.quantized and calibration is None:
        raise BadInput(f"{name} needs data to calibrate on", shell=f"--target {name} needs --data to calibrate on")
    plain = materialize(model).cpu().float().eval()
    one = tuple(x[:1].detach().cpu() for x in inputs)
    samples = list(_samples(calibration, CALIBRATION)) if target.quantized and calibration is not None else None
    writer = importlib.import_module(f"gossamer.targets.{target.module}")
    writes = getattr(writer, f"write_{target.module}")

    def write(network: nn.Module, file: Path) -> None:
        writes(network, one, file, samples)

    try:
        with torch.no_grad():
            if samples is None:
                write(plain, path)
            else:
                _write_nearest(name, _alike(plain, samples), path, samples, write)
    except GossamerError:
        raise
    except Exception as error:
        raise BadInput(f"the network cannot be written for {name}: {own_error(error)}") from error
    return path


def _alike(plain: nn.Module, samples: Sequence[tuple[Tensor, ...]]) -> list[nn.Module]:
    """The network, and the same with even ranges across channels where it can be written so."""
    try:
        even = even_network(plain, samples)
    except GossamerError:  # it has no graph of ONNX; the target may still have one
        even = None
    return [plain, *([even] if even is not None else [])]


def _write_nearest(
    name: str,
    networks: Sequence[nn.Module],
    path: Path,
    samples: Sequence[tuple[Tensor, ...]],
    write: Callable[[nn.Module, Path], None],
) -> None:
    """Write all, and keep the file whose outputs are nearest to those of the first on the samples."""
    if len(networks) == 1:
        write(networks[0], path)
        return
    errors = list[float]()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        files = [Path(folder) / f"{number}{path.suffix}" for number in range(len(networks))]
        for network, file in zip(networks, files):
            write(network, file)
            errors.append(_error(open_target(name, file), networks[0], samples))
        files[errors.index(min(errors))].replace(path)


def _error(run: Run, network: nn.Module, samples: Sequence[tuple[Tensor, ...]]) -> float:
    """Sum of squared differences over that of the squared outputs."""
    difference = size = 0.0
    for one in samples:
        for ours, theirs in zip(tensors(network(*one)), run(*one), strict=True):
            difference += float((ours.flatten().float() - theirs.flatten().float()).square().sum())
            size += float(ours.float().square().sum())
    return difference / max(size, 1e-30)


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
