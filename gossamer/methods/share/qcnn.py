"""Quantized convolutional networks (Q-CNN): product quantization with error correction on the layer outputs.

What it does: product quantization of linear layers and convolutions, in the order of execution. The codewords and
choices of each layer are then improved on calibration data: given the inputs from the quantized layers before it, its
outputs shall match those of the original network. No labels, no training of the whole network.
Cost: two runs of the calibration data per layer, and a matrix of (inputs x positions)^2 numbers: linear layers with
25,000 inputs need gigabytes.
When it fails: grouped convolutions are refused. With few calibration samples the codewords overfit them.
Equation: min over D, B of sum_n |T_n - sum_m (D_m B_m)^T S_nm|^2, one block m after another.
Source: Wu et al. 2016, arXiv:1512.06473, sections 3 and 4.
"""

from dataclasses import dataclass
from itertools import product
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.calibration.inputs import groups_of
from gossamer.calibration.moments import call_order, moments
from gossamer.constraints.apply import constrain, constraints, materialize
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.record import EditKind
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.gsr.format.generated import rows_of
from gossamer.methods._base import Method, Needs, Settings
from gossamer.methods.share._clusters import cluster_vectors
from gossamer.methods.share._decoded import Product, blocks_of


@dataclass(kw_only=True)
class Fit:
    """The code of a layer while it is improved, with what its output error depends on; all in float64.

    M blocks of d input channels, t kernel positions, O outputs, K codewords.

    Attributes:
        gram: E[s s^T] of the inputs s, shape (M, t, d, M, t, d).
        wanted: E[s u^T], u the target outputs without bias, shape (M, t, d, O).
        codebook: shape (M, K, d).
        indices: shape (M, O, t).
        keep: 0 where the weight is zero, else 1; shape (M, O, t, d).
        decoded: the weight, shape (M, O, t, d).
    """

    gram: Tensor
    wanted: Tensor
    codebook: Tensor
    indices: Tensor
    keep: Tensor
    decoded: Tensor

    def decode(self, m: int) -> Tensor:
        """Return block m of the weight, shape (O, t, d)."""
        return self.codebook[m][self.indices[m]] * self.keep[m]

    def slopes(self, m: int) -> Tensor:
        """Return E[s_m (u - outputs of all blocks but m)^T], shape (t, d, O)."""
        given = torch.einsum("tdNse,Nose->tdo", self.gram[m], self.decoded)
        own = torch.einsum("tdse,ose->tdo", self.gram[m, :, :, m], self.decoded[m])
        return self.wanted[m] - given + own

    def part(self, m: int, slopes: Tensor, block: Tensor) -> float:
        """Return the error with this block m, without what does not depend on it."""
        own = torch.einsum("tdse,otd,ose->", self.gram[m, :, :, m], block, block)
        return float(own - 2 * torch.einsum("tdo,otd->", slopes, block))

    def error(self) -> float:
        """Return the output error E|u - w s|^2 without the constant E|u|^2."""
        given = torch.einsum("MtdNse,Nose->Motd", self.gram, self.decoded)
        return float((given * self.decoded).sum() - 2 * torch.einsum("Mtdo,Motd->", self.wanted, self.decoded))


def choose_entries(fit: Fit, m: int, slopes: Tensor) -> None:
    """For every kernel position of block m in turn, take each output's codeword with the least error, all else
    fixed.
    """
    block = fit.decode(m)
    for tap in range(fit.indices.shape[2]):
        block[:, tap] = 0
        rest = slopes[tap] - torch.einsum("dse,ose->do", fit.gram[m, tap, :, m], block)
        words = fit.codebook[m] * fit.keep[m][:, tap, None]  # (O, K, d)
        cost = ((words @ fit.gram[m, tap, :, m, tap] - 2 * rest.T[:, None]) * words).sum(2)
        fit.indices[m, :, tap] = cost.argmin(1)
        block[:, tap] = words[torch.arange(len(words)), fit.indices[m, :, tap]]


def solve(fit: Fit, m: int, slopes: Tensor) -> None:
    """Compute the least-squares codewords of block m, all choices fixed; unused codewords stay."""
    entries, width = fit.codebook.shape[1:]
    matrix = fit.gram.new_zeros(entries * entries, width, width)
    right = fit.gram.new_zeros(entries, width)
    taps = range(fit.indices.shape[2])
    for tap in taps:
        first, keep = fit.indices[m, :, tap], fit.keep[m, :, tap]
        right.index_add_(0, first, slopes[tap].T * keep)
        for other in taps:
            second, kept = fit.indices[m, :, other], fit.keep[m, :, other]
            parts = keep[:, :, None] * fit.gram[m, tap, :, m, other] * kept[:, None, :]
            matrix.index_add_(0, first * entries + second, parts)
    system = matrix.view(entries, entries, width, width).transpose(1, 2).reshape(entries * width, -1)
    found = (torch.linalg.pinv(system, hermitian=True) @ right.flatten()).view(entries, width)
    used = torch.bincount(fit.indices[m].flatten(), minlength=entries) > 0
    before = fit.codebook[m].clone()
    fit.codebook[m] = torch.where(used[:, None], found, before)
    if fit.part(m, slopes, fit.decode(m)) > fit.part(m, slopes, fit.decoded[m]):
        fit.codebook[m] = before  # a singular system, solved to rounding errors


def improve_blocks(fit: Fit, rounds: int) -> list[float]:
    """Improve all blocks in turn, in place.

    Args:
        fit: is changed.
        rounds: how often.

    Returns:
        The errors before the first and after every round; they do not grow.

    Source: Wu et al. 2016, arXiv:1512.06473, section 4.
    """
    errors = [fit.error()]
    for _ in range(rounds):
        for m in range(len(fit.codebook)):
            slopes = fit.slopes(m)
            solve(fit, m, slopes)
            choose_entries(fit, m, slopes)
            fit.decoded[m] = fit.decode(m)
        errors.append(fit.error())
    return errors


def fit_of(weight: Tensor, gram: Tensor, cross: Tensor, width: int, entries: int, generator: torch.Generator) -> Fit:
    """Return the plain product quantization of a weight, with its moments.

    Args:
        weight: shape (O, I, ...).
        gram: E[x x^T], x the layer's inputs now, shape (D, D) in the order of `weight.flatten(1)`.
        cross: E[z x^T], z its inputs in the original network, shape (D, D).
        width: neighbouring input channels in a vector, d.
        entries: vectors in a block's codebook, K.
        generator: for the start of k-means.
    """
    outputs, channels = weight.shape[:2]
    taps = weight[0, 0].numel()
    codebook, indices = cluster_vectors(blocks_of(rows_of(weight), width), entries, generator)
    blocks, _, width = codebook.shape
    spare = blocks * width - channels

    def by_block(matrix: Tensor) -> Tensor:
        """(I taps, ...) as (M, taps, d, ...)."""
        rest = matrix.shape[1:]
        padded = torch.cat([matrix.view(channels, taps, *rest), matrix.new_zeros(spare, taps, *rest)])
        return padded.view(blocks, width, taps, *rest).transpose(1, 2)

    half = by_block(gram).movedim(-1, 0)  # (I taps, M, taps, d)
    keep = blocks_of(rows_of((weight != 0).double()), width).view(blocks, outputs, taps, width)
    fit = Fit(
        gram=by_block(half.contiguous()).permute(3, 4, 5, 0, 1, 2).contiguous(),
        wanted=by_block(cross.T @ weight.double().flatten(1).T).contiguous(),
        codebook=codebook.double(),
        indices=indices.view(blocks, outputs, taps),
        keep=keep,
        decoded=torch.zeros_like(keep),
    )
    for m in range(blocks):
        fit.decoded[m] = fit.decode(m)
    return fit


@dataclass(frozen=True, kw_only=True)
class QuantizedNetwork(Method):
    """Product quantization with error correction (Wu et al. 2016).

    Args:
        width: neighbouring input channels in a vector, d, in [1, 4096].
        entries: vectors in each block's codebook, K, in [1, 65536].
        rounds: of correction; 0: none.
        batches: batches of calibration data.
        layers: names or patterns of the layers whose weights are shared, such as ("conv*", "fc1").
        ignore: names or patterns of layers to leave as they are. Grouped convolutions must be listed here.

    Raises:
        BadInput: a selected layer is a grouped convolution.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.share.QuantizedNetwork(width=4, entries=8, layers=("fc1",))
        >>> shared, edits = method(model, task)
        >>> len(shared.fc1.weight[:, :4].unique(dim=0)) <= 8
        True
    """

    stage: ClassVar[int | None] = 60
    needs: ClassVar[Needs] = "samples"
    example: ClassVar[Settings] = {"width": 2, "entries": 16, "rounds": 1}

    width: Annotated[int, Range(1, 4096)] = 4
    entries: Annotated[int, Range(1, 65_536)] = 32
    rounds: Annotated[int, Range(0, 1000)] = 2
    batches: Annotated[int, Range(1, 1_000_000)] = 16
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        generator = torch.Generator().manual_seed(context.seed)
        original = materialize(model)
        found = weights_of(original, self.layers, self.ignore)
        names = {layer_name(name): name for name in found}
        for layer in names:
            if (groups := groups_of(original.get_submodule(layer))) > 1:  # type: ignore[arg-type]
                raise BadInput(f"{self.name()}: {layer} is a convolution of {groups} groups; list it under `ignore`")
        order = call_order(original, task.example_inputs, list(names))
        for layer in context.progress.bar(order, label="error-corrected product quantization"):
            name = names[layer]
            w = effective_weight(model, name)
            [(gram, cross)] = moments(model, original, [layer], task.calibration, self.batches).values()
            fit = fit_of(w, gram[0], cross[0], self.width, self.entries, generator)
            errors = improve_blocks(fit, self.rounds)
            code = Product(w, fit.codebook.to(w.dtype), fit.indices.flatten(1))
            model = constrain(model, {name: code})
            note = f"output error {errors[0]:.4g} to {errors[-1]:.4g}, relative to outputs of zero"
            self.note(
                context, EditKind.CONSTRAIN, name, before=f"{w.numel():,} weights", after=code.description(), note=note
            )
        return model


def tables_of(rows_NI: Tensor, codebook_MKD: Tensor) -> Tensor:
    """Return the inner products of every block of the inputs with every codeword.

    Args:
        rows_NI: N inputs.
        codebook_MKD: codebooks of M blocks.

    Returns:
        Shape (N, M, K). It takes I K multiplications for each row.
    """
    return torch.einsum("mnd,mkd->nmk", blocks_of(rows_NI, codebook_MKD.shape[2]), codebook_MKD)


def look_up(tables_NMK: Tensor, indices_MO: Tensor) -> Tensor:
    """Return the outputs as sums of table entries.

    Args:
        tables_NMK: of `tables_of`.
        indices_MO: codeword of each block and output.

    Returns:
        Shape (N, O). It takes M additions for each output, and no multiplication.
    """
    return tables_NMK.gather(2, indices_MO.long().expand(len(tables_NMK), -1, -1)).sum(1)


class LookUp(nn.Module):
    """A linear layer, or a convolution without groups, whose product-quantized weight is applied by table look-up.

    Each position of the input computes its tables once; all kernel positions that cover it share them.

    Args:
        layer: whose weight is constrained by a product code without zeros.

    Raises:
        BadInput: it is not such a layer.

    Source: Wu et al. 2016, arXiv:1512.06473, section 3.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        [code] = constraints(layer).get("weight", (None,))[-1:]
        if not isinstance(code, Product) or code.keep is not None or not isinstance(layer, nn.Linear | nn.Conv2d):
            raise BadInput(
                f"look-up inference needs a linear layer or Conv2d with a product code without zeros, got {layer}"
            )
        self.layer, self.code = layer, code

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        layer, codebook, indices = self.layer, self.code.codebook, self.code.indices
        if isinstance(layer, nn.Linear):
            y = look_up(tables_of(x.flatten(0, -2), codebook), indices).view(*x.shape[:-1], -1)
            return y if layer.bias is None else y + layer.bias
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode).movedim(1, -1)
        tables = tables_of(x.flatten(0, 2), codebook).view(*x.shape[:3], *codebook.shape[:2])
        by_tap = indices.view(len(indices), layer.out_channels, -1)
        covered = [gap * (size - 1) + 1 for gap, size in zip(layer.dilation, layer.kernel_size)]
        last = [(x.shape[d + 1] - covered[d]) // layer.stride[d] * layer.stride[d] + 1 for d in (0, 1)]
        total = x.new_zeros(())
        for tap, (i, j) in enumerate(product(*map(range, layer.kernel_size))):
            top, left = i * layer.dilation[0], j * layer.dilation[1]
            rows = slice(top, top + last[0], layer.stride[0])
            columns = slice(left, left + last[1], layer.stride[1])
            part = tables[:, rows, columns]
            total = total + look_up(part.flatten(0, 2), by_tap[:, :, tap]).view(*part.shape[:3], -1)
        total = total if layer.bias is None else total + layer.bias
        return total.movedim(-1, 1)
