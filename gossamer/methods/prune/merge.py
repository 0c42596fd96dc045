"""Merge neurons that do nearly the same, without data.

What it does: in fully connected layers finds the two neurons whose weights are most alike, up to a positive factor
where the activation lets it through, removes one and adds its outgoing weights to the other's; again and again.
Cost: a matrix of all pairs of a layer's neurons; no data.
When it fails: convolutions, and layers with a norm between, are left out. Neurons are rarely alike in narrow layers.
Equation: saliency of removing j for i: s_ij = <a_j^2> ||w_i - w_j||^2, w with the bias, a outgoing; then a_i += a_j.
Where f(c x) = c f(x) (ReLU), w and b are first divided by ||w||, and a multiplied by it.
Source: Srinivas & Babu 2015, arXiv:1507.06149, sections 3 and 4; without `sparsity` it stops at the mode of the
saliencies, section 4.1.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.constraints.base import materialize, refuse_constrained, weights_of
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import NoEffect
from gossamer.methods._base import Method, Needs, Settings
from gossamer.modules.dead_units import Neurons, find_neurons, remove_dead

BINS = 50  # of the histogram whose mode is the end


def saliencies(incoming_NI: Tensor, outgoing_ON: Tensor) -> Tensor:
    """s_ij, shape (N, N): row i stays, column j goes; infinite on the diagonal."""
    distance = torch.cdist(incoming_NI, incoming_NI, compute_mode="donot_use_mm_for_euclid_dist").square()
    return (outgoing_ON.square().mean(0) * distance).fill_diagonal_(torch.inf)


def mode_of(values: Tensor) -> float:
    """The middle of the fullest of equally wide bins."""
    heights, edges = np.histogram(values.numpy(), bins=BINS)
    fullest = int(heights.argmax())
    return float(edges[fullest : fullest + 2].mean())


def merged(incoming_NI: Tensor, outgoing_ON: Tensor, most: int | None) -> tuple[Tensor, list[int]]:
    """Outgoing weights after the merges, columns of removed neurons zero, and who was removed, in order. most: so many;
    None: all below the mode of the saliencies of before."""
    outgoing, gone = outgoing_ON.clone(), list[int]()
    s = saliencies(incoming_NI, outgoing)
    limit = mode_of(s[s.isfinite()]) if most is None else torch.inf
    while len(gone) < (len(s) - 1 if most is None else most):
        at = int(s.argmin())
        i, j = divmod(at, len(s))
        if not s[i, j] < limit:
            break
        outgoing[:, i] += outgoing[:, j]
        outgoing[:, j] = 0.0
        s[j], s[:, j] = torch.inf, torch.inf
        distance = (incoming_NI - incoming_NI[i]).square().sum(1)
        s[:, i] = (outgoing[:, i].square().mean() * distance).where(s[:, i].isfinite(), torch.inf)
        gone.append(j)
    return outgoing, gone


@torch.no_grad()
def merge_layer(model: nn.Module, found: Neurons, sparsity: float | None) -> int:
    """Merge neurons of a layer in place: the outgoing weights of those that are to go become zero; how many."""
    maker: Any = model.get_submodule(found.maker)
    reader: Any = model.get_submodule(found.reader)
    rows, columns = torch.from_numpy(found.rows), torch.from_numpy(found.columns)
    weight, bias = maker.weight[rows].double(), maker.bias
    offset = bias[rows].double()[:, None] if bias is not None else weight.new_zeros(len(rows), 1)
    size = weight.norm(dim=1).clamp_min(1e-30) if found.homogeneous else weight.new_ones(len(rows))
    incoming = torch.cat([weight, offset], 1) / size[:, None]
    outgoing = reader.weight[:, columns].double() * size
    most = None if sparsity is None else round(sparsity * len(rows))
    result, gone = merged(incoming.cpu(), outgoing.cpu(), most)
    reader.weight[:, columns] = (result.to(size.device) / size).to(reader.weight.dtype)
    return len(gone)


@dataclass(frozen=True, kw_only=True)
class NeuronMerging(Method):
    """sparsity: share of the neurons of every layer that goes; None: those below the mode of the saliencies."""

    stage: ClassVar[int | None] = 30
    saves: ClassVar[tuple[str, ...]] = ("params", "macs")
    needs: ClassVar[Needs] = "inputs"
    example: ClassVar[Settings] = {"sparsity": 0.5}

    sparsity: Annotated[float | None, Range(0, 1, open_=("low", "high"))] = None
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        refuse_constrained(model, self.name())
        wanted = {layer_name(name) for name in weights_of(model, self.layers, self.ignore)}
        plain = materialize(model)
        layers = [found for found in find_neurons(plain, task.example_inputs) if found.maker in wanted]
        if not layers:
            raise NoEffect(f"{self.name()}: no selected layer's neurons go to one linear layer only, without a norm")
        for found in layers:
            count = merge_layer(plain, found, self.sparsity)
            before, after = (f"{n} neurons" for n in (len(found.rows), len(found.rows) - count))
            self.note(context, "resize", found.maker, before=before, after=after)
        return remove_dead(plain, task.example_inputs).model
