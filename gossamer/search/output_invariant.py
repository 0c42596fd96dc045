"""What no step may change: the structure, shapes and dtypes of what a network gives."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.core.outputs import places, tensors
from gossamer.core.placement import evaluating, place
from gossamer.errors import BadInput

SAMPLES = 2  # of an input
SCALES = (1.5, 0.5)  # other heights and widths, where the network takes them

Signature = tuple[Any, list[tuple[torch.dtype, tuple[int, ...]]]]


class OutputInvariant:
    """What the original gives for the example inputs, and for images of other sizes where it takes these. Shapes that
    follow the data, as of the boxes that are found, are compared in their number of dimensions alone."""

    def __init__(self, original: nn.Module, example_inputs: tuple[Any, ...]) -> None:
        self.cases: list[tuple[tuple[Any, ...], Signature, Signature]] = []
        for inputs in _sizes(example_inputs):
            try:
                one, other = signature(original, inputs), signature(original, _others(inputs))
            except Exception:
                if not self.cases:
                    raise
                continue  # it does not take this size
            self.cases.append((inputs, one, other))

    def check(self, model: nn.Module) -> None:
        """Raises BadInput where the network gives something else."""
        for inputs, one, other in self.cases:
            shapes = [tuple(x.shape) for x in inputs if isinstance(x, Tensor)]
            try:
                got = signature(model, inputs)
            except Exception as error:
                raise BadInput(f"it does not take inputs of shape {shapes} any more: {error}") from error
            if got[0] != one[0] or len(got[1]) != len(one[1]):
                raise BadInput(f"its outputs are built as {got[0]}, those of the original as {one[0]}")
            for new, old, also in zip(got[1], one[1], other[1]):
                fixed = old[1] == also[1]
                if new[0] != old[0] or (new[1] != old[1] if fixed else len(new[1]) != len(old[1])):
                    raise BadInput(
                        f"for inputs of shape {shapes} it gives {new[0]} of shape {new[1]}, the original {old[0]} of "
                        f"shape {old[1]}"
                    )


@torch.no_grad()
def signature(model: nn.Module, inputs: tuple[Any, ...]) -> Signature:
    """Where the tensors stand in what a network gives, their dtypes and shapes."""
    with evaluating(model):
        output = model(*place(model, (inputs, None)))
    return places(output), [(x.dtype, tuple(x.shape)) for x in tensors(output)]


def _sizes(example_inputs: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """A few samples as they are, then with images of other sizes."""
    few = tuple(x[:SAMPLES] if isinstance(x, Tensor) and x.dim() else x for x in example_inputs)
    yield few
    if any(_is_images(x) for x in few):
        for scale in SCALES:
            yield tuple(F.interpolate(x, scale_factor=scale) if _is_images(x) else x for x in few)


def _is_images(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dim() == 4 and x.is_floating_point() and min(x.shape[2:]) > 1


def _others(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Other values of the same shapes."""
    return tuple(x.flip(-1) * 0.5 if isinstance(x, Tensor) and x.is_floating_point() and x.dim() else x for x in inputs)
