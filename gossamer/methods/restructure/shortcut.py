"""Shortcut connections (residual connections, ReZero): add shortcuts around modules of a trained network.

What it does: gives a module whose output has the shape of its input a shortcut with a gain for every channel, which is
zero at first. The network computes what it did before, and training decides how much of the shortcut it uses.
Cost: nothing to compute; a multiplication and an addition for every activation.
When it fails: in networks that are shallow or have shortcuts already it brings nothing.
Equation: F(x) becomes F(x) + g x, g = 0 at first, by channel.
Source: He et al. 2016, arXiv:1512.03385, section 3.2; a gain that starts at zero: Bachlechner et al. 2021,
arXiv:2003.04887, section 3 (there before F, with the shortcut at one).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.calibration.inputs import layer_inputs
from gossamer.core.context import Context
from gossamer.core.placement import evaluating, place
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.edits.swap import swap
from gossamer.errors import BadInput, unknown
from gossamer.methods._base import Method, Needs, Settings
from gossamer.modules.inserted import Residual


@torch.no_grad()
def seen_input(model: nn.Module, example_inputs: tuple[Any, ...], name: str) -> Tensor:
    """Return the input of a module in a run.

    Raises:
        BadInput: a shortcut cannot go around the module.
    """
    outputs: list[Any] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _, inputs, output: outputs.append(output))
    try:
        with evaluating(model), layer_inputs(model, [name]) as seen:
            model(*place(model, (example_inputs, None)))
    finally:
        handle.remove()
    x, y = seen.get(name, [None])[0], (outputs or [None])[0]
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.dim() < 2 or x.shape != y.shape:
        shapes = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in (x, y)]
        raise BadInput(f"{name!r} makes {shapes[1]} of {shapes[0]}; restructure.shortcut needs equal shapes")
    return x


@dataclass(frozen=True, kw_only=True)
class ShortcutConnections(Method):
    """Add shortcuts around modules, for training on.

    Args:
        names: the modules to go around, such as a Sequential. Their layers are called `NAME.block` afterwards.

    Raises:
        BadInput: names is empty, a name is unknown, or the shapes of input and output differ.

    Example:
        >>> import gossamer, torch
        >>> model, inputs = gossamer.data.tiny_network(), torch.zeros(1, 1, 8, 8)
        >>> changed, edits = gossamer.methods.restructure.ShortcutConnections(names=("fc1",))(model, inputs)
        >>> torch.equal(changed(inputs), model(inputs))
        True
    """

    stage: ClassVar[int | None] = 10
    needs: ClassVar[Needs] = "inputs"
    example: ClassVar[Settings] = {"names": ("body.0",)}

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.names:
            raise BadInput(f"{self.name()}: names is empty; name at least one module to go around")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        known = [name for name, _ in model.named_modules() if name]
        new: dict[str, nn.Module] = {}
        for name in self.names:
            if name not in known:
                raise unknown("module", name, known)
            new[name] = Residual(swap(model, {}).get_submodule(name), seen_input(model, task.example_inputs, name))
            kind = type(model.get_submodule(name)).__name__
            self.note(context, EditKind.SWAP, name, before=kind, after=f"{kind} and shortcut", proof=0.0)
        return swap(model, new)
