"""Second moments of what goes into layers, of many layers in one run of the data."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from gossamer.calibration.moments import Layer, groups_of, input_moments

# Moments that are kept at a time, in bytes.
KEPT = 1 << 30


class Grams:
    """E[X^T X] of the inputs of layers, for each when it is asked for, together with those of the layers behind it, as
    many as are kept at a time: asked for in order, they take one run of the data for all of these. None without data.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, Layer], loader: Iterable[Any] | None, batches: int
    ) -> None:
        self.model, self.layers, self.loader, self.batches = model, layers, loader, batches
        self.found: dict[str, Tensor] = {}

    def __call__(self, name: str, weight: Tensor) -> Tensor | None:
        """Of a layer, in the precision of its weight."""
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
