"""Write a method of your own: round every weight to the nearest power of two."""

from dataclasses import dataclass

import torch
from torch import nn

import gossamer
from gossamer.edits import EditKind, assign


def nearest_power(weight: torch.Tensor) -> torch.Tensor:
    """Sign and power of two that are nearest in the logarithm; zeros stay zeros."""
    return torch.where(weight == 0, weight, weight.sign() * weight.abs().log2().round().exp2())


@dataclass(frozen=True, kw_only=True)
class PowersOfTwo(gossamer.Method):
    """Round all matrices and kernels to powers of two."""

    saves = ("distinct",)

    def apply(self, model: nn.Module, task: gossamer.Task, context: gossamer.Context) -> nn.Module:
        weights = {name: p for name, p in model.named_parameters() if p.ndim > 1}
        for name, weight in weights.items():
            self.note(context, EditKind.ASSIGN, name, before=f"{len(weight.unique())} values", after="powers of two")
        return assign(model, {name: nearest_power(p.detach()) for name, p in weights.items()})


task = gossamer.load_task("digits")
torch.manual_seed(0)
model = gossamer.models.build_for("lenet300", task)
model = gossamer.fit(model, task, gossamer.Training(epochs=2), gossamer.Context()).model
rounded, edits = PowersOfTwo()(model)
for name, network in (("before", model), ("after", rounded)):
    print(f"{name}: {gossamer.measure.evaluate(network, task)}")
print(*edits, sep="\n")
