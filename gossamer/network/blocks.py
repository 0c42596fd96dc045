"""Residual blocks: modules that give back their input when their own weights are silent."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import NoEffect
from gossamer.network.swap import swap
from gossamer.network.trace import arguments


@dataclass(frozen=True, kw_only=True)
class Block:
    """A module that can be removed: with its parameters at zero it gave back its input, bit by bit. params: its own."""

    name: str
    params: int


@torch.no_grad()
def find_blocks(model: nn.Module, example_inputs: Any) -> list[Block]:
    """The innermost modules that are a shortcut plus something weighted (He et al. 2016, arXiv:1603.05027, section 2).

    The test is the definition: each module sees its real input with its parameters set to zero. If the output equals
    the input, removing the module is the same as silencing its branch, and the network stays well defined. So a block
    after whose addition comes a ReLU counts as well, as long as its input has been through one.
    """
    silent_is_identity: dict[str, bool] = {}

    def probe(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        same = len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor)
        if not same or inputs[0].shape != output.shape or inputs[0].dtype != output.dtype:
            return
        silent = copy.deepcopy(module)
        for part in silent.modules():
            part._forward_hooks.clear()  # else the copy would be probed as well
        for p in silent.parameters():
            p.zero_()
        same = torch.equal(silent(inputs[0]), inputs[0])
        silent_is_identity[name] = same and silent_is_identity.get(name, True)  # of every call, where there are several

    looked = copy.deepcopy(model).eval()
    for name, module in looked.named_modules():
        if name and any(module.children()) and any(True for _ in module.parameters()):
            module.register_forward_hook(lambda module, inputs, output, name=name: probe(name, module, inputs, output))
    args, kwargs = arguments(example_inputs)
    looked(*args, **kwargs)
    found = [name for name, identity in silent_is_identity.items() if identity]
    inner = [name for name in found if not any(other.startswith(name + ".") for other in found)]
    return [Block(name=name, params=sum(p.numel() for p in looked.get_submodule(name).parameters())) for name in inner]


def remove_blocks(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """A copy of the model with an identity in the place of each named block."""
    if not names:
        raise NoEffect("no blocks to remove were named")
    return swap(model, {name: nn.Identity() for name in names})
