"""A graph that runs by its plan: binary layers on bits, everything else by torch."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.core.outputs import has_marks, unmarked
from gossamer.errors import BadInput
from gossamer.gsr.format.graph import values_in
from gossamer.runtime.binary.images import BitFormat, PackedImages, pack_images, zero_limits
from gossamer.runtime.binary.plan import BinaryPlan, BinaryStep, FromNumbers, FromProducts
from gossamer.runtime.binary.workers import Workers


class Execution:
    """Runs a graph.

    Args:
        plan: of the graph.
        threads: of the binary layers.
    """

    def __init__(self, plan: BinaryPlan, threads: int) -> None:
        self.plan, self.workers = plan, Workers(threads)
        self.graph, self.constants = plan.constants.graph, plan.constants
        self.fused = plan.fused()
        self.readers = {step.signs: step for step in reversed(plan.products.values())}  # the first one of each
        self.last_readers = {step.signs: number for number, step in plan.products.items()}
        self.steps, self.freed, self.as_numbers = self._order()
        self.classes = has_marks(self.graph.output)

    def _order(self) -> tuple[list[int], dict[int, list[int]], set[int]]:
        """The steps that are needed, the values that each is the last to read, and signs that are read as numbers."""
        wanted, fused, as_numbers = set(values_in(self.graph.output)), set[int](), set[int]()
        order: list[int] = []
        freed: dict[int, list[int]] = {}
        for number in reversed(range(len(self.graph.steps))):
            value = self.graph.inputs + number
            source = self.plan.sources.get(value)
            if value in wanted and isinstance(source, FromProducts):
                as_numbers.add(value)
                fused.add(source.step)
            elif (value in wanted or number in fused) and value not in self.constants.known:
                order.append(number)
                reads = self._reads(number)
                freed[number] = [index for index in dict.fromkeys(reads) if index not in wanted]
                wanted.update(reads)
                if (step := self.plan.products.get(number)) and isinstance(
                    by := self.plan.sources[step.signs], FromProducts
                ):
                    fused.add(by.step)
        return order[::-1], freed, as_numbers

    def _reads(self, number: int) -> list[int]:
        """The values that a step reads: a binary step those that its signs are made of."""
        step = self.plan.products.get(number)
        if step is None:
            return self.constants.variables(number)
        source = self.plan.sources[step.signs]
        return [source.root] if isinstance(source, FromNumbers) else []

    def __call__(self, inputs: tuple[Tensor, ...]) -> Any:
        """What the network gives."""
        values: dict[int, Any] = dict(enumerate(inputs))
        images: dict[int, PackedImages] = {}
        for number in self.steps:
            step = self.plan.products.get(number)
            if step is None:
                values[self.graph.inputs + number] = self.constants.call(number, values)
            else:
                self._product(step, values, images)
                if self.last_readers[step.signs] == number:
                    del images[step.signs]
            for index in self.freed[number]:
                del values[index]
        output = self.constants.output(values)
        return unmarked(output) if self.classes else output

    def _product(self, step: BinaryStep, values: dict[int, Any], images: dict[int, PackedImages]) -> None:
        source, given = self.plan.sources[step.signs], images.get(step.signs)
        lead: tuple[int, ...] = ()
        if isinstance(source, FromNumbers):
            lead = tuple(values[source.root].shape[:-1])
            if given is None:
                given = images[step.signs] = self._packed(step, source, values[source.root])
        assert given is not None
        given = fitting(given, step)
        signs = self.fused.get(step.number)
        if signs is None:
            values[self.graph.inputs + step.number] = self._numbers(step, given, lead)
            return
        made = images[signs] = self._signs(step, given, signs)
        if signs in self.as_numbers:
            values[signs] = _tensor(made.numbers(), step.dims)

    def _packed(self, step: BinaryStep, source: FromNumbers, x: Tensor) -> PackedImages:
        """The signs of numbers, as a binary step reads them."""
        if step.dims == 2:
            x = x.reshape(-1, x.shape[-1])[:, :, None, None]
        if x.dim() != 4:
            raise BadInput(f"binary convolutions take batches of images, 4 dimensions, not {x.dim()}")
        numbers = x.detach().float().numpy()
        samples, channels, height, width = numbers.shape
        if source.pool is None:
            form = step.product.input_format(samples, height, width)
            return pack_images(numbers, form, source.limits, self.workers)
        whole = pack_images(numbers, BitFormat(samples, channels, 1, height, width), source.limits, self.workers)
        form = step.product.input_format(samples, *source.pool.output_size(height, width))
        return source.pool(whole, replace(form, groups=1), np.zeros(channels, bool), self.workers)

    def _signs(self, step: BinaryStep, given: PackedImages, signs: int) -> PackedImages:
        """The signs that a binary step writes, as the next one reads them."""
        source, samples = self.plan.sources[signs], given.form.samples
        assert isinstance(source, FromProducts)
        rows, columns = step.product.output_size(given.form)
        reader = self.readers[signs].product
        if source.pool is None:
            form = reader.input_format(samples, rows, columns)
            return step.product.bits(given, source.switches, form, self.workers)
        between = BitFormat(samples, step.product.outputs, 1, rows, columns)
        made = step.product.bits(given, source.switches, between, self.workers)
        form = reader.input_format(samples, *source.pool.output_size(rows, columns))
        return source.pool(made, form, source.flips, self.workers)

    def _numbers(self, step: BinaryStep, given: PackedImages, lead: tuple[int, ...]) -> Tensor:
        found = _tensor(step.product.numbers(given, self.workers), 4, last=True)
        if step.dims == 2:
            found = found.reshape(*(lead or (len(found),)), step.product.outputs)
            return found if step.bias is None else found + step.bias
        return found if step.bias is None else found + step.bias[:, None, None]


def fitting(images: PackedImages, step: BinaryStep) -> PackedImages:
    """Images with the groups and the padding that a binary step reads."""
    form, product = images.form, step.product
    if form.groups != product.groups:
        wanted = product.input_format(form.samples, form.height, form.width)
        if not (form.dense and wanted.dense):
            numbers = images.numbers()
            plain = replace(wanted, padding=(0, 0, 0, 0))
            images = pack_images(numbers, plain, zero_limits(product.channels), Workers(1))
        images = PackedImages(replace(images.form, groups=product.groups), images.bits)
    return images.padded(product.padding, product.outside)


def _tensor(numbers: Any, dims: int, *, last: bool = False) -> Tensor:
    """Numbers (samples, channels, height, width), or with the channels last, as a tensor of so many dimensions."""
    found = torch.from_numpy(numbers)
    found = found.permute(0, 3, 1, 2) if last else found
    return found if dims == 4 else found.flatten(1)
