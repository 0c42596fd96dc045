"""Fixed-point training with stochastic rounding: train in limited numerical precision (16 bits by default).

What it does: during training, weights, layer inputs and outputs, gradients and updates are rounded to fixed-point
numbers with the given bits before and after the point; sums inside a layer are wide. Afterwards weights stay on that
grid, and activations are ordinary again. The optimizer's momentum stays in float32.
Cost: a training of the network, about twice as slow as in float32: the arithmetic of such hardware is simulated.
When it fails: with few bits after the point and rounding to nearest, updates below half a step are lost.
Equation: step 2^-F, range [-2^(I-1), 2^(I-1) - 2^-F]; x is rounded up with the probability (x - floor(x)) / step.
Source: Gupta et al. 2015, arXiv:1502.02551, sections 3 and 4.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gossamer.constraints.apply import constrain
from gossamer.constraints.base import Constraint
from gossamer.constraints.grid import Grid
from gossamer.constraints.weights import weights_of
from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.methods._base import Settings
from gossamer.methods._training import Trained
from gossamer.train.loop import fit

Rounding = Literal["stochastic", "nearest"]


@dataclass(frozen=True)
class Format:
    """The fixed-point format <I, F>.

    Attributes:
        integer_bits: bits before the point, I; the sign is one of them.
        fraction_bits: bits after the point, F.
        rounding: "stochastic" or "nearest".
    """

    integer_bits: int
    fraction_bits: int
    rounding: Rounding = "stochastic"

    @property
    def step(self) -> float:
        """Distance of neighbouring numbers, 2^-F."""
        return float(2.0**-self.fraction_bits)

    @property
    def high(self) -> int:
        """Largest code; the numbers are step times the integers from -high - 1 to high."""
        return int(2 ** (self.integer_bits + self.fraction_bits - 1)) - 1


def convert(x: Tensor, format: Format) -> Tensor:
    """Round to the numbers of the format; values outside its range saturate.

    Args:
        x: any shape.
        format: with rounding "stochastic", one of the two neighbours is drawn so that the mean is x.

    Returns:
        Same shape.

    Source: Gupta et al. 2015, arXiv:1502.02551, section 3.
    """
    scaled = x / format.step
    codes = scaled.round() if format.rounding == "nearest" else (scaled + torch.rand_like(scaled)).floor()
    return codes.clamp(-format.high - 1, format.high) * format.step


class _Convert(torch.autograd.Function):
    """Rounds the values in the forward pass and the gradients in the backward pass.

    Values that saturate have no gradient: they would be driven further and further from what the layer can give, which
    ends trainings with few bits before the point.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, format: Format) -> Tensor:
        ctx.format = format
        ctx.save_for_backward(x.abs() <= (format.high + 1) * format.step)
        return convert(x, format)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        [within] = ctx.saved_tensors
        return convert(gradients[0], ctx.format) * within, None


def parameters_of(model: nn.Module) -> list[nn.Parameter]:
    """Return weights, biases and parameters of norms, without those of constraints, such as scales."""
    owners = (m for m in model.modules() if not isinstance(m, Constraint))
    return list(dict.fromkeys(p for m in owners for p in m._parameters.values() if p is not None))


@contextmanager
def fixed_point(model: nn.Module, format: Format) -> Iterator[None]:
    """Make every training step of the model a fixed-point one while the context is open.

    Before a forward pass in training mode the parameters are rounded, which rounds the last update. Layers round their
    inputs and outputs, and gradients are rounded.
    """

    def whole(_: nn.Module, inputs: Any) -> None:
        if model.training:
            with torch.no_grad():
                for p in parameters_of(model):
                    p.copy_(convert(p, format))

    def one(x: Any) -> Any:
        real = isinstance(x, Tensor) and x.is_floating_point()
        return _Convert.apply(x, format) if real and model.training else x  # type: ignore[no-untyped-call]

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(one(x) for x in inputs)

    def after(_: nn.Module, inputs: Any, output: Any) -> Any:
        return one(output)

    handles: list[Any] = [model.register_forward_pre_hook(whole)]
    for module in model.modules():
        if isinstance(module, Constraint) or not any(p is not None for p in module._parameters.values()):
            continue
        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    trained: list[Any] = [p for p in parameters_of(model) if p.requires_grad]
    handles += [p.register_hook(lambda g: convert(g, format)) for p in trained]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, kw_only=True)
class FixedPointTraining(Trained):
    """Training in fixed point (Gupta et al. 2015).

    Args:
        integer_bits: bits before the point, with the sign, in [1, 16].
        fraction_bits: bits after the point, in [1, 22].
        rounding: "stochastic", or "nearest" as the control of an experiment.
        layers: names or patterns of the layers whose weights stay on the grid afterwards. The training is in fixed
            point everywhere.
        ignore: names or patterns of layers to leave out of that.
        epochs, lr, weight_decay, clip: the training; see `Trained`.

    Raises:
        BadInput: more than 24 bits in all, or more than one device.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.quantize.FixedPointTraining(integer_bits=2, fraction_bits=6, epochs=1, lr=0.01)
        >>> trained, edits = method(model, task)
        >>> bool((trained.fc1.weight * 64 == (trained.fc1.weight * 64).round()).all())
        True
    """

    stage: ClassVar[int | None] = 60
    saves: ClassVar[tuple[str, ...]] = ("distinct",)
    usual_epochs: ClassVar[int] = 5
    example: ClassVar[Settings] = {"integer_bits": 4, "fraction_bits": 4, "epochs": 1, "lr": 0.01}

    integer_bits: Annotated[int, Range(1, 16)] = 4
    fraction_bits: Annotated[int, Range(1, 22)] = 12
    rounding: Rounding = "stochastic"
    weight_decay: Annotated[float, Range(0, 1)] = 5e-4
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.integer_bits + self.fraction_bits > 24:
            raise BadInput(
                f"{self.name()}: integer_bits + fraction_bits must be at most 24, what float32 holds exactly"
            )

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        if context.devices > 1:
            raise BadInput(f"{self.name()}: trains in one process; call it with devices=1")
        names, model = list(weights_of(model, self.layers, self.ignore)), copy_network(model)
        format = Format(self.integer_bits, self.fraction_bits, self.rounding)
        training = replace(self.training(task), precision="32-true", keep="best")
        checkpoint = context.folder / "fixed_point.ckpt" if context.folder else None
        with fixed_point(model, format):
            fit(model, task, training, context, checkpoint=checkpoint, label="fixed point")
        with torch.no_grad():
            for p in parameters_of(model):
                p.copy_(convert(p, Format(format.integer_bits, format.fraction_bits, "nearest")))
        for name in names:
            most = f"2^{format.integer_bits - 1}"
            after = f"multiples of 2^-{format.fraction_bits} in [-{most}, {most})"
            self.note(context, EditKind.CONSTRAIN, name, before="32-bit floats", after=after)
        return constrain(model, {name: Grid(format.step, -format.high - 1, format.high) for name in names})
