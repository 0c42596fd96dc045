"""How much an ATen operation computes, estimated from the sizes of what it takes and gives, before it runs.

The unit is about a nanosecond of one core: an element that is read or written, or a multiplication. What an operation
repeats inside itself (the windows of a pool, the terms of a product) is in none of its sizes, so every operation of the
lists that repeats something has a rule here.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

FREE_WORK = 1 << 31
WORK_PER_PAIR = 1 << 5  # for each pair of an input element and a stored element
LEAST_STORED = 1 << 12  # stored elements that every network counts as having
STORED_PER_BYTE = 1 << 7  # of stored elements, at most, for each byte of the file: zeros are stored in none
STEP = 1 << 18  # what every step of a graph takes, however small, in its first run
OPERATION = 1 << 15  # what every operation takes that a step is made of
TIME_STEP = 1 << 15  # what every step in time of a recurrent layer takes
COMPLEX = 4
FAST_CONVOLUTIONS = (torch.float32, torch.bfloat16, torch.float16)
SMALL_CONVOLUTION = 20_480  # input elements up to which PyTorch copies all windows in these types, too

Args = Sequence[Any]


def most_work(inputs: Sequence[Any], stored: Sequence[Tensor], file_bytes: int) -> int:
    """Operations that one run of a network out of a file may take.

    Args:
        inputs: What the network is given; only tensors count.
        stored: The tensors of the file. Those that share memory count once.
        file_bytes: Size of the file.

    Returns:
        FREE_WORK + WORK_PER_PAIR x input elements x (stored elements + LEAST_STORED), with at most STORED_PER_BYTE
        stored elements for each byte of the file.

    Example:
        >>> most_work([torch.zeros(2, 8)], [torch.zeros(100)], file_bytes=1000) - FREE_WORK
        2148352
    """
    given = sum(x.numel() for x in inputs if isinstance(x, Tensor))
    sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() // t.element_size() for t in stored}
    elements = min(sum(sizes.values()), STORED_PER_BYTE * file_bytes)
    return FREE_WORK + WORK_PER_PAIR * given * (elements + LEAST_STORED)


def work_of(function: Any, args: Args, result: Any) -> int:
    """Estimated operations of one call of an ATen operation.

    Args:
        function: An OpOverload that is not made of other operations.
        args: Its arguments by place; tensors may be without data.
        result: What it gave; tensors may be without data.

    Returns:
        OPERATION, all elements (several times where each one takes long), and what the operation repeats.

    Example:
        >>> one = torch.ones(1, 1, 64, device="meta")
        >>> pooled = torch.empty(1, 1, 33, device="meta")
        >>> work_of(torch.ops.aten.avg_pool2d.default, [one, [1, 32], [1, 1]], pooled) - OPERATION
        1153
    """
    name = function.overloadpacket.__name__
    given, taken = _tensors(result), _tensors(args)
    elements = sum(tensor.numel() for tensor in (*given, *taken)) * _EACH.get(name, 1)
    if name in _REPEATS:
        elements += int(_REPEATS[name](args, given[0]))
    return OPERATION + elements * (COMPLEX if any(tensor.is_complex() for tensor in taken) else 1)


def hidden_bytes(function: Any, args: Args, result: Any) -> int:
    """Bytes of the largest tensor that an operation may make besides its result.

    These are operands that are repeated in place and have to be written out, and the windows of a convolution.

    Args:
        function: An OpOverload that is not made of other operations.
        args: Its arguments by place; tensors may be without data.
        result: What it gave.
    """
    sizes = ((tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()) for tensor in _tensors(args))
    copies = max((size for size, stored in sizes if size > stored), default=0)
    if function.overloadpacket.__name__ != "convolution":
        return copies
    x, weight, transposed = args[0], args[1], args[6]
    if x.dtype in FAST_CONVOLUTIONS and x.numel() > SMALL_CONVOLUTION:
        return copies
    places = x.shape[0] * math.prod((x if transposed else result).shape[2:])
    window = (weight.shape[1] * args[8] if transposed else x.shape[1]) * math.prod(weight.shape[2:])
    return max(copies, int(places * window * x.element_size()))


def recurrent_work(args: Args) -> int:
    """Estimated operations of a recurrent layer, which goes through time by itself.

    Args:
        args: Those of `lstm.input` and its like: the sequences, with time or the batch first, states and weights.
    """
    x, weights = args[0], _tensors(args[2])
    places = x.numel() // max(1, x.shape[-1])
    time = max(x.shape[:-1], default=1)  # which of the two it is, does not matter for a bound
    return int(places * sum(weight.numel() for weight in weights) + time * len(weights) * TIME_STEP)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _pool(dims: int) -> Callable[[Args, Tensor], int]:
    """The elements of all windows; what lies outside the input is not gone through."""

    def work(args: Args, result: Tensor) -> int:
        kernel, sides = args[1] * dims if len(args[1]) == 1 else args[1], args[0].shape[-dims:]
        return result.numel() * int(math.prod(min(k, side) for k, side in zip(kernel, sides, strict=True)))

    return work


def _adaptive_pool(args: Args, result: Tensor) -> int:
    """Windows that overlap by less than one element on each side."""
    dims = len(args[1])
    sides = zip(args[0].shape[-dims:], result.shape[-dims:], strict=True)
    return int(math.prod(args[0].shape[:-dims]) * math.prod(side + 2 * places for side, places in sides))


def _convolution(args: Args, result: Tensor) -> int:
    """Each place of the result, or of the input where that is spread, takes the weights of one channel."""
    x, weight, transposed = args[0], args[1], args[6]
    return int((x if transposed else result).numel() * weight.numel() // max(1, weight.shape[0]))


def _trilinear(args: Args, result: Tensor) -> int:
    """The product of three operands that have dimensions of 1 put into them."""
    shapes = [list(operand.shape) for operand in args[:3]]
    for shape, places in zip(shapes, args[3:6], strict=True):
        for place in places:
            shape.insert(place, 1)
    return math.prod(max(sides) for sides in zip(*shapes, strict=True))


def _singular_values(args: Args, result: Tensor) -> int:
    return int(32 * args[0].numel() * min(args[0].shape[-2:]))


def _attention(args: Args, result: Tensor) -> int:
    return int(2 * args[0].numel() * args[1].shape[-2])


def _selection(args: Args, result: Tensor) -> int:
    """Quickselect takes the square for an order that somebody made for it."""
    dim = args[2] if len(args) > 2 else -1
    return int(args[0].numel() * (args[0].shape[dim] if args[0].dim() else 1))


def _bags(args: Args, result: Tensor) -> int:
    return int(args[1].numel() * args[0].shape[-1])


def _contraction(place: int) -> Callable[[Args, Tensor], int]:
    """Products of matrices: as many terms as the last dimension of an operand has elements."""
    return lambda args, result: int(result.numel() * (args[place].shape[-1] if args[place].dim() else 1))


_REPEATS: dict[str, Callable[[Args, Tensor], int]] = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot", "linear", "_cdist_forward"), _contraction(0)),
    **dict.fromkeys(("addmm", "addmv", "baddbmm"), _contraction(1)),
    "avg_pool2d": _pool(2),
    "avg_pool3d": _pool(3),
    "max_pool2d_with_indices": _pool(2),
    "max_pool3d_with_indices": _pool(3),
    **dict.fromkeys(("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d"), _adaptive_pool),
    "convolution": _convolution,
    "_trilinear": _trilinear,
    "_linalg_svd": _singular_values,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "kthvalue": _selection,
    "_embedding_bag": _bags,
    "_embedding_bag_forward_only": _bags,
    "roll": lambda args, result: result.numel() * len(args[1]),
}
_SLOW = """
pow fmod remainder floor_divide div divide sin cos tan asin acos atan atan2 sinh cosh asinh acosh atanh tanh exp exp2
expm1 log log2 log10 log1p logit lgamma digamma erf erfc erfinv sinc special_entr xlogy logaddexp logaddexp2
logcumsumexp softplus mish gelu silu normal_functional randn randn_like bernoulli exponential rand rand_like uniform
randint randint_like randperm bernoulli_ exponential_ normal_ multinomial nextafter hypot angle polar std var var_mean
median index_put index_put_ grid_sampler_2d grid_sampler_3d upsample_bicubic2d _safe_softmax _weight_norm_interface
linalg_vector_norm norm scatter_reduce tanh_ silu_ gelu_ pow_ cumprod std_mean
"""
_EACH = {
    **dict.fromkeys(_SLOW.split(), 16),
    **dict.fromkeys(("sort", "topk", "_fft_r2c", "_fft_c2c", "_fft_c2r"), 32),
}
