"""Which values flow through an ONNX network, gathered batch by batch in constant memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from gossamer.core.batches import inputs_and_target
from gossamer.errors import BadInput
from gossamer.runtime.sessions import open_session

Array = NDArray[Any]
Range = tuple[float, float]
PER_OCTAVE = 32  # bins between a magnitude and its double
SMALLEST, OCTAVES = -24, 64  # magnitudes from 2**-24 (what is less counts as 0) to 2**40
BINS = PER_OCTAVE * OCTAVES  # for either sign
CHUNK = 32  # samples of one run, at most
CHUNK_BYTES = 2**27  # of what one run gives; fewer samples are run at a time where they give more


@dataclass(frozen=True, kw_only=True)
class ActivationHistogram:
    """What was seen of one value: smallest and largest number, and how often numbers fell in each of the bins.

    Bins are of equal relative width (2 to 3 %), so that neither one huge number nor a small range blurs them, and are
    the same for all data, so that one pass is enough. They go from the most negative to the most positive.
    """

    low: float
    high: float
    counts: NDArray[np.int64]


def _edges() -> NDArray[np.float64]:
    """Ends of the bins, ascending, shape (2 * BINS + 1,)."""
    first = (127 + SMALLEST) * PER_OCTAVE
    bits = np.arange(first, first + BINS + 1, dtype=np.int32) << 18
    positive = bits.view(np.float32).astype(np.float64)
    positive[0] = 0.0
    return np.concatenate([-positive[:0:-1], positive])


EDGES = _edges()


def feeds(session: Any, loader: Iterable[Any], samples: int | None = None) -> Iterator[dict[str, Array]]:
    """The inputs of a loader's batches in chunks, until `samples` are through. A chunk has at most 32 samples, and as
    few as it takes for what the session gives to stay within 128 MiB: networks on large images give much."""
    names = [value.name for value in session.get_inputs()]
    left = samples if samples is not None else 2**62
    chunk = 0
    for batch in loader:
        inputs, _ = inputs_and_target(batch)
        arrays = [x.detach().cpu().numpy() for x in inputs]
        if not chunk and len(arrays[0]):
            one = {name: array[:1] for name, array in zip(names, arrays, strict=True)}
            chunk = max(1, min(CHUNK, CHUNK_BYTES // max(1, sum(value.nbytes for value in session.run(None, one)))))
        for start in range(0, len(arrays[0]), chunk or CHUNK):
            size = min(chunk or CHUNK, left, len(arrays[0]) - start)
            if size <= 0:
                return
            left -= size
            yield {name: array[start : start + size] for name, array in zip(names, arrays, strict=True)}


def float_values(model: onnx.ModelProto) -> list[str]:
    """Names of all float values that flow through the graph, inputs first."""
    inferred = onnx.shape_inference.infer_shapes(model)
    known = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    float32 = onnx.TensorProto.FLOAT
    return list(dict.fromkeys(v.name for v in known if v.type.tensor_type.elem_type == float32))


def expose(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy of the network that also returns these values; they come as outputs, in this order, and nothing else."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    del copied.graph.output[:]
    inputs = {value.name for value in copied.graph.input}
    for i, name in enumerate(names):
        if name in inputs:
            copied.graph.node.append(onnx.helper.make_node("Identity", [name], [f"seen_{i}"]))
            name = f"seen_{i}"
        copied.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return copied


def observe(
    model: onnx.ModelProto, loader: Iterable[Any], folder: Path, *, threads: int, samples: int | None = None
) -> dict[str, ActivationHistogram]:
    """Histograms of all float values, in one pass over the data.

    Memory is that of one chunk of samples and one histogram a value (32 KiB), however many samples there are.
    """
    names = float_values(model)
    session = exposed_session(model, names, folder, threads)
    ends = dict.fromkeys(names, (np.inf, -np.inf))
    counts = {name: np.zeros(2 * BINS, np.int64) for name in names}
    for feed in feeds(session, loader, samples):
        for name, value in zip(names, session.run(None, feed), strict=True):
            low, high = float(value.min()), float(value.max())
            if not np.isfinite(low + high):
                raise BadInput(f"calibration: value {name!r} of the network is not finite; check data and weights")
            ends[name] = (min(ends[name][0], low), max(ends[name][1], high))
            counts[name] += histogram(value)
    if any(low > high for low, high in ends.values()):
        raise BadInput("calibration: the loader gave no samples")
    return {name: ActivationHistogram(low=ends[name][0], high=ends[name][1], counts=counts[name]) for name in names}


def histogram(value: Array) -> NDArray[np.int64]:
    """Counts in the bins between EDGES. The leading bits of a float32 are the logarithm that the bins need."""
    flat = np.ascontiguousarray(value, np.float32).ravel()
    index = (flat.view(np.int32) & 0x7FFFFFFF) >> 18
    index -= (127 + SMALLEST) * PER_OCTAVE
    np.clip(index, 0, BINS - 1, out=index)
    return np.bincount(np.where(flat < 0, BINS - 1 - index, BINS + index), minlength=2 * BINS)


def min_max(seen: ActivationHistogram) -> Range:
    """All that was seen."""
    return min(seen.low, 0.0), max(seen.high, 0.0)


def percentile(seen: ActivationHistogram, percent: float = 99.99) -> Range:
    """What `percent` of the numbers lie in, half of the rest cut at each end; zero stays inside."""
    share = np.cumsum(seen.counts) / seen.counts.sum()
    tail = (1 - percent / 100) / 2
    low = EDGES[int(np.searchsorted(share, tail, side="right"))]
    high = EDGES[int(np.searchsorted(share, 1 - tail, side="left")) + 1]
    widest = min_max(seen)
    return max(min(float(low), 0.0), widest[0]), min(max(float(high), 0.0), widest[1])


def least_squares(seen: ActivationHistogram, levels: int = 256, steps: int = 100) -> Range:
    """The range, shrunk towards zero, with the least mean squared error of `levels` codes: what rounding does inside
    the range (step**2 / 12, and less for numbers that become 0) plus what is cut off."""
    low, high = min_max(seen)
    used = np.flatnonzero(seen.counts)
    centers, weights = (EDGES[used] + EDGES[used + 1]) / 2, seen.counts[used] / seen.counts.sum()
    best, best_error = (low, high), np.inf
    for share in np.geomspace(1, 1e-3, steps):
        step = share * (high - low) / (levels - 1)
        over = np.maximum(centers - share * high, 0) + np.maximum(share * low - centers, 0)
        rounding = np.minimum(centers**2, step**2 / 12)
        error = float((weights * np.where(over > 0, over**2, rounding)).sum())
        if error < best_error:
            best, best_error = (share * low, share * high), error
    return best


def lost(seen: ActivationHistogram, kept: Range, levels: int = 256) -> float:
    """The share of the numbers other than 0 that become 0 when this range has so many codes."""
    step = (kept[1] - kept[0]) / (levels - 1)
    small = (np.abs(EDGES[:-1]) < step / 2) & (np.abs(EDGES[1:]) < step / 2)
    zeros = seen.counts[BINS - 1 : BINS + 1].sum()  # the two bins next to 0
    others = seen.counts.sum() - zeros
    return float((seen.counts[small].sum() - zeros) / others) if others > 0 and step > 0 else 0.0


def channel_ranges(
    model: onnx.ModelProto,
    names: list[str],
    loader: Iterable[Any],
    folder: Path,
    *,
    threads: int,
    samples: int | None = None,
    axis: int = 1,
) -> dict[str, NDArray[np.float32]]:
    """Largest magnitude of each channel (dimension `axis`) of these values, shape (C,)."""
    session = exposed_session(model, names, folder, threads)
    largest: dict[str, NDArray[np.float32]] = {}
    for feed in feeds(session, loader, samples):
        for name, value in zip(names, session.run(None, feed), strict=True):
            found = np.abs(value).max(axis=tuple(i for i in range(value.ndim) if i != axis % value.ndim))
            largest[name] = np.maximum(largest.get(name, found), found)
    return largest


def exposed_session(model: onnx.ModelProto, names: list[str], folder: Path, threads: int) -> Any:
    """A session that gives these values."""
    path = folder / ".observe.onnx"
    path.write_bytes(expose(model, names).SerializeToString())
    try:
        return open_session(path, threads=threads)
    finally:
        path.unlink(missing_ok=True)
