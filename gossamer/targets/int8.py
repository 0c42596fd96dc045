"""int8 files by the quantizer of a runtime, with its own rounding of weights and with gossamer's; the nearer one."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.core.outputs import tensors
from gossamer.core.progress import Progress
from gossamer.errors import BadInput, own_error, require

Inputs = tuple[Tensor, ...]
NAMED = 5  # layers that a message names


def write_nearer(
    write: Callable[[nn.Module, Path], None],
    run: Callable[[Path], Callable[..., Inputs]],
    model: nn.Module,
    path: Path,
    samples: Sequence[Inputs],
    *,
    least_step: float,
    progress: Progress,
) -> None:
    """Write the file whose outputs on the calibration samples are nearest to those of the network.

    Args:
        write: quantizes a network into a file.
        run: opens a file.
        model: the float32 network.
        path: of the file.
        samples: inputs to calibrate on, of one sample each.
        least_step: the smallest step of weights that the quantizer takes.
        progress: told what was chosen, and what keeps the quantizer's rounding.
    """
    expected = [_flat(model(*one)) for one in samples]
    trial = path.with_name(f".trial{path.suffix}")
    errors: dict[str, float] = {}
    try:
        for name, network in _networks(model, samples, least_step, progress):
            try:
                with progress.busy(f"int8, {name}"):
                    write(network, trial)
                    opened = run(trial)
                    errors[name] = _error([_flat(opened(*one)) for one in samples], expected)
            except Exception as error:
                if not errors:  # there is no file yet
                    raise
                progress.say(f"int8, {name}: left out: {own_error(error)}")
                continue
            if errors[name] == min(errors.values()):
                trial.replace(path)
    finally:
        trial.unlink(missing_ok=True)
    told = ", ".join(f"{name} {100 * error:.3g} %" for name, error in errors.items())
    progress.say(f"int8: squared error of the outputs on calibration samples: {told}")


def _networks(
    model: nn.Module, samples: Sequence[Inputs], least_step: float, progress: Progress
) -> Iterator[tuple[str, nn.Module]]:
    """The network as it is, and with rounded weights, by name."""
    yield "nearest rounding", model
    require("onnx")
    from gossamer.ptq.exported import program_of, rounded_program

    try:
        with progress.busy("int8: rounding weights"):
            rounded = rounded_program(program_of(model, samples[0]), samples[0], samples, least_step=least_step)
    except (BadInput, RuntimeError) as error:  # RuntimeError: whatever `torch.export` refuses
        progress.say(f"int8: all weights are rounded to the nearest: {own_error(error)}")
        return
    if rounded.left:
        more = f" and {len(rounded.left) - NAMED} more" if len(rounded.left) > NAMED else ""
        progress.say(f"int8: rounded to the nearest: {', '.join(rounded.left[:NAMED])}{more}")
    if rounded.steps:
        yield "GPTQ", rounded.network


def _flat(outputs: Any) -> Tensor:
    return torch.cat([x.detach().flatten().float() for x in tensors(outputs)])


def _error(given: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Squared error as a fraction of the squares; infinite where it is no number."""
    error = sum(float((x - y).square().sum()) for x, y in zip(given, expected, strict=True))
    error /= max(sum(float(y.square().sum()) for y in expected), 1e-30)
    return error if error < float("inf") else float("inf")
