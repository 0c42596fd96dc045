"""The operations that a `.pt2` may call: those of a `.gsr`, and others that torch's exporter writes for networks.

All give new tensors, made from tensors and plain numbers: no views, no writing, no files, no prints, no calls back into
Python. What the exporter writes as an operation in place runs as the one that gives a new tensor, copied into the old
one (`pt2_graph`); that one must then be what an earlier operation made (`gsr.safety.writes_outside`).
"""

from gossamer.gsr.format.operations import CODES

_MORE = """
nextafter copy fill.Scalar fill.Tensor grid_sampler_2d max_pool3d_with_indices _softmax _log_softmax _safe_softmax
_weight_norm eye.m dropout feature_dropout alpha_dropout rand rand_like randn randn_like randint randint.low
randint_like randint_like.low_dtype randperm bernoulli bernoulli.p uniform normal_functional exponential multinomial
"""
ALLOWED = frozenset(_MORE.split()) | frozenset(CODES)
# Views that are copied, so that what is new is told from what is shared by the lists alone.
COPIED = frozenset(("real", "imag", "view_as_real", "view_as_complex", "positive"))
# Python's arithmetic on sizes, by the names in a file.
ARITHMETIC = {
    "_operator.mul": "py.mul",
    "_operator.add": "py.add",
    "_operator.sub": "py.sub",
    "_operator.floordiv": "py.floordiv",
    "_operator.mod": "py.mod",
    "_operator.neg": "py.neg",
    "_operator.truediv": "py.truediv",
    "_operator.pow": "py.pow",
}
# What only checks or bounds what is known when the graph runs. Its results go nowhere.
CHECKS = frozenset(
    {"_assert_scalar", "_assert_tensor_metadata", "_assert_async", "_assert_async.msg"}
    | {"sym_constrain_range", "sym_constrain_range_for_size"}
)
# Memory that is not set would show what was in it before.
SET = {"empty.memory_format": "zeros", "empty_like": "zeros_like", "new_empty": "new_zeros"}
# Operations in place whose twin that gives a new tensor has another name.
TWINS = {
    "pow_.Scalar": "pow.Tensor_Scalar",
    "pow_.Tensor": "pow.Tensor_Tensor",
    "normal_": "normal_functional",
    "bernoulli_.float": "bernoulli.p",
    "true_divide_.Scalar": "div.Scalar",
    "divide_.Scalar": "div.Scalar",
    "multiply_.Scalar": "mul.Scalar",
    "subtract_.Scalar": "sub.Scalar",
}
