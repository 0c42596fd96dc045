"""Try a pruning on shapes only: run a stand-in of the network with tensors of the pruned shapes, and compare.

Every operation must be the one of the original trace and give the predicted shape. The run takes milliseconds, because
fake tensors have no data. Networks that fake tensors cannot run are tried on real ones.
"""

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gossamer.core.copies import copy_network, tensors_of
from gossamer.graph.attributes import Attribute, get_attribute, set_attribute
from gossamer.graph.channel_index import Kept
from gossamer.graph.coupling import Mask
from gossamer.graph.expectation import Mismatch
from gossamer.graph.fake_tensors import fake_mode
from gossamer.graph.isolation import mode, untouched
from gossamer.graph.shapes import Failure, expected, kept_indices, size_after
from gossamer.graph.slicing import is_channels_last, take_channels
from gossamer.graph.tracer import Trace, record, tensor_names

if TYPE_CHECKING:
    from gossamer.graph.groups import ChannelGroups

Attributes = Mapping[str, Mapping[str, Attribute]]


class ShapeRunner:
    """Runs one network with many prunings, without copying its weights.

    Args:
        channels: the network, its traces and its channel indices.
    """

    def __init__(self, channels: "ChannelGroups") -> None:
        self.channels = channels
        model = channels.model
        self.tensors: dict[str, Tensor] = dict([*model.named_parameters(), *model.named_buffers()])
        # The stand-in has modules of its own but the tensors of the network: these are exchanged for a run.
        with untouched(model):
            self.stand_in = copy_network(model, {id(t): t for t in tensors_of(model)})
        self.modules = dict(self.stand_in.named_modules())
        self.fake = fake_mode()
        self.shapes_only = all(run.trace.fake for _, run in channels.propagations.runs())
        # Where each tensor is: a shared weight has several places, and all must get the same smaller one.
        self.places: dict[str, list[tuple[dict[str, Any], str]]] = {}
        names = tensor_names(model)
        for module in self.stand_in.modules():
            for store in (module._parameters, module._buffers):
                for key, tensor in store.items():
                    if tensor is not None and id(tensor) in names:
                        self.places.setdefault(names[id(tensor)], []).append((store, key))

    def shapes_after(self, mask: Mask) -> dict[str, tuple[int, ...]]:
        """New shapes of the parameters and buffers that change, by name."""
        kept = kept_indices(self.channels.graph.parameters, mask)
        return {name: size_after(tuple(self.tensors[name].shape), dims) for name, dims in kept.items()}

    def run(self, mask: Mask, attributes: Attributes) -> dict[bool, Trace] | Failure:
        """Run the pruned stand-in.

        Args:
            mask: the channel indices that stay.
            attributes: new values of module attributes.

        Returns:
            The traces by mode (False for eval), or where the run leaves the predicted path.
        """
        kept = kept_indices(self.channels.graph.parameters, mask)
        saved = [
            (self.modules[module], path, get_attribute(self.modules[module], path))
            for module, values in attributes.items()
            for path in values
        ]
        try:
            # Smaller tensors and new attributes for one run. `finally` puts the old ones back, also after a mismatch.
            for name, dims in kept.items():
                smaller = self._smaller(self.tensors[name], dims)
                for store, key in self.places[name]:
                    store[key] = smaller
            for module, values in attributes.items():
                for path, value in values.items():
                    set_attribute(self.modules[module], path, value)
            return self._traces(mask)
        finally:
            for name in kept:
                for store, key in self.places[name]:
                    store[key] = self.tensors[name]
            for owner, path, before in saved:
                set_attribute(owner, path, before)

    def _smaller(self, old: Tensor, dims: Mapping[int, Kept]) -> Tensor:
        # The memory format matters: operations that lay out memory are recorded or not depending on strides.
        if self.shapes_only:
            shape = size_after(tuple(old.shape), dims)
            layout = torch.channels_last if is_channels_last(old) else torch.contiguous_format
            with self.fake:
                new = torch.empty(shape, dtype=old.dtype, device=old.device, memory_format=layout)
        else:
            new = take_channels(old, dims)
        # A parameter stays one, with its requires_grad: torch.matmul dispatches to other operations without it.
        if not isinstance(old, nn.Parameter):
            return new
        with self.fake if self.shapes_only else contextlib.nullcontext():
            return nn.Parameter(new, requires_grad=old.requires_grad)

    def _traces(self, mask: Mask) -> dict[bool, Trace] | Failure:
        # A mismatch of eval mode is reported first; `Failure.is_before` relies on this order.
        traces = {}
        for training, propagation in self.channels.propagations.runs():
            with mode(self.stand_in, training):
                try:
                    traces[training] = record(
                        self.stand_in,
                        self.channels.inputs(training),
                        fake=self.fake if self.shapes_only else None,
                        # Compared while it runs: the first wrong operation ends the run, and its place tells what to
                        # repair.
                        expected=expected(propagation, mask),
                        decided=propagation.trace.decisions,
                    )
                except Mismatch as mismatch:
                    return Failure(training, mismatch)
        return traces
