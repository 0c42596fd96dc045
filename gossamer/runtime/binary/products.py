"""Binary layers: convolutions and matrix products of signs, from packed images to numbers or to packed images."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.runtime.binary.images import NO_PADDING, SIZES, BitFormat, PackedImages, Padding
from gossamer.runtime.binary.kernels import BITS, LANES, VECTOR, WORD, Layer, Places, sign_products
from gossamer.runtime.binary.workers import Workers

ALWAYS, NEVER = np.iinfo(np.int32).min, np.iinfo(np.int32).max  # the least product of channels that never change
A_MICROSECOND = 800_000  # products of signs, on AVX-512 with its count of bits
FEW_PLACES = 16  # for each thread; with fewer, threads share the outputs


@dataclass(frozen=True)
class Switches:
    """When a product gives a 1: where it is at least `least`, turned where `flips`. Both (outputs,)."""

    least: NDArray[np.int32]
    flips: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class SignProduct:
    """A convolution of signs: what `torch.nn.functional.conv2d` computes of numbers -1 and 1, exactly.

    A fully connected layer is one with a kernel of 1 x 1 on images of one place.

    Attributes:
        signs: of the weights, (outputs, channels of a group, kernel height, kernel width); True for +1.
        scales: (outputs,), by which the integers are multiplied where numbers are asked for.
        stride: down and right.
        dilation: down and right.
        padding: of the input.
        outside: what lies there: -1, 0 or 1.
        groups: of channels.
    """

    signs: NDArray[np.bool_]
    scales: NDArray[np.float32]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: Padding = NO_PADDING
    outside: int = 0
    groups: int = 1

    @property
    def outputs(self) -> int:
        return len(self.signs)

    @property
    def channels(self) -> int:
        """Of the input."""
        return int(self.signs.shape[1]) * self.groups

    @property
    def terms(self) -> int:
        """Of an output, without padding."""
        return math.prod(self.signs.shape[1:])

    @property
    def vectors(self) -> int:
        """Of outputs, in a group."""
        return -(-self.outputs // self.groups // LANES)

    @property
    def writes_dense(self) -> bool:
        """Whether the bits of all outputs can lie side by side."""
        return self.groups == 1 or self.outputs // self.groups % LANES == 0

    def input_format(self, samples: int, height: int, width: int) -> BitFormat:
        """Of the images that it reads."""
        return BitFormat(samples, self.channels, self.groups, height, width, self.padding, self.outside)

    def output_size(self, form: BitFormat) -> tuple[int, int]:
        """Rows and columns of its output."""
        kernel = self.signs.shape[2:]
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, kernel)]
        rows, columns = ((p - r) // s + 1 for p, r, s in zip(form.padded, reach, self.stride))
        return rows, columns

    def numbers(self, images: PackedImages, workers: Workers) -> NDArray[np.float32]:
        """Scaled products, (samples, rows, columns, outputs)."""
        (rows, columns), padded = self.output_size(images.form), self.groups * self.vectors * LANES
        count = images.form.samples * rows * columns
        out = np.empty((count, padded), np.float32)
        self._run(images, np.arange(count, dtype=np.int64) * padded, None, out, workers)
        size = self.outputs // self.groups
        out = out.reshape(images.form.samples, rows, columns, self.groups, -1)[..., :size]
        return out.reshape(images.form.samples, rows, columns, self.outputs)

    def bits(self, images: PackedImages, switches: Switches, form: BitFormat, workers: Workers) -> PackedImages:
        """Packed images in a format, one bit for each product."""
        out = form.empty()
        self._run(images, form.places(), switches, out, workers)
        return PackedImages(form, out)

    def _run(
        self,
        images: PackedImages,
        writes: NDArray[np.int64],
        switches: Switches | None,
        out: NDArray[Any],
        workers: Workers,
    ) -> None:
        if len(self._kept) > 3 * SIZES:
            self._kept.clear()
        layer, places = self._layer(images.form, switches), self._places(images.form)
        places, count, vectors = places._replace(writes=writes), len(writes), len(layer.weights)
        x, expected = images.bits, count * self.outputs * self.terms / A_MICROSECOND
        if count >= FEW_PLACES * workers.threads or vectors < workers.threads:
            workers.run(sign_products, count, lambda a, b: (x, layer, places, (a, b, 0, vectors), out), expected)
        else:
            workers.run(sign_products, vectors, lambda a, b: (x, layer, places, (0, count, a, b), out), expected)

    @cached_property
    def _weights(self) -> NDArray[np.uint8]:
        """(vectors of all groups, words, VECTOR): of each output four bytes, as the kernel reads them."""
        outputs, inputs = self.signs.shape[:2]
        by_group = self.signs.reshape(self.groups, outputs // self.groups, inputs, -1)
        words = -(-inputs // BITS)
        whole = np.zeros((self.groups, self.vectors * LANES, by_group.shape[3], words * BITS), bool)
        whole[:, : by_group.shape[1], :, :inputs] = by_group.transpose(0, 1, 3, 2)
        lanes = np.packbits(whole, axis=-1, bitorder="little").reshape(self.groups * self.vectors, LANES, -1, WORD)
        return np.ascontiguousarray(lanes.transpose(0, 2, 1, 3)).reshape(len(lanes), -1, VECTOR)

    @cached_property
    def _kept(self) -> dict[Any, Any]:
        return {}

    def _layer(self, form: BitFormat, switches: Switches | None) -> Layer:
        key = (form.padded, id(switches))
        if key not in self._kept:
            kernel = self.signs.shape[2:]
            (down, right), columns = self.dilation, form.padded[1]
            taps = np.arange(kernel[0])[:, None] * down * columns + np.arange(kernel[1]) * right
            reads = taps.reshape(-1, 1) * form.place_bytes + np.arange(form.words) * WORD
            scales = self._by_vectors(self.scales, 0)
            least, flips = np.zeros_like(scales, np.int32), np.zeros_like(scales, bool)
            if switches is not None:
                least, flips = self._by_vectors(switches.least, NEVER), self._by_vectors(switches.flips, False)
            self._kept[key] = (
                switches,
                Layer(
                    weights=self._weights,
                    reads=np.ascontiguousarray(reads.reshape(-1), np.int64),
                    group_bytes=form.words * WORD,
                    vectors=self.vectors,
                    full=self._full(form)[0],
                    least=least,
                    flips=np.packbits(flips, bitorder="little"),
                    scales=scales,
                ),
            )
        found: Layer = self._kept[key][1]
        return found

    def _by_vectors(self, values: NDArray[Any], rest: Any) -> NDArray[Any]:
        """Values of outputs in the order of the kernel, with others for the outputs that fill vectors up."""
        whole = np.full((self.groups, self.vectors * LANES), rest, values.dtype)
        whole[:, : self.outputs // self.groups] = values.reshape(self.groups, -1)
        return whole.reshape(-1)

    def _places(self, form: BitFormat) -> Places:
        key = (form, "places")
        if key not in self._kept:
            rows, columns = self.output_size(form)
            wide = form.padded[1]
            of_one = np.arange(rows)[:, None] * self.stride[0] * wide + np.arange(columns) * self.stride[1]
            starts = np.arange(form.samples)[:, None] * (form.padded[0] * wide)
            reads = np.asarray((starts + of_one.reshape(-1)) * form.place_bytes, np.int64).reshape(-1)
            kinds = np.tile(self._full(form)[1], form.samples)
            self._kept[key] = Places(reads, kinds, reads)
        found: Places = self._kept[key]
        return found

    def _full(self, form: BitFormat) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Products where no bit differs, by kind of place, and the kind of every place of one image.

        Places outside that count as 0 have bits 0, which differ from the weights of +1: these are added back.
        """
        key = (form.padded, "full")
        if key in self._kept:
            return self._kept[key]  # type: ignore[no-any-return]
        rows, columns = self.output_size(form)
        if self.outside or not any(self.padding):
            full = np.full((1, self.groups * self.vectors * LANES), self.terms, np.int32)
            return self._kept.setdefault(key, (full, np.zeros(rows * columns, np.int64)))  # type: ignore[no-any-return]
        top, _, left, _ = self.padding
        kernel = self.signs.shape[2:]
        down = _taps_inside(rows, self.stride[0], self.dilation[0], kernel[0], top, form.height)
        across = _taps_inside(columns, self.stride[1], self.dilation[1], kernel[1], left, form.width)
        taps = (down[:, None, :, None] & across[None, :, None, :]).reshape(rows * columns, -1)
        kinds, kind_of = np.unique(taps, axis=0, return_inverse=True)
        inputs = self.signs.shape[1]
        ones = self.signs.reshape(self.outputs, inputs, -1).sum(1)  # (outputs, taps)
        values = kinds.sum(1)[:, None] * inputs + 2 * (~kinds @ ones.T.astype(np.int64))
        full = np.stack([self._by_vectors(row.astype(np.int32), 0) for row in values])
        return self._kept.setdefault(key, (full, kind_of.reshape(-1).astype(np.int64)))  # type: ignore[no-any-return]


def _taps_inside(count: int, stride: int, dilation: int, kernel: int, before: int, size: int) -> NDArray[np.bool_]:
    """Which taps of a kernel lie inside the image along one side, (places, kernel)."""
    at = np.arange(count)[:, None] * stride + np.arange(kernel) * dilation - before
    return (at >= 0) & (at < size)
