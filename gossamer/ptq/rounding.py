"""GPTQ: round weights to int8 so that what they make of the calibration data changes least.

Source: Frantar, Ashkboos, Hoefler, Alistarh 2022, arXiv:2210.17323. The mean error is taken out of the biases (Nagel et
al. 2019, arXiv:1906.04721, section 4.2), and second moments are taken around the mean.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gossamer.core.progress import Progress
from gossamer.errors import BadInput
from gossamer.ptq.activation_ranges import exposed_session, feeds
from gossamer.ptq.weights import LARGEST, PAIR, Weights, as_rows, attributes, from_rows, step_sizes

FEWEST, MOST = 16, 256  # positions of a map that go into the moments; as many as products of a sum, within this
LARGEST_ROWS = 2304  # products of a sum; the second moments of longer sums, whose errors average out, are not taken
BLOCK = 64  # columns
DAMPING = 0.01  # added to the diagonal of the second moments, as a fraction of its mean
MOST_DAMPED = 20  # times that ten times more is tried


@dataclass(frozen=True)
class StepRule:
    """How weights get their codes. sizes: the step of each row of (groups, outputs, K). pair: how large two neighbours
    of one sign may be together. largest_kept: whether the largest weight of a row keeps the code 127 or -127, so that
    its step can be found from the rounded weights."""

    sizes: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    pair: int
    largest_kept: bool = False


NEVER_SATURATING = StepRule(step_sizes, PAIR)


@dataclass
class InputMoments:
    """Sums over the inputs of one layer: count, inputs (groups, K), and products (groups, K, K) unless K is large."""

    count: int
    first: Tensor
    second: Tensor | None

    def add(self, inputs: Tensor) -> None:
        """inputs: (groups, samples and positions, K)."""
        self.count += inputs.shape[1]
        self.first += inputs.sum(1, dtype=torch.float64)
        if self.second is not None:
            self.second += inputs.mT @ inputs

    @property
    def mean(self) -> Tensor:
        return self.first / self.count

    @property
    def covariance(self) -> Tensor | None:
        if self.second is None:
            return None
        return self.second.double() / self.count - self.mean[:, :, None] * self.mean[:, None, :]


def round_weights(
    model: onnx.ModelProto,
    loader: Iterable[Any],
    folder: Path,
    *,
    threads: int,
    samples: int | None,
    progress: Progress,
    rule: StepRule = NEVER_SATURATING,
) -> tuple[onnx.ModelProto, dict[str, NDArray[np.float32]]]:
    """The network with rounded weights and corrected biases, and the step sizes of each weight, by name."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    weights, nodes = Weights(copied.graph), rounded_layers(copied)
    moments = row_moments(model, nodes, weights, loader, folder, threads=threads, samples=samples)
    steps = {}
    for node in progress.bar(nodes, label="int8: rounding weights"):
        weight, seen = weights[node.input[1]], moments[node.name]
        rows = as_rows(node, weight)
        scale = rule.sizes(rows)
        exact, step = torch.from_numpy(rows).double(), torch.from_numpy(scale).double()
        covariance = seen.covariance
        if covariance is None:
            covariance = torch.eye(rows.shape[2]).expand(len(rows), -1, -1)
        codes = round_rows(exact, step, covariance, rule.pair)
        rounded = (with_largest(codes, exact, step) if rule.largest_kept else codes) * step[..., None]
        shift = ((exact - rounded) @ seen.mean[..., None]).reshape(-1)
        weights[node.input[1]] = from_rows(node, rounded.float().numpy(), weight.shape)
        weights.add_to_bias(node, shift.float().numpy(), copied.graph)
        steps[node.input[1]] = scale.reshape(-1)
    return copied, steps


def rounded_layers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes whose weights can be rounded."""
    weights = Weights(model.graph)
    return [node for node in model.graph.node if weights.linear(node) or weights.product(node)]


def row_moments(
    model: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    weights: Weights,
    loader: Iterable[Any],
    folder: Path,
    *,
    threads: int,
    samples: int | None,
) -> dict[str, InputMoments]:
    """Moments of the inputs of Conv, Gemm and MatMul nodes, by name of the node, in one pass over the data."""
    names = list(dict.fromkeys(node.input[0] for node in nodes))
    session = exposed_session(model, names, folder, threads)
    moments: dict[str, InputMoments] = {}
    for feed in feeds(session, loader, samples):
        values = dict(zip(names, session.run(None, feed), strict=True))
        for node in nodes:
            inputs = unfolded(node, torch.from_numpy(values[node.input[0]]), weights.tensors[node.input[1]].dims[2:])
            groups, _, size = inputs.shape
            if node.name not in moments:
                second = torch.zeros(groups, size, size) if size <= LARGEST_ROWS else None
                moments[node.name] = InputMoments(0, torch.zeros(groups, size, dtype=torch.float64), second)
            moments[node.name].add(inputs)
    return moments


def unfolded(node: onnx.NodeProto, x: Tensor, kernel: Iterable[int]) -> Tensor:
    """What the rows of a Conv, Gemm or MatMul are multiplied with, shape (groups, samples and positions, K).

    Of a map, a grid of positions is taken: about as many as K, at least 16 and at most 256.
    """
    if node.op_type in ("Gemm", "MatMul"):
        return x.reshape(1, -1, x.shape[-1])
    given, kernel = attributes(node), list(kernel)
    dims, groups = len(kernel), int(given.get("group", 1))
    pads = given.get("pads", [0] * 2 * dims)
    # ONNX has all begins, then all ends; torch has (begin, end) of the last dimension first.
    x = F.pad(x, [p for d in reversed(range(dims)) for p in (pads[d], pads[d + dims])])
    strides, dilations = given.get("strides", [1] * dims), given.get("dilations", [1] * dims)
    for d, (size, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        x = x.unfold(2 + d, dilation * (size - 1) + 1, stride)[..., ::dilation]
    wanted = min(max(x.shape[1] // groups * math.prod(kernel), FEWEST), MOST)
    every = max(1, round((x.shape[2 : 2 + dims].numel() / wanted) ** (1 / dims)))
    x = x[(slice(None), slice(None), *[slice(min(every // 2, n - 1), None, every) for n in x.shape[2 : 2 + dims]])]
    parts = x.reshape(len(x), groups, x.shape[1] // groups, x.shape[2 : 2 + dims].numel(), -1)
    return parts.permute(1, 0, 3, 4, 2).reshape(groups, -1, parts.shape[2] * parts.shape[4])


def with_largest(codes: Tensor, rows: Tensor, step: Tensor) -> Tensor:
    """Codes (groups, outputs, K) in which a weight that is 127 steps large has the code 127 or -127."""
    exact = rows / step[..., None]
    place = exact.abs().argmax(2, keepdim=True)
    largest = exact.gather(2, place).round().clamp(-LARGEST, LARGEST)
    needed = (largest.abs() == LARGEST) & (codes.abs().amax(2, keepdim=True) < LARGEST)
    return codes.scatter(2, place, largest.where(needed, codes.gather(2, place)))


def _damped_factor(covariance: Tensor) -> Tensor:
    """Lower factors of (groups, K, K) with as much added to the diagonals as it takes: inputs that hardly vary beside
    their mean have a second moment that is all rounding error."""
    added = (DAMPING * covariance.diagonal(dim1=1, dim2=2).mean(1).abs()).clamp_min(1e-12)
    for _ in range(MOST_DAMPED):
        lower: Tensor
        lower, failed = torch.linalg.cholesky_ex(
            covariance + torch.diag_embed(added[:, None].expand(-1, covariance.shape[1]))
        )
        if not bool(failed.any()):
            return lower
        added = torch.where(failed > 0, 10 * added, added)
    raise BadInput("calibration: the second moments of a layer's inputs are not finite; check data and weights")


def round_rows(rows: Tensor, step: Tensor, covariance: Tensor, pair: int = PAIR) -> Tensor:
    """Codes of rows (groups, outputs, K) with these steps (groups, outputs), for inputs with this (groups, K, K).

    Column by column; what rounding changes is made up for by the columns that follow (GPTQ, equations 2 and 3). Two
    neighbours of one sign stay at most `pair` together (128: `step_sizes`).
    """
    size = rows.shape[2]
    upper = torch.linalg.cholesky(torch.cholesky_inverse(_damped_factor(covariance.double())), upper=True)
    left, codes = rows.clone(), torch.zeros_like(rows)
    before = torch.zeros_like(step)
    for start in range(0, size, BLOCK):
        end = min(start + BLOCK, size)
        errors = torch.zeros_like(left[..., start:end])
        for k in range(start, end):
            low = -(pair - before.neg().clamp_min(0)).clamp_max(LARGEST)
            high = (pair - before.clamp_min(0)).clamp_max(LARGEST)
            before = torch.minimum(torch.maximum((left[..., k] / step).round(), low), high)
            codes[..., k] = before
            error = (left[..., k] - before * step) / upper[:, k, k, None]
            left[..., k + 1 : end] -= error[..., None] * upper[:, None, k, k + 1 : end]
            errors[..., k - start] = error
        # What follows the block is brought up to date at once: one product instead of many outer ones.
        left[..., end:] -= errors @ upper[:, start:end, end:]
    return codes
