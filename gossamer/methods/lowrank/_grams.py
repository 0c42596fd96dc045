"""Second moments of the inputs of layers, of many layers in one run of the data."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from gossamer.calibration.inputs import Layer, groups_of
from gossamer.calibration.moments import input_moments

# Moments that are kept at a time, in bytes.
KEPT = 1 << 30


class Grams:
    """Second moments E[x^T x] of the inputs of layers, computed when they are asked for.

    Those of the following layers are computed in the same run, as many as fit into memory. Asked for in order, they
    take one run of the data for many layers. Without data each is None.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, Layer], loader: Iterable[Any] | None, batches: int
    ) -> None:
        self.model, self.layers, self.loader, self.batches = model, layers, loader, batches
        self.found: dict[str, Tensor] = {}

    def __call__(self, name: str, weight: Tensor) -> Tensor | None:
        """Return the second moment of a layer's inputs, in the precision of its weight."""
        if self.loader is None:
            return None
        if name not in self.found:
            self.found = input_moments(self.model, self._ahead(name), self.loader, self.batches)
        return self.found[name].to(weight.dtype)

    def _ahead(self, name: str) -> list[str]:
        names, total = list(self.layers), 0
        chosen = names[names.index(name) :]
        for count, one in enumerate(chosen):
            layer = self.layers[one]
            total += 8 * groups_of(layer) * layer.weight[0].numel() ** 2
            if count and total > KEPT:
                return chosen[:count]
        return chosen
