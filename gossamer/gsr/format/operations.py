"""The operations that a `.gsr` may hold, with their numbers. No number is given a second time: the lists only grow.

All compute new tensors or views from tensors and plain numbers; none reads files, draws random numbers, calls back into
Python or keeps anything. WRITES are those that write into their first argument, which must then be a tensor that an
earlier operation made (`safety.unsafe`).
"""

import operator
from collections.abc import Callable
from typing import Any

import torch

_TEXT = """
linear conv2d batch_norm relu add.Tensor flatten.using_ints max_pool2d mean.dim adaptive_avg_pool2d cat
mul.Tensor sigmoid silu hardtanh hardswish hardsigmoid gelu avg_pool2d layer_norm permute
reshape view transpose.int slice.Tensor select.int unsqueeze squeeze.dim softmax.int matmul scaled_dot_product_attention
contiguous expand sym_size.int py.getitem py.mul py.add py.sub py.floordiv chunk split.Tensor
split_with_sizes unbind.int pad einsum index.Tensor roll tanh sub.Tensor div.Tensor clamp
conv1d conv3d conv_transpose1d conv_transpose2d.input conv_transpose3d.input convolution conv1d.padding conv2d.padding
conv3d.padding addmm mm bmm baddbmm t
relu6 leaky_relu elu celu selu prelu softplus mish
glu log_sigmoid hardshrink softshrink threshold log_softmax.int logsumexp erf erfinv exp
exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal
abs neg sign floor ceil round trunc frac sin cos
tan asin acos atan atan2 sinh cosh pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar
add.Scalar mul.Scalar sub.Scalar div.Scalar rsub.Scalar rsub.Tensor div.Tensor_mode div.Scalar_mode remainder.Scalar
remainder.Tensor floor_divide floor_divide.Scalar fmod.Scalar maximum minimum clamp.Tensor clamp_min clamp_max
clamp_min.Tensor clamp_max.Tensor where.self where.ScalarOther where.ScalarSelf where.Scalar masked_fill.Scalar
masked_fill.Tensor eq.Scalar eq.Tensor ne.Scalar ne.Tensor lt.Scalar lt.Tensor le.Scalar le.Tensor gt.Scalar
gt.Tensor ge.Scalar ge.Tensor logical_not logical_and logical_or logical_xor bitwise_not bitwise_and.Tensor
bitwise_or.Tensor isnan isinf isfinite any any.dim all all.dim sum
sum.dim_IntList mean amax amin max max.dim min min.dim argmax argmin
prod prod.dim_int var.correction var.dim std.correction std.dim var_mean.correction norm.ScalarOpt_dim
linalg_vector_norm cumsum cumprod topk sort argsort
group_norm instance_norm native_layer_norm rms_norm max_pool1d max_pool3d max_pool2d_with_indices
avg_pool1d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool1d
upsample_nearest2d.vec upsample_bilinear2d.vec upsample_bicubic2d.vec upsample_nearest1d.vec upsample_linear1d.vec
upsample_nearest3d.vec upsample_trilinear3d.vec upsample_nearest2d upsample_bilinear2d upsample_bicubic2d
pixel_shuffle pixel_unshuffle channel_shuffle constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d
replication_pad2d grid_sampler affine_grid_generator im2col col2im
view_as unflatten.int squeeze squeeze.dims movedim.int movedim.intlist swapaxes swapdims moveaxis.int expand_as
broadcast_to narrow unfold diagonal numpy_T mT adjoint flip rot90 repeat
repeat_interleave.self_int tile stack hstack vstack concat concatenate split.sizes tensor_split.sections
index_select gather take_along_dim embedding one_hot tril triu scatter.src scatter.value scatter_add
index_put slice_scatter select_scatter lift_fresh_copy clone detach alias to.dtype to.dtype_layout type_as
to.device to.other _to_copy zeros ones full arange arange.start arange.start_step
zeros_like ones_like full_like new_zeros new_ones new_full linspace eye scalar_tensor
meshgrid.indexing outer dot mv kron cosine_similarity cdist linalg_norm lstm.input gru.input
rnn_tanh.input rnn_relu.input _scaled_dot_product_flash_attention_for_cpu bilinear native_group_norm
fill_.Tensor fill_.Scalar zero_ copy_ add_.Tensor sub_.Tensor mul_.Tensor div_.Tensor
relu_ masked_fill_.Scalar index_put_ clamp_ hardtanh_ sigmoid_ tanh_ silu_ hardswish_ elu_ leaky_relu_ gelu_
sym_numel sym_storage_offset py.neg py.mod py.truediv py.pow sym_stride.int
tensor_split.indices
lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2 fft_rfft2
fft_irfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn stft stft.center real imag view_as_real view_as_complex complex
polar angle
bitwise_and.Scalar bitwise_or.Scalar bitwise_xor.Tensor bitwise_xor.Scalar
addcmul addcdiv lerp.Scalar lerp.Tensor erfc logaddexp logaddexp2 xlogy.Tensor hypot heaviside sinc logit nan_to_num
isposinf isneginf aminmax std_mean.correction nansum nanmean cummax cummin logcumsumexp count_nonzero median median.dim
kthvalue fmod.Tensor round.decimals reshape_as sgn signbit asinh acosh atanh fliplr flipud inner tensordot addmv
index_add index_copy index_fill.int_Scalar masked_scatter scatter_reduce.two ravel atleast_1d atleast_2d atleast_3d
replication_pad3d reflection_pad3d fft_fftshift fft_ifftshift
add_.Scalar sub_.Scalar mul_.Scalar div_.Scalar exp_ neg_ clamp_min_ clamp_max_ masked_fill_.Tensor
vdot any.dims bitwise_left_shift.Tensor bitwise_left_shift.Tensor_Scalar bitwise_right_shift.Tensor
bitwise_right_shift.Tensor_Scalar copysign.Scalar copysign.Tensor deg2rad rad2deg digamma lgamma fmax fmin
remainder.Scalar_Tensor special_entr xlogy.Scalar_Other xlogy.Scalar_Self diff trace linalg_cross tril_indices
triu_indices embedding_bag embedding_bag.padding_idx
"""
NAMES: tuple[str, ...] = tuple(_TEXT.split())
CODES = {name: code for code, name in enumerate(NAMES)}
_VIEWS = """
flatten.using_ints permute reshape view transpose.int slice.Tensor select.int unsqueeze squeeze.dim contiguous expand
py.getitem chunk split.Tensor split_with_sizes unbind.int einsum t view_as unflatten.int squeeze squeeze.dims
movedim.int movedim.intlist swapaxes swapdims moveaxis.int expand_as broadcast_to narrow unfold diagonal numpy_T mT
adjoint split.sizes tensor_split.sections tensor_split.indices detach alias to.dtype to.dtype_layout type_as
to.device to.other pad matmul meshgrid.indexing lift_fresh_copy real imag view_as_real view_as_complex reshape_as ravel
atleast_1d atleast_2d atleast_3d
"""
VIEWS = frozenset(_VIEWS.split())  # what they give may share memory with their first argument
IDENTITIES = ("dropout", "feature_dropout", "alpha_dropout")  # operations that change nothing in eval mode
WRITES = frozenset(name for name in NAMES if name.partition(".")[0].endswith("_") and not name.startswith("__"))
# Operations of torch, Python's operators on tensors among them, that are others by another name.
_SAME = {
    "__and__": "bitwise_and",
    "__lshift__.Scalar": "bitwise_left_shift.Tensor_Scalar",
    "__lshift__.Tensor": "bitwise_left_shift.Tensor",
    "__or__": "bitwise_or",
    "__rshift__.Scalar": "bitwise_right_shift.Tensor_Scalar",
    "__rshift__.Tensor": "bitwise_right_shift.Tensor",
    "__xor__": "bitwise_xor",
    "absolute": "abs",
    "arccos": "acos",
    "arcsin": "asin",
    "arctan": "atan",
    "arctan2": "atan2",
    "clip": "clamp",
    "divide": "div",
    "fix": "trunc",
    "ger": "outer",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "max.other": "maximum",
    "min.other": "minimum",
    "multiply": "mul",
    "negative": "neg",
    "not_equal": "ne",
    "row_stack": "vstack",
    "special_erf": "erf",
    "special_exp2": "exp2",
    "special_expit": "sigmoid",
    "special_log1p": "log1p",
    "subtract": "sub",
    "true_divide": "div",
}
_PYTHON: dict[str, Callable[..., Any]] = {
    "py.getitem": operator.getitem,
    "py.mul": operator.mul,
    "py.add": operator.add,
    "py.sub": operator.sub,
    "py.floordiv": operator.floordiv,
    "py.mod": operator.mod,
    "py.neg": operator.neg,
    "py.truediv": operator.truediv,
    "py.pow": operator.pow,
}


def name_of(target: Any) -> str | None:
    """The name of what an exported node calls; None where it is not in the list."""
    if isinstance(target, torch._ops.OpOverload):
        space, _, name = str(target).partition(".")
        name = listed_name(name.removesuffix(".default"))
        return name if space == "aten" and name in CODES else None
    return next((name for name, function in _PYTHON.items() if function is target), None)


def listed_name(name: str) -> str:
    """The name of the list for an operation that torch has by several names."""
    packet, dot, overload = name.partition(".")
    return _SAME.get(name) or f"{_SAME.get(packet, packet)}{dot}{overload}"


def function_of(name: str) -> Callable[..., Any] | None:
    """What a name of the list calls; None where this version of torch does not have it."""
    if name in _PYTHON:
        return _PYTHON[name]
    packet, _, overload = name.partition(".")
    found = getattr(getattr(torch.ops.aten, packet, None), overload or "default", None)
    return found if callable(found) else None
