"""Net2DeeperNet: insert layers that at first change nothing.

What it does: puts an identity convolution (or linear layer), a batch normalization that undoes itself, and a ReLU
behind modules whose outputs are not negative. The deeper network gives the outputs of the original and can learn more:
train it on, at about a tenth of the original's learning rate.
Cost: one run over the calibration data. The network grows: it is the start of a more accurate one, or of a teacher.
When it fails: behind outputs that can be negative, which the ReLU would change; such modules are refused.
Equation: ReLU(BN(I x)) = x for x >= 0, with BN's scale sqrt(var + eps) and shift mean, var and mean those of x.
Source: Chen, Goodfellow & Shlens 2015, arXiv:1511.05641, section 2.3.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.core.placement import evaluating, place
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.edits.swap import swap
from gossamer.errors import BadInput, unknown
from gossamer.methods._base import Method, Needs, Settings
from gossamer.modules.widening import output_difference


def identity_stage(mean_C: Tensor, variance_C: Tensor, *, images: bool) -> nn.Sequential:
    """Return a layer, a batch normalization and a ReLU that together pass on what is not negative.

    In eval mode they are exact up to rounding, in training mode for batches of this mean and variance.

    Args:
        mean_C: mean of the inputs by channel, shape (C,).
        variance_C: variance of the inputs by channel, shape (C,).
        images: whether the inputs are (N, C, H, W); otherwise (N, C).
    """
    channels, like = len(mean_C), dict[str, Any](device=mean_C.device, dtype=mean_C.dtype)
    norm: nn.BatchNorm1d | nn.BatchNorm2d
    if images:
        layer: nn.Module = nn.Conv2d(channels, channels, 3, padding=1, bias=False, **like)
        norm = nn.BatchNorm2d(channels, **like)
        nn.init.dirac_(layer.get_parameter("weight"))
    else:
        layer, norm = nn.Linear(channels, channels, bias=False, **like), nn.BatchNorm1d(channels, **like)
        nn.init.eye_(layer.get_parameter("weight"))
    scale = (variance_C + norm.eps).sqrt()
    norm.load_state_dict(
        {**norm.state_dict(), "running_mean": mean_C, "running_var": variance_C, "weight": scale, "bias": mean_C}
    )
    return nn.Sequential(layer, norm, nn.ReLU())


@torch.no_grad()
def output_statistics(
    model: nn.Module, names: Sequence[str], batches: Iterable[Any]
) -> dict[str, tuple[Tensor, Tensor, Tensor, bool]]:
    """Return the statistics of the outputs of modules.

    Returns:
        By module: mean, variance and minimum by channel, each (C,) in float64, and whether the outputs are images.

    Raises:
        BadInput: a module gives neither (N, C, H, W) nor (N, C).
    """
    sums: dict[str, Tensor] = {}
    images: dict[str, bool] = {}

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.dim() not in (2, 4):
            kind = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise BadInput(f"distill.deeper: {name!r} gives {kind}; name a module that gives (N, C, H, W) or (N, C)")
        y = output.transpose(0, 1).flatten(1).double()
        new = torch.stack([torch.full_like(y[:, 0], y.shape[1]), y.sum(1), y.pow(2).sum(1), y.amin(1)])
        old = sums.get(name, torch.zeros_like(new))
        sums[name] = torch.cat([old[:3] + new[:3], torch.minimum(old[3:], new[3:])])
        images[name] = output.dim() == 4

    hooks = [model.get_submodule(name).register_forward_hook(partial(note, name)) for name in names]
    try:
        with evaluating(model):
            for batch in batches:
                model(*place(model, batch))
    finally:
        for hook in hooks:
            hook.remove()
    means = {name: total / count for name, (count, total, _, _) in sums.items()}
    return {
        name: (means[name], (squares / count - means[name] ** 2).clamp_min(0), least, images[name])
        for name, (count, _, squares, least) in sums.items()
    }


@dataclass(frozen=True, kw_only=True)
class Net2Deeper(Method):
    """Insert identity layers behind modules, for training on (Net2DeeperNet).

    Args:
        names: the modules behind which to insert, as `gossamer analyze` lists them.

    Raises:
        BadInput: names is empty, a name is unknown, or a module gives negative outputs.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> deeper, edits = gossamer.methods.distill.Net2Deeper(names=("relu1",))(model, task)
        >>> edits[0].proof < 1e-4  # the outputs are the same
        True
    """

    stage: ClassVar[int | None] = 10
    needs: ClassVar[Needs] = "samples"
    example: ClassVar[Settings] = {"names": ("body.0",)}

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.names:
            raise BadInput(f"{self.name()}: names is empty; name at least one module")

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        known = [name for name, _ in model.named_modules() if name]
        for name in self.names:
            if name not in known:
                raise unknown(f"module in {self.name()}", name, known, listed="`gossamer analyze`")
            if any(other.startswith(f"{name}.") for other in self.names):
                raise BadInput(f"{self.name()}: {name!r} contains another of the names; insert behind one of them")
        statistics = output_statistics(model, self.names, task.calibration)
        replacements = {}
        for name in self.names:
            if name not in statistics:
                raise BadInput(f"{self.name()}: {name!r} did not run; name a module that does")
            mean, variance, least, images = statistics[name]
            if bool((least < 0).any()):
                raise BadInput(f"{self.name()}: {name!r} gives negative outputs; name a module that ends in a ReLU")
            stage = identity_stage(mean, variance, images=images).to(next(model.parameters()).dtype)
            replacements[name] = nn.Sequential(copy.deepcopy(model.get_submodule(name)), *stage).train(model.training)
        deeper = swap(model, replacements)
        proof = output_difference(model, deeper, task.example_inputs)
        after = "the same, identity layer, batch norm, ReLU"
        for name in self.names:
            self.note(context, EditKind.SWAP, name, before="module", after=after, proof=proof)
        return deeper
