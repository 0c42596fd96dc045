"""The runtime `binary`: networks out of `.gsr` files, with binary layers on bits."""

from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from gossamer.compact.network import Network, parts_of
from gossamer.compact.reading import load
from gossamer.compact.watch import sizes_of
from gossamer.core.outputs import tensors
from gossamer.core.progress import LOG, Logged
from gossamer.core.runner import Runner
from gossamer.runtime.binary.execution import Execution
from gossamer.runtime.binary.kernels import counts_bits
from gossamer.runtime.binary.plan import BinaryPlan, binary_plan
from gossamer.runtime.binary.warm_up import compile_kernels
from gossamer.runtime.threads import torch_threads


class BinaryRunner(Runner):
    """A network of a `.gsr` file. Layers with binary inputs and weights count bits; torch runs the rest in float32.

    Args:
        path: the file.
        threads: of one call.

    Attributes:
        layers: the names of the weights that run on bits.
        left: why weights that are signs do not, by name.
    """

    def __init__(self, path: Path, *, threads: int) -> None:
        self.runtime, self.version = "binary", metadata.version("gossamer")
        self.precision, self.threads = "float32", threads
        network = load(path)
        assert isinstance(network, Network)
        self.network = network
        graph, names, stored = parts_of(network)
        with Logged().busy("compiling the binary kernels and planning"):
            compile_kernels()
            plan = binary_plan(graph, [tensor.detach() for tensor in stored])
            if not counts_bits():
                why = "this processor has no instruction that counts bits"
                plan = BinaryPlan(plan.constants, {}, {}, dict.fromkeys(plan.weights(), why))
        self.layers = tuple(names[index] for index in plan.weights())
        self.left = {names[index]: why for index, why in plan.left.items()}
        for name, why in self.left.items():
            LOG.warning("%s: %s runs in float32 by torch, not on bits: %s", path.name, name, why)
        if not self.layers:
            LOG.warning("%s: no layer runs on bits; torch runs the network in float32", path.name)
        self.execution = Execution(plan, threads)
        self._seen: set[Any] = set()

    def prepare(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        prepared = tuple(x.detach().cpu() for x in inputs)
        if (sizes := sizes_of(prepared)) not in self._seen:
            with torch_threads(self.threads), torch.inference_mode():
                self.network(*prepared)  # refuses what would take too much memory or time
            self._seen.add(sizes)
        return prepared

    def raw(self, prepared: Any) -> Any:
        with torch_threads(self.threads), torch.inference_mode():
            return self.execution(prepared)

    def outputs(self, raw: Any) -> tuple[Tensor, ...]:
        return tuple(leaf.clone() for leaf in tensors(raw))

    def __call__(self, *inputs: Tensor) -> Any:
        """What the network gives, in its own structure."""
        return tree_map_only(Tensor, Tensor.clone, self.raw(self.prepare(inputs)))
