"""What can be left out of a network: residual blocks and plain layers that could as well hand on their input."""

import copy
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.calibration import block_reconstruction
from gossamer.calibration.weight_reconstruction import owners
from gossamer.core.arguments import arguments
from gossamer.core.copies import copy_network
from gossamer.edits.swap import swap
from gossamer.errors import NoEffect
from gossamer.graph.tracer import trace
from gossamer.modules.folding import idle_relus, norms_after
from gossamer.modules.inserted import Skip

PIXELWISE_BATCHES = 16

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True, kw_only=True)
class RemovableBlock:
    """What can be removed: the modules `parts` become identities. params: their number of parameters. alone: whether
    it is called with its input and nothing else."""

    name: str
    params: int
    parts: tuple[str, ...]
    alone: bool = True


def removable(model: nn.Module, example_inputs: Any) -> list[RemovableBlock]:
    """The residual blocks of a network; of one that has none, its plain layers."""
    return find_blocks(model, example_inputs) or find_layers(model, example_inputs)


@torch.no_grad()
def find_blocks(model: nn.Module, example_inputs: Any) -> list[RemovableBlock]:
    """The innermost modules that are a shortcut plus something weighted (He et al. 2016, arXiv:1603.05027, section 2).

    The test is the definition: each module sees its real input with its parameters set to zero. If the output equals
    the input, removing the module is the same as silencing its branch, and the network stays well defined. So a block
    after whose addition comes a ReLU counts as well, as long as its input has been through one.
    """
    silent_is_identity: dict[str, bool] = {}
    more: set[str] = set()

    def probe(name: str, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        x: Any = next(iter((*inputs, *named.values())), None)
        same = isinstance(x, Tensor) and isinstance(output, Tensor) and x.shape == output.shape
        if same and x.dtype == output.dtype:
            same = _silent_is_identity(module, x, inputs, named)
            silent_is_identity[name] = same and silent_is_identity.get(name, True)  # of every call, if several
            if named or len(inputs) > 1:
                more.add(name)

    copied = copy_network(model).eval()
    for name, module in copied.named_modules():
        if name and any(module.children()) and any(True for _ in module.parameters()):
            module.register_forward_hook(partial(probe, name), with_kwargs=True)
    args, kwargs = arguments(example_inputs)
    copied(*args, **kwargs)
    found = [name for name, identity in silent_is_identity.items() if identity]
    inner = [name for name in found if not any(other.startswith(name + ".") for other in found)]
    return [
        RemovableBlock(name=name, params=_parameters(copied, (name,)), parts=(name,), alone=name not in more)
        for name in inner
    ]


def _silent_is_identity(module: nn.Module, x: Tensor, inputs: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Whether a module whose parameters are zero gives back its input."""
    silent = copy.deepcopy(module)
    for part in silent.modules():
        part._forward_hooks.clear()  # else the copy would be probed as well
        part._forward_hooks_with_kwargs.clear()
    for p in silent.parameters():
        p.zero_()
    try:
        output = silent(*inputs, **named)
    except Exception:  # it cannot be called apart from its network, or not with zeros: not a block that can be removed
        return False
    return isinstance(output, Tensor) and torch.equal(output, x)


@torch.no_grad()
def find_layers(model: nn.Module, example_inputs: Any, only: Collection[str] | None = None) -> list[RemovableBlock]:
    """Convolutions that an identity kernel would turn into an identity, each with the batch norm behind it and the ReLU
    that then does nothing: the layers that Net2DeeperNet (Chen et al. 2016, arXiv:1511.05641, section 2.2) could have
    inserted. What such a layer has learned is lost, so removing it needs training. only: of these names alone, as each
    takes a trace of the network without it."""
    calls: dict[str, int] = {}
    fits: dict[str, bool] = {}

    def note_call(name: str, inputs: tuple[Any, ...], output: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        fits[name] = inputs[0].shape == output.shape

    copied = copy_network(model).eval()
    layers = {name: module for name, module in copied.named_modules() if isinstance(module, Convolution)}
    for name, layer in layers.items():
        if only is not None and name not in only:
            continue
        if all(size % 2 for size in layer.kernel_size) and owners(copied, layer.weight) == 1:
            layer.register_forward_hook(lambda _, inputs, output, name=name: note_call(name, inputs, output))
    args, kwargs = arguments(example_inputs)
    copied(*args, **kwargs)
    seen = trace(model, example_inputs)
    norms, idle = norms_after(model, seen), set(idle_relus(model, seen))
    found = []
    for name in (name for name, fit in fits.items() if fit and calls[name] == 1):
        parts = (name, *([norms[name]] if name in norms else []))
        smaller = swap(model, {part: nn.Identity() for part in parts})
        parts += tuple(relu for relu in idle_relus(smaller, trace(smaller, example_inputs)) if relu not in idle)
        found.append(RemovableBlock(name=name, params=_parameters(copied, parts), parts=parts))
    return found


def is_plain(model: nn.Module, block: RemovableBlock) -> bool:
    """Whether it is a layer, not a residual block."""
    return isinstance(model.get_submodule(block.name), Convolution)


def pixelwise(model: nn.Module, layers: Sequence[RemovableBlock], loader: Iterable[Any]) -> dict[str, nn.Module]:
    """For each of these plain layers the 1 x 1 convolution that comes nearest to it, norm and ReLU included, on some
    batches: what a layer behind it could take over."""
    maps: dict[str, block_reconstruction.FittedBlock] = {}
    for block in layers:
        layer: Any = model.get_submodule(block.name)
        one = type(layer)(
            layer.in_channels, layer.out_channels, 1, device=layer.weight.device, dtype=layer.weight.dtype
        )
        for p in one.parameters():
            nn.init.zeros_(p)
        maps[block.name] = block_reconstruction.FittedBlock(module=one.eval(), last={"": None}, until=block.parts[-1])
    block_reconstruction.solve_last(model, maps, loader, PIXELWISE_BATCHES)
    return {name: block.module for name, block in maps.items()}


def _parameters(model: nn.Module, names: Sequence[str]) -> int:
    return sum(p.numel() for name in names for p in model.get_submodule(name).parameters())


def remove_blocks(model: nn.Module, blocks: Sequence[RemovableBlock]) -> nn.Module:
    """A copy of the model with identities in the place of the blocks."""
    if not blocks:
        raise NoEffect("no blocks to remove were named")
    return swap(model, {part: nn.Identity() if b.alone else Skip() for b in blocks for part in b.parts})
