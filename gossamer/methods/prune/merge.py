"""Data-free neuron merging (data-free parameter pruning): merge similar neurons of fully connected layers.

What it does: finds the two neurons of a layer whose weights are most similar, up to a positive factor where the
activation allows it, removes one and adds its outgoing weights to those of the other. This is repeated.
Cost: a matrix of all pairs of a layer's neurons. No data.
When it fails: convolutions, and layers with a norm behind them, are left out. Neurons of narrow layers are rarely
similar.
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

from gossamer.constraints.apply import materialize, refuse_constrained
from gossamer.constraints.weights import weights_of
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import NoEffect
from gossamer.methods._base import Method, Needs, Settings
from gossamer.modules.dead_units import Neurons, find_neurons, remove_dead

BINS = 50  # of the histogram whose mode is the end


def saliencies(incoming_NI: Tensor, outgoing_ON: Tensor) -> Tensor:
    """Return what it costs to remove neuron j and add its outgoing weights to those of neuron i, for all pairs.

    Args:
        incoming_NI: incoming weights of N neurons, the bias among them.
        outgoing_ON: their outgoing weights.

    Returns:
        Shape (N, N): row i stays, column j is removed; infinite on the diagonal.

    Source: Srinivas & Babu 2015, arXiv:1507.06149, section 3.
    """
    distance = torch.cdist(incoming_NI, incoming_NI, compute_mode="donot_use_mm_for_euclid_dist").square()
    return (outgoing_ON.square().mean(0) * distance).fill_diagonal_(torch.inf)


def mode_of(values: Tensor) -> float:
    """Return the middle of the fullest of 50 equally wide bins of the values."""
    heights, edges = np.histogram(values.numpy(), bins=BINS)
    fullest = int(heights.argmax())
    return float(edges[fullest : fullest + 2].mean())


def merge_neurons(
    incoming_NI: Tensor, outgoing_ON: Tensor, most: int | None, mode_share: float = 1.0
) -> tuple[Tensor, list[int]]:
    """Merge neurons one after another.

    Args:
        incoming_NI: incoming weights of N neurons, the bias among them.
        outgoing_ON: their outgoing weights.
        most: how many neurons to remove. None: all whose saliency is below a share of the mode of the initial
            saliencies.
        mode_share: that share.

    Returns:
        The outgoing weights (O, N), zero in the columns of removed neurons, and the indices of the removed neurons in
        order.
    """
    outgoing, gone = outgoing_ON.clone(), list[int]()
    s = saliencies(incoming_NI, outgoing)
    limit = mode_share * mode_of(s[s.isfinite()]) if most is None else torch.inf
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
def merge_layer(model: nn.Module, found: Neurons, sparsity: float | None, mode_share: float = 1.0) -> int:
    """Merge neurons of a layer in place: the outgoing weights of the removed ones become zero.

    Args:
        model: is changed.
        found: the layer whose neurons are merged and the layer that reads them.
        sparsity: fraction of the neurons to remove; None: those below a share of the mode of the saliencies.
        mode_share: that share.

    Returns:
        How many neurons were removed.
    """
    maker: Any = model.get_submodule(found.maker)
    reader: Any = model.get_submodule(found.reader)
    rows, columns = torch.from_numpy(found.rows), torch.from_numpy(found.columns)
    weight, bias = maker.weight[rows].double(), maker.bias
    offset = bias[rows].double()[:, None] if bias is not None else weight.new_zeros(len(rows), 1)
    size = weight.norm(dim=1).clamp_min(1e-30) if found.homogeneous else weight.new_ones(len(rows))
    incoming = torch.cat([weight, offset], 1) / size[:, None]
    outgoing = reader.weight[:, columns].double() * size
    most = None if sparsity is None else round(sparsity * len(rows))
    result, gone = merge_neurons(incoming.cpu(), outgoing.cpu(), most, mode_share)
    reader.weight[:, columns] = (result.to(size.device) / size).to(reader.weight.dtype)
    return len(gone)


@dataclass(frozen=True, kw_only=True)
class NeuronMerging(Method):
    """Data-free neuron merging (Srinivas & Babu 2015).

    Args:
        sparsity: fraction of the neurons of every selected layer to remove, in (0, 1). None: those whose saliency is
            below `mode_share` times the mode of the saliencies' histogram.
        mode_share: where no sparsity is given, in (0, 1]; smaller merges fewer neurons.
        layers: names or patterns of the layers whose neurons are merged, such as ("fc1",).
        ignore: names or patterns of layers to leave as they are.

    Raises:
        BadInput: the network has constraints on its weights.
        NoEffect: no selected layer feeds a single linear layer without a norm between them.

    Example:
        >>> import torch, gossamer
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
        >>> smaller, edits = gossamer.methods.prune.NeuronMerging(sparsity=0.5)(model, torch.zeros(1, 4))
        >>> smaller[0]
        Linear(in_features=4, out_features=3, bias=True)
    """

    stage: ClassVar[int | None] = 30
    saves: ClassVar[tuple[str, ...]] = ("params", "macs")
    needs: ClassVar[Needs] = "inputs"
    example: ClassVar[Settings] = {"sparsity": 0.5}

    sparsity: Annotated[float | None, Range(0, 1, open_=("low", "high"))] = None
    mode_share: Annotated[float, Range(0, 1, open_=("low",))] = 1.0
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
            count = merge_layer(plain, found, self.sparsity, self.mode_share)
            before, after = (f"{n} neurons" for n in (len(found.rows), len(found.rows) - count))
            self.note(context, EditKind.RESIZE, found.maker, before=before, after=after)
            merged = "weights of the merged neurons added to those that are left"
            self.note(context, EditKind.ASSIGN, found.reader, before=f"inputs of {before}", after=merged)
        return remove_dead(plain, task.example_inputs).model
