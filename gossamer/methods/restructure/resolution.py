"""Resolution multiplier (MobileNet): scale the input images down inside the network.

What it does: scales the network's input down, bilinearly, in front of the layers that read it; at 0.5 that is the mean
of 2 x 2 pixels. The network takes images of the size that it took before. For fewer channels, the width multiplier,
there is `prune.channels` with one sparsity for all.
Cost: nothing to compute. The multiply-adds that go over the map fall with the square of `share`.
When it fails: details are lost: train afterwards. Networks whose head is made for one size of map are refused
(`restructure.global_pool` removes that limit).
Equation: multiply-adds times share^2.
Source: Howard et al. 2017, arXiv:1704.04861, section 3.4.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.core.placement import evaluating, place
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.edits.swap import swap
from gossamer.errors import BadInput, NoEffect
from gossamer.methods._base import Method, Needs, NetworkCandidate, Settings
from gossamer.methods.restructure._rewrite import Conv, first_inputs


def input_convolutions(model: nn.Module, example_inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """Return the convolutions that read an input of the network directly, with this input."""
    names = [name for name, module in model.named_modules() if isinstance(module, Conv)]
    given = [x for x in place(model, (example_inputs, None)) if isinstance(x, Tensor)]
    seen = first_inputs(model, example_inputs, names) if names else {}
    return {name: x for name, x in seen.items() if any(x.shape == y.shape and torch.equal(x, y) for y in given)}


PLANNED = (0.875, 0.8125, 0.75, 0.6875, 0.625, 0.5625, 0.5)  # shares of height and width that the planner tries


def _size(share: float) -> str:
    return "half the height and width" if share == 0.5 else f"{100 * share:g} % of the height and width"


@dataclass(frozen=True, kw_only=True)
class ResolutionMultiplier(Method):
    """Scale the input images down inside the network.

    Args:
        share: fraction of the height and width that is left, rounded to whole pixels, in (0, 1).

    Raises:
        BadInput: the network needs maps of the size that it was made for.
        NoEffect: no convolution reads images directly.

    Example:
        >>> import gossamer, torch
        >>> model, inputs = gossamer.data.tiny_network(), torch.zeros(1, 1, 8, 8)
        >>> faster, edits = gossamer.methods.restructure.ResolutionMultiplier(share=0.5)(model, inputs)
        >>> print(edits[0].before, "->", edits[0].after)
        8x8 -> 4x4
    """

    stage: ClassVar[int | None] = 10
    saves: ClassVar[tuple[str, ...]] = ("macs",)
    needs: ClassVar[Needs] = "inputs"
    example: ClassVar[Settings] = {}

    share: Annotated[float, Range(0, 1, open_=("low", "high"))] = 0.5

    @classmethod
    def network_candidates(cls) -> Sequence[NetworkCandidate]:
        return tuple(NetworkCandidate("smaller images", _size(share), cls(share=share)) for share in PLANNED)

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        new: dict[str, nn.Module] = {}
        for name, x in input_convolutions(model, task.example_inputs).items():
            before = tuple(x.shape[2:])
            after = tuple(max(1, round(self.share * side)) for side in before)
            if after == before or len(before) != 2:
                continue
            layer = copy.deepcopy(model.get_submodule(name))
            new[name] = nn.Sequential(nn.Upsample(size=after, mode="bilinear"), layer).train(layer.training)
            sizes = ["x".join(map(str, side)) for side in (before, after)]
            self.note(context, EditKind.SWAP, name, before=sizes[0], after=sizes[1])
        if not new:
            raise NoEffect(f"{self.name()}: no convolution reads images as they come in, of more than a pixel")
        result = swap(model, new)
        try:
            with evaluating(result), torch.no_grad():
                result(*place(result, (task.example_inputs, None)))
        except RuntimeError as error:
            raise BadInput(
                f"{self.name()}: the network needs maps of the size that it was made for ({error}); "
                "apply restructure.global_pool first"
            ) from error
        return result
