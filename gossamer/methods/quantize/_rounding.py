"""Directions of rounding for a layer's weights: searched so that the layer's outputs change least."""

import torch
from torch import Tensor

PARTNERS = 4  # weights of an output whose turns are tried together with that of any other one
DAMPING = 1e-8  # of the mean second moment, so that there is a factor where inputs depend on each other


def reconstruction_error(value_GOD: Tensor, weight_GOD: Tensor, same_GDD: Tensor, cross_GDD: Tensor) -> Tensor:
    """Return |w Z - v X|^2 without the constant |w Z|^2, for every output.

    Args:
        value_GOD: quantized weights v, by group of the convolution, output and input.
        weight_GOD: original weights w.
        same_GDD: X^T X, X the inputs of the quantized layer.
        cross_GDD: Z^T X, Z the inputs in the original network.

    Returns:
        Shape (G, O).
    """
    return ((value_GOD @ same_GDD - 2 * weight_GOD @ cross_GDD) * value_GOD).sum(2)


def sequential_rounding(
    weight_GOD: Tensor, scale_GOD: Tensor, high: int, same_GDD: Tensor, cross_GDD: Tensor
) -> Tensor:
    """Round one weight of every output after the other; those that follow make up for what was rounded before.

    Arguments as of `flip_rounding`, without codes.

    Returns:
        Codes of shape (G, O, D), each floor(w / scale) or one above.

    Source: Frantar et al. 2022, arXiv:2210.17323, section 3, as back-substitution with a triangular factor.
    """
    weight, scale = weight_GOD.double(), scale_GOD.double().expand_as(weight_GOD)
    mean = same_GDD.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-300)
    damped = same_GDD + DAMPING * mean[:, None, None] * torch.eye(same_GDD.shape[1]).to(same_GDD)
    lower, failed = torch.linalg.cholesky_ex(damped)
    if bool(failed.any()):  # inputs that do not vary enough for a factor
        return (weight / scale).round().clamp(-high, high)
    wanted = torch.cholesky_solve((weight @ cross_GDD).transpose(1, 2), lower).transpose(1, 2)
    factor, floor = lower.transpose(1, 2), (weight_GOD / scale_GOD).floor().double()
    codes, off = torch.zeros_like(weight), torch.zeros_like(weight)  # off: value minus what is wanted
    for place in reversed(range(weight.shape[2])):
        # |factor (value - wanted)|^2 is a sum of squares; this one is zero where `off` of this weight is -later.
        later = (off * factor[:, place, None]).sum(2) / factor[:, place, place, None]
        low = floor[:, :, place]
        code = ((wanted[:, :, place] - later) / scale[:, :, place]).round().clamp(low, low + 1).clamp(-high, high)
        codes[:, :, place] = code.where(weight[:, :, place] != 0, 0.0)
        off[:, :, place] = scale[:, :, place] * codes[:, :, place] - wanted[:, :, place]
    return codes


def flip_rounding(
    codes_GOD: Tensor, weight_GOD: Tensor, scale_GOD: Tensor, high: int, same_GDD: Tensor, cross_GDD: Tensor
) -> Tensor:
    """Turn the direction of rounding of single weights, each output's best one at a time, as long as its error falls.

    Arguments as of `learn_rounding`, but for the codes to begin with, shape (G, O, D): each floor(w / scale) or one
    above.

    Returns:
        Codes of shape (G, O, D) with at most the error of the first ones in every output.
    """
    floor = (weight_GOD / scale_GOD).floor()
    scale, curvature = scale_GOD.double(), same_GDD.diagonal(dim1=1, dim2=2)[:, None]
    used = weight_GOD != 0
    codes = codes_GOD.clone()
    slope = (scale * codes.double()) @ same_GDD - weight_GOD.double() @ cross_GDD
    for _ in range(codes.shape[2]):
        turn = torch.where(codes == floor, 1.0, -1.0)
        turn = turn.where(used & ((codes + turn).abs() <= high) & ((codes == floor) | (codes == floor + 1)), 0.0)
        change = scale * turn
        least, place = (2 * change * slope + change.square() * curvature).min(2, keepdim=True)
        better = least < 0
        if not bool(better.any()):
            break
        codes.scatter_add_(2, place, turn.gather(2, place).where(better, 0.0).to(codes.dtype))
        step = change.gather(2, place).where(better, 0.0)
        slope += step * same_GDD.gather(1, place.expand(-1, -1, same_GDD.shape[2]))
    return codes


def flip_pairs(
    codes_GOD: Tensor, weight_GOD: Tensor, scale_GOD: Tensor, high: int, same_GDD: Tensor, cross_GDD: Tensor
) -> Tensor:
    """Turn the directions of two weights of an output at once, as long as its error falls.

    One of the two is among the `PARTNERS` weights whose own turns cost least. Arguments and result as of
    `flip_rounding`.
    """
    weight, scale = weight_GOD.double(), scale_GOD.double().expand_as(weight_GOD)
    floor, codes = (weight_GOD / scale_GOD).floor().double(), codes_GOD.double()
    curvature, count = same_GDD.diagonal(dim1=1, dim2=2)[:, None], weight.shape[2]
    group = torch.arange(len(weight), device=weight.device)[:, None, None]
    for _ in range(count):
        slope = (scale * codes) @ same_GDD - weight @ cross_GDD
        turn = torch.where(codes == floor, 1.0, -1.0).to(weight)
        allowed = (weight != 0) & ((codes + turn).abs() <= high) & ((codes == floor) | (codes == floor + 1))
        change = scale * turn
        single = (2 * change * slope + change.square() * curvature).where(allowed, torch.inf)
        first = single.topk(min(PARTNERS, count), largest=False).indices
        both = single.gather(2, first)[..., None] + single[:, :, None]
        both += 2 * change.gather(2, first)[..., None] * change[:, :, None] * same_GDD[group, first]
        both.scatter_(3, first[..., None], single.gather(2, first)[..., None])  # a weight with itself: its own turn
        least, place = both.flatten(2).min(2)
        better = least < -1e-12 * curvature.amax(2) * scale.amax(2).square()  # more than rounding errors of float64
        if not bool(better.any()):
            break
        one, other = first.gather(2, (place // count)[..., None]), (place % count)[..., None]
        for index, new in ((one, better), (other, better & (one != other)[..., 0])):
            codes.scatter_add_(2, index, turn.gather(2, index).where(new[..., None], 0.0))
    return codes.to(codes_GOD.dtype)
