"""The base of the methods that replace trained layers by cheaper blocks, and what they share."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.calibration.block_reconstruction import BlockErrors, FittedBlock, reconstruct_blocks
from gossamer.calibration.inputs import layer_inputs
from gossamer.calibration.moments import call_order
from gossamer.constraints.apply import refuse_constrained
from gossamer.constraints.weights import weights_of
from gossamer.core.context import Context
from gossamer.core.edit_details import SwapRecord
from gossamer.core.layer_names import by_reason, layer_name, reasons
from gossamer.core.placement import evaluating, place
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.edits.swap import swap
from gossamer.errors import BadInput, NoEffect
from gossamer.methods._base import Method, Needs
from gossamer.modules.cost import total_macs
from gossamer.modules.outline import in_row, outline

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


class Unfit(Exception):
    """A layer that a method cannot replace; the message is the reason."""


def dense_convolution(layer: nn.Module, *, planar: bool = False) -> Any:
    """Return the layer if it is a convolution without groups whose kernel has more than one position.

    Args:
        layer: the layer.
        planar: whether it must be two-dimensional.

    Raises:
        Unfit: it is not.
    """
    if not isinstance(layer, Conv):
        raise Unfit(f"{type(layer).__name__} is not a convolution")
    if planar and not isinstance(layer, nn.Conv2d):
        raise Unfit(f"{type(layer).__name__} is not a two-dimensional convolution")
    if layer.groups > 1:
        raise Unfit(f"it has {layer.groups} groups already")
    if torch.Size(layer.kernel_size).numel() == 1:
        raise Unfit("its kernel has one position only")
    return layer


def geometry(layer: Any) -> dict[str, Any]:
    """Return stride, padding, dilation and padding mode of a convolution."""
    return {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "padding_mode")}


def padding_of(layer: Any) -> tuple[int, ...]:
    """Return the padding of each dimension, the same on both sides.

    Raises:
        Unfit: "same" pads more on one side.
    """
    if layer.padding == "valid":
        return (0,) * len(layer.kernel_size)
    if layer.padding != "same":
        return tuple(layer.padding)
    total = [gap * (size - 1) for gap, size in zip(layer.dilation, layer.kernel_size)]
    if any(t % 2 for t in total):
        raise Unfit("its padding is not the same on both sides")
    return tuple(t // 2 for t in total)


def bias_of(layer: Any) -> Tensor | None:
    """Return the bias of a layer. A block gets none where the layer has none: a norm may follow there."""
    return None if layer.bias is None else layer.bias.detach()


def leading_singular_vectors(rows: Tensor, count: int) -> Tensor:
    """Return the leading left singular vectors of a matrix, shape (rows, count), orthonormal."""
    vectors: Tensor = torch.linalg.eigh(rows @ rows.T).eigenvectors
    return vectors.flip(1)[:, :count]


def leading_inputs(weight: Tensor, count: int) -> Tensor:
    """Return the leading directions (count, C) of the input channels of kernels (N, C, ...), orthonormal."""
    return leading_singular_vectors(weight.transpose(0, 1).flatten(1), count).T.contiguous()


def convolution_like(
    like: Any, weight: Tensor, bias: Tensor | None = None, *, groups: int = 1, **geometry: Any
) -> nn.Module:
    """Return a convolution with these weights, of the class, precision and device of another.

    Args:
        like: a convolution.
        weight: shape (O, I / groups, ...).
        bias: shape (O,); None: no bias.
        groups: of the convolution.
        geometry: stride, padding, dilation and padding mode; the defaults are those of PyTorch.
    """
    layer: Any = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        type(like),
        weight.shape[1] * groups,
        len(weight),
        tuple(weight.shape[2:]),
        groups=groups,
        bias=bias is not None,
        device=like.weight.device,
        dtype=like.weight.dtype,
        **geometry,
    )
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer  # type: ignore[no-any-return]


def pointwise_convolution(like: Any, weight: Tensor, bias: Tensor | None = None, *, groups: int = 1) -> nn.Module:
    """Return a 1 x 1 convolution with weights (O, I / groups)."""
    return convolution_like(like, weight.view(*weight.shape, *[1] * len(like.kernel_size)), bias, groups=groups)


def describe(module: nn.Module) -> str:
    """Describe a layer, or the weighted layers of a block, in a few words."""
    parts = [part for part in module.modules() if isinstance(part, nn.Linear | Conv)]
    words = []
    for part in parts:
        if isinstance(part, nn.Linear):
            words.append(f"linear {part.in_features}-{part.out_features}")
            continue
        groups = f" in {part.groups} groups" if part.groups > 1 else ""
        steps = part.stride[:1] if len(set(part.stride)) == 1 else part.stride
        step = "" if set(steps) == {1} else f" stride {'x'.join(map(str, steps))}"
        words.append(f"{'x'.join(map(str, part.kernel_size))} {part.in_channels}-{part.out_channels}{groups}{step}")
    return ", ".join(words) or type(module).__name__


@dataclass(frozen=True, kw_only=True)
class BlockReplacement(Method):
    """The options of all methods that replace layers by cheaper blocks.

    A block is first built from the weights, then its last layer is fitted by least squares to the outputs of the old
    layer, then the block alone is trained on them (block reconstruction). Labels are not used.

    Layers that match a pattern and cannot be replaced, or would not save multiply-adds, are left, and the log says
    why. A layer that is named in full and cannot be replaced raises BadInput.

    Args:
        batches: number of batches of calibration data, seen again and again, at least 1.
        steps: training steps of each block; 0 stops after least squares.
        lr: learning rate of these steps, in (0, 1].
        layers: patterns of layers.
        ignore: patterns of layers to leave.

    Raises:
        BadInput: a layer that is named in full cannot be replaced.
        NoEffect: no layer was replaced.
    """

    stage: ClassVar[int | None] = 10
    saves: ClassVar[tuple[str, ...]] = ("macs",)
    needs: ClassVar[Needs] = "samples"

    batches: Annotated[int, Range(1, 100_000)] = 8
    steps: Annotated[int, Range(0, 1_000_000)] = 100
    lr: Annotated[float, Range(0, 1, open_=("low",))] = 1e-3
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def shape_only(self) -> "BlockReplacement":
        return replace(self, steps=0, batches=1)

    def rewrite(self, model: nn.Module, task: Task, context: Context, build: Callable[[Any], FittedBlock]) -> nn.Module:
        """Replace every selected layer for which this saves multiply-adds, and reconstruct its outputs.

        Args:
            model: the network; it is left as it was.
            task: gives calibration data.
            context: seed and progress.
            build: makes the block for a layer, or raises Unfit with the reason why it cannot.

        Returns:
            The changed copy.
        """
        refuse_constrained(model, self.name())
        names = [layer_name(weight) for weight in weights_of(model, self.layers, self.ignore)]
        blocks, macs, left = self.blocks_for(model, task, names, build)
        if not blocks:
            raise NoEffect(f"{self.name()}: no layer was rewritten: {'; '.join(reasons(left)[:5])}")
        errors = self.reconstruct(model, blocks, task, context)
        self.note_blocks(model, blocks, macs, errors, left, task, context)
        idle = {name: nn.Identity() for block in blocks.values() for name in block.idle}
        return swap(model, {**idle, **{name: block.module for name, block in blocks.items()}})

    def blocks_for(
        self, model: nn.Module, task: Task, names: list[str], build: Callable[[Any], FittedBlock]
    ) -> tuple[dict[str, FittedBlock], dict[str, tuple[int, int]], dict[str, str]]:
        """Return the blocks by layer, multiply-adds of one sample before and after, and why other layers were left."""
        inputs, left = first_inputs(model, task.example_inputs, names), dict[str, str]()
        blocks, macs = dict[str, FittedBlock](), dict[str, tuple[int, int]]()
        for name in names:
            layer = model.get_submodule(name)
            try:
                block = build(layer)
            except Unfit as reason:
                if name in self.layers:
                    raise BadInput(f"{self.name()}: layer {name!r}: {reason}; list it under `ignore`") from reason
                left[name] = str(reason)
                continue
            block.module.train(layer.training)
            before, after = (total_macs(part, (inputs[name],)) for part in (layer, block.module))
            if after < before or "macs" not in self.saves:
                blocks[name], macs[name] = block, (before, after)
            else:
                left[name] = "the new block would not take fewer multiply-adds"
        return blocks, macs, left

    def reconstruct(
        self, model: nn.Module, blocks: dict[str, FittedBlock], task: Task, context: Context
    ) -> dict[str, BlockErrors]:
        """Fit the blocks, in place, to the outputs of their layers."""

        def track(items: Iterable[int]) -> Iterable[int]:
            return context.progress.bar(items, label=f"{self.name()}: block reconstruction", total=self.steps)

        batches, steps, lr = self.batches, self.steps, self.lr
        return reconstruct_blocks(model, blocks, task.calibration, batches=batches, steps=steps, lr=lr, track=track)

    def note_blocks(
        self,
        model: nn.Module,
        blocks: dict[str, FittedBlock],
        macs: dict[str, tuple[int, int]],
        errors: dict[str, BlockErrors],
        left: dict[str, str],
        task: Task,
        context: Context,
    ) -> None:
        """Log what was replaced, with what error, and what was left."""
        for name, block in blocks.items():
            error, shown = errors[name], diagram(model, name, block.module, task, context, block.idle)
            if shown is not None:
                shown = replace(shown, error=error.after_fine_tuning, of="outputs")
            self.note(
                context,
                EditKind.SWAP,
                name,
                before=describe(model.get_submodule(name)),
                after=describe(block.module) + (f"; no {', '.join(block.idle)}" if block.idle else ""),
                note=f"relative error of its outputs {error.at_init:.3g} at initialization, "
                f"{error.after_least_squares:.3g} after least squares, {error.after_fine_tuning:.3g} after fine-"
                f"tuning; {macs[name][0]:,} to {macs[name][1]:,} multiply-adds",
                swapped=shown,
            )
        for reason, those in by_reason(left).items():
            what = f"{len(those)} layers" if len(those) > 1 else describe(model.get_submodule(those[0]))
            self.note(context, EditKind.SWAP, ", ".join(those), before=what, after="left alone", note=reason)


@torch.no_grad()
def first_inputs(model: nn.Module, example_inputs: tuple[Any, ...], names: list[str]) -> dict[str, Tensor]:
    """Return what every layer gets first in a run on the example inputs.

    Raises:
        BadInput: a layer is never called.
    """
    call_order(model, example_inputs, names)
    with evaluating(model), layer_inputs(model, names) as seen:
        model(*place(model, (example_inputs, None)))
    return {name: seen[name][0] for name in names}


def diagram(
    model: nn.Module, name: str, new: nn.Module, task: Task, context: Context, gone: Sequence[str] = ()
) -> SwapRecord | None:
    """Return the structure before and after a swap, for the report of a job; None outside of one."""
    if context.original is None:
        return None
    x = first_inputs(model, task.example_inputs, [name])[name]
    before = outline(model.get_submodule(name), (x,))
    before += [replace(one, column=one.column + 1) for one in in_row(map(model.get_submodule, gone))]
    return SwapRecord(before=before, after=outline(new, (x,)), gone=list(gone))
