"""Batch norms where an exporter has folded them into convolutions: a network without them trains far worse."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.core.batches import inputs_and_target
from gossamer.core.placement import device_of
from gossamer.onnx_import.network import OnnxNetwork

CONVOLUTIONS: Any = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}
BATCHES = 8  # that the statistics are taken from, at most
EPS = 1e-5  # of PyTorch's norms
FEWEST = 32  # values of a channel: fewer say nothing of its variance


def put_back_norms(network: OnnxNetwork, loader: Iterable[Any]) -> int:
    """Put a batch norm behind every convolution that no norm, but another layer follows, in place.

    Mean and variance are those of the convolution's output on the batches; scale and offset undo them, so that the
    network computes the same in eval mode. An exporter folds them away again.

    Args:
        network: an imported one, in eval mode.
        loader: batches of inputs, of which the first 8 are run.

    Returns:
        How many norms were put in.

    Example:
        >>> import tempfile, gossamer
        >>> from pathlib import Path
        >>> from gossamer.onnx_import import import_onnx, put_back_norms
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     network = import_onnx(gossamer.export_onnx(model, task.example_inputs, Path(folder) / "model.onnx"))
        >>> put_back_norms(network, task.calibration)
        2
    """
    sums = {module: _Sums() for module in _bare(network)}
    hooks = [module.register_forward_hook(one.note) for module, one in sums.items()]
    device = device_of(network)
    try:
        with torch.no_grad():
            for batch in islice(loader, BATCHES):
                network(*(x.to(device) if isinstance(x, Tensor) else x for x in inputs_and_target(batch)[0]))
    finally:
        for hook in hooks:
            hook.remove()
    done = 0
    for name, module in list(network.named_modules()):
        found = sums.get(module)
        if found is not None and found.count >= FEWEST:
            parent = network.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], nn.Sequential(module, found.norm(module)))
            done += 1
    return done


class _Sums:
    """Mean and variance of a convolution's output channels."""

    def __init__(self) -> None:
        self.count, self.first, self.second = 0, torch.zeros(()), torch.zeros(())

    def note(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        values = output.double().movedim(1, 0).flatten(1)
        self.count += values.shape[1]
        self.first, self.second = self.first + values.sum(1), self.second + values.square().sum(1)

    def norm(self, convolution: nn.Module) -> nn.Module:
        """A norm that undoes itself."""
        mean = self.first / self.count
        var = (self.second / self.count - mean.square()).clamp_min(0)
        layer: nn.Module = CONVOLUTIONS[type(convolution)](len(mean)).to(convolution.weight)
        with torch.no_grad():
            tensors = layer.state_dict()
            tensors["running_mean"].copy_(mean)
            tensors["running_var"].copy_(var)
            tensors["weight"].copy_((var + EPS).sqrt())
            tensors["bias"].copy_(mean)
        return layer.eval()


def _bare(network: OnnxNetwork) -> list[nn.Module]:
    """Convolutions that no batch norm reads and that other layers follow: what comes after the last ones is the
    output, whose scale is not to depend on the batch."""
    normed, read, bare = set[str](), set[str](), list[nn.Module]()  # values that norms, and that layers, depend on
    for step in reversed(network.steps):
        module = getattr(network, step.module)
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules()):
            normed.update((*step.inputs, *step.outputs))
        inner = next((m for m in module.modules() if type(m) in CONVOLUTIONS), None)
        if inner is not None and normed.isdisjoint(step.outputs) and not read.isdisjoint(step.outputs):
            bare.append(inner)
        if not read.isdisjoint(step.outputs) or any(True for _ in module.parameters()):
            read.update(step.inputs)
    return bare[::-1]
