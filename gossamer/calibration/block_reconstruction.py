"""Block reconstruction: fit a new block to the inputs and outputs of the layer that it replaces.

1. Least squares for the weights of the block's last layers, in closed form.
2. A few steps of fine-tuning of each block alone.

Both need only the inputs and outputs of the old layers on calibration data, no labels and no run of the new network. A
stage that makes a block worse is undone.
"""

import copy
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.calibration.inputs import layer_inputs
from gossamer.calibration.least_squares import Normal, add_correction, add_system
from gossamer.core.placement import evaluating, place
from gossamer.errors import BadInput

# Blocks that are nearer to their layer than this are left as they are: what is left is rounding.
EXACT = 1e-5

Track = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class FittedBlock:
    """A module for the place of a layer.

    Args:
        module: the new block.
        last: the linear layers and convolutions inside it that produce its outputs, by name, each with the output
            channels that it produces, in its own order; None for all of them, in order.
        until: the module of the network whose output the block reproduces, where that is not the layer itself.
        wanted: what it reproduces instead, as a function of that output.
        idle: other modules of the network that are not needed any more.
    """

    module: nn.Module
    last: Mapping[str, Tensor | None] = field(default_factory=dict)
    until: str | None = None
    wanted: Callable[[Tensor], Tensor] | None = None
    idle: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BlockErrors:
    """Relative errors of a block on the calibration data, |new - old| / |old| over all outputs."""

    at_init: float
    after_least_squares: float
    after_fine_tuning: float


@contextmanager
def _noted(model: nn.Module, ends: Mapping[str, str]) -> Iterator[dict[str, tuple[list[Tensor], list[Tensor]]]]:
    seen: dict[str, tuple[list[Tensor], list[Tensor]]] = {name: ([], []) for name in ends}

    # Copies, since a ReLU behind may work in place.
    def note_input(name: str) -> Any:
        return lambda _, inputs: seen[name][0].append(inputs[0].detach().clone())

    def note_output(name: str) -> Any:
        return lambda _, inputs, output: seen[name][1].append(output.detach().clone())

    handles = [model.get_submodule(name).register_forward_pre_hook(note_input(name)) for name in ends]
    handles += [model.get_submodule(end).register_forward_hook(note_output(name)) for name, end in ends.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def given(
    model: nn.Module, blocks: Mapping[str, FittedBlock], loader: Iterable[Any], batches: int
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, input, wanted output) of every call of the layers, batch after batch; the model is in eval mode meanwhile.

    Memory: one batch's inputs and outputs of these layers. Raises BadInput if there is no batch, or for a layer that
    no run calls.
    """
    missing = dict.fromkeys(blocks)
    ends = {name: name if block.until is None else block.until for name, block in blocks.items()}
    with evaluating(model), _noted(model, ends) as seen:
        for batch in islice(loader, batches):
            with torch.no_grad():
                model(*place(model, batch))
            for name, (xs, ys) in seen.items():
                if xs:
                    missing.pop(name, None)
                for x, y in zip(xs, ys, strict=True):
                    wanted = blocks[name].wanted
                    yield name, x, y if wanted is None else wanted(y)
                xs.clear()
                ys.clear()
    if missing:
        name = next(iter(missing))
        raise BadInput(f"layer {name!r} saw no input: the calibration loader gave no batch, or a run skips the layer")


@torch.no_grad()
def relative_errors(
    model: nn.Module, blocks: Mapping[str, FittedBlock], loader: Iterable[Any], batches: int
) -> dict[str, float]:
    """|new - old| / |old| of every block's outputs over the calibration data."""
    # Sums of squares in float64: float32 would lose small errors next to large outputs over many batches.
    sums = {name: [0.0, 0.0] for name in blocks}
    for name, x, y in given(model, blocks, loader, batches):
        sums[name][0] += float((blocks[name].module(x) - y).double().square().sum())
        sums[name][1] += float(y.double().square().sum())
    return {name: (wrong / max(size, 1e-300)) ** 0.5 for name, (wrong, size) in sums.items()}


@torch.no_grad()
def solve_last(model: nn.Module, blocks: Mapping[str, FittedBlock], loader: Iterable[Any], batches: int) -> None:
    """Least squares for the weights and biases of the blocks' last layers, in place, all else of them as it is."""
    systems: dict[tuple[str, str], Normal] = {}
    fitted = {name: block for name, block in blocks.items() if block.last}
    if not fitted:
        return
    for name, x, y in given(model, fitted, loader, batches):
        block = blocks[name]
        with layer_inputs(block.module, list(block.last)) as features:
            # Least squares for a *change* of the weights: its target is what the block's outputs lack so far, and
            # dampening then pulls towards the weights that are there, not towards zero.
            rest = y - block.module(x)
        for key, channels in block.last.items():
            layer: Any = block.module.get_submodule(key)
            wanted = rest if channels is None else rest.index_select(1, channels.to(rest.device))
            # Several last layers produce different output channels, so their systems are independent.
            systems[name, key] = add_system(systems.get((name, key)), layer, features[key][0], wanted)
    for (name, key), system in systems.items():
        add_correction(blocks[name].module.get_submodule(key), system)


def train_blocks(
    model: nn.Module,
    blocks: Mapping[str, FittedBlock],
    loader: Iterable[Any],
    batches: int,
    *,
    steps: int,
    lr: float,
    track: Track = iter,
) -> None:
    """Adam on |new - old|^2 of every block alone, over the variance of the old outputs, in place; the learning rate
    falls to zero along a line. One run of the model feeds a step of all blocks."""
    parameters = {name: list(block.module.parameters()) for name, block in blocks.items()}
    optimizers = {name: torch.optim.Adam(found, lr) for name, found in parameters.items() if found}

    def calls() -> Generator[tuple[str, Tensor, Tensor], None, None]:
        while True:
            yield from given(model, {name: blocks[name] for name in optimizers}, loader, batches)

    done, stream = dict.fromkeys(optimizers, 0), calls()
    for step in track(range(steps)):
        # Every block takes one step for each call of its layer that the data gives; a slower one waits for nobody.
        while optimizers and min(done.values()) <= step:
            name, x, y = next(stream)
            # A layer that a run calls twice gets two steps from it, so some blocks are done before others.
            if done[name] >= steps:
                continue
            optimizer = optimizers[name]
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - done[name] / steps)
            optimizer.zero_grad()
            with torch.enable_grad():
                # Relative to the variance, one learning rate suits blocks with outputs of any size.
                loss = (blocks[name].module(x) - y).square().mean() / y.var(unbiased=False).clamp_min(1e-30)
                loss.backward()
            optimizer.step()
            done[name] += 1
    # Ends the generator at its `yield`, which removes the hooks and puts the model back into its mode.
    stream.close()
    for found in parameters.values():
        for p in found:
            p.grad = None


def reconstruct_blocks(
    model: nn.Module,
    blocks: Mapping[str, FittedBlock],
    loader: Iterable[Any],
    *,
    batches: int,
    steps: int,
    lr: float,
    track: Track = iter,
) -> dict[str, BlockErrors]:
    """Fit blocks to the layers of `model` whose names they have, in place.

    Args:
        model: the network with the old layers; it is only read.
        blocks: the new blocks, by the name of the layer.
        loader: calibration data, the same batches every time it is iterated.
        batches: how many of them are used.
        steps: of fine-tuning; 0 for none.
        lr: the learning rate of the fine-tuning at its start.
        track: wraps the steps, for a progress bar.

    Returns:
        Errors before and after each stage, by name. Memory: one batch's inputs and outputs of the layers.

    Raises:
        BadInput: if there is no batch, or a layer is never called.
    """
    built = relative_errors(model, blocks, loader, batches)
    # `not <=` instead of `>`: an error that is no number counts as large.
    inexact = {name: block for name, block in blocks.items() if not built[name] <= EXACT}
    # Errors of the three stages; a stage that does not run has the error of the one before.
    solved, trained = dict(built), dict(built)
    if inexact:
        before = _states(inexact)
        solve_last(model, inexact, loader, batches)
        solved.update(_better(model, inexact, before, built, loader, batches))
        trained.update(solved)
    if inexact and steps:
        before = _states(inexact)
        train_blocks(model, inexact, loader, batches, steps=steps, lr=lr, track=track)
        trained.update(_better(model, inexact, before, solved, loader, batches))
    return {
        name: BlockErrors(at_init=built[name], after_least_squares=solved[name], after_fine_tuning=trained[name])
        for name in blocks
    }


def _states(blocks: Mapping[str, FittedBlock]) -> dict[str, dict[str, Tensor]]:
    return {name: copy.deepcopy(block.module.state_dict()) for name, block in blocks.items()}


def _better(
    model: nn.Module,
    blocks: Mapping[str, FittedBlock],
    before: Mapping[str, dict[str, Tensor]],
    errors: Mapping[str, float],
    loader: Iterable[Any],
    batches: int,
) -> dict[str, float]:
    """The errors now; blocks that are worse than before are as before."""
    now = relative_errors(model, blocks, loader, batches)
    for name in blocks:
        if not now[name] <= errors[name]:  # nor a number
            blocks[name].module.load_state_dict(before[name])
            now[name] = errors[name]
    return now
