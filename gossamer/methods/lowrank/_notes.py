"""The log of a factorization: what a layer was replaced by, its error, and the spectrum that its rank cut off."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.calibration.inputs import Layer
from gossamer.core.edit_details import SpectrumRow, SwapRecord
from gossamer.methods.lowrank._matrices import energy_of
from gossamer.modules.inserted import Reorder
from gossamer.modules.outline import in_row, part

POINTS = 80  # of a spectrum, at most about


def describe_chain(layer: Any) -> str:
    """Describe a layer in a few words."""
    if not hasattr(layer, "weight"):
        return type(layer).__name__
    if isinstance(layer, nn.Linear):
        return f"Linear {layer.in_features} to {layer.out_features}"
    size = "x".join(map(str, getattr(layer, "kernel_size", ())))
    groups = f" in {layer.groups} groups" if getattr(layer, "groups", 1) > 1 else ""
    inputs, outputs = getattr(layer, "in_channels", "?"), getattr(layer, "out_channels", "?")
    return f"{type(layer).__name__} {size} {inputs} to {outputs}{groups}"


def product(layer: Layer, chain: Sequence[Any]) -> Tensor:
    """Return the weight (groups, outputs, D) of a chain as one layer, float32."""
    if isinstance(layer, nn.Linear):
        total = torch.eye(layer.out_features, device=layer.weight.device)
        for one in reversed(chain):
            total = total @ one.weight.detach().float()
        return total[None]
    axes, groups = len(layer.kernel_size), layer.groups
    spread = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    total = torch.eye(layer.out_channels, device=layer.weight.device).view(layer.out_channels, -1, *[1] * axes)
    for one in reversed(chain):
        if isinstance(one, Reorder):
            total = total[:, one.order.argsort()]
        else:
            total = spread(total, one.weight.detach().float(), groups=one.groups)
    blocks = total.unflatten(0, (groups, -1)).unflatten(2, (groups, -1))  # type: ignore[no-untyped-call]
    return torch.stack([blocks[g, :, g] for g in range(groups)]).flatten(2)


def relative_error(layer: Layer, chain: Sequence[Any], weight: Tensor, gram: Tensor | None) -> float:
    """Return |W - W'| / |W| between a weight and its chain, in the metric of the outputs if a gram matrix is given."""
    target = weight.flatten(2)
    change = target - product(layer, chain).to(target)
    wrong, whole = (float(energy_of(m, gram).sum()) for m in (change, target))
    return float((max(wrong, 0.0) / whole) ** 0.5) if whole > 0 else 0.0


def spectrum_rows(
    lost: Sequence[Tensor], rank: Sequence[int], modes: Sequence[str], *, singular: bool
) -> list[SpectrumRow]:
    """Return the spectra of a layer for the report.

    Args:
        lost: for every mode, the fraction of energy lost at ranks 0, 1, ...
        rank: the rank that was taken in every mode.
        modes: what each rank counts.
        singular: whether the ranks are those of matrices. Then singular values are shown, else relative errors.
    """
    rows = []
    for tail, taken, mode in zip(lost, rank, modes):
        if singular:
            sizes = (-tail.double().diff()).clamp_min(0).sqrt()
            values = sizes / sizes[0].clamp_min(1e-300)
        else:
            values = tail.double().clamp_min(0).sqrt()
        first = int(singular)
        picks = {round(i * (len(values) - 1) / (POINTS - 1)) for i in range(POINTS)}
        picks |= {min(max(taken - first + step, 0), len(values) - 1) for step in (0, 1)}
        ranks = sorted(picks)
        rows.append(
            SpectrumRow(
                mode=mode,
                what="singular values" if singular else "error",
                ranks=[n + first for n in ranks],
                values=[float(f"{float(values[n]):.4g}") for n in ranks],
                rank=taken,
            )
        )
    return rows


def swap_record(
    layer: Layer, chain: nn.Sequential, plain: nn.Sequential, weight: Tensor, gram: Tensor | None,
    spectra: list[SpectrumRow],
) -> SwapRecord:  # fmt: skip
    """Return the record of one swap. chain: the new layers; plain: the same without norms."""
    return SwapRecord(
        before=[part(layer)],
        after=in_row(chain),
        error=relative_error(layer, list(plain), weight, gram),
        of="weights" if gram is None else "outputs",
        spectra=spectra,
    )
