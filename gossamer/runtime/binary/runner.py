"""The runtime `binary`: networks with binary layers on bits."""

from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gossamer.compact.capture import capture
from gossamer.compact.network import Network, parts_of
from gossamer.compact.reading import load
from gossamer.compact.watch import sizes_of
from gossamer.constraints.apply import materialize
from gossamer.core.batches import as_inputs
from gossamer.core.outputs import tensors
from gossamer.core.progress import LOG, Logged
from gossamer.core.runner import Runner
from gossamer.gsr.format.graph import Graph
from gossamer.runtime.binary.execution import Execution
from gossamer.runtime.binary.kernels import counts_bits
from gossamer.runtime.binary.plan import BinaryPlan, binary_plan
from gossamer.runtime.binary.warm_up import compile_kernels
from gossamer.runtime.threads import torch_threads

MANY = 1 << 15  # input numbers from which on torch uses several threads, too


class BinaryRunner(Runner):
    """Layers with binary inputs and weights count bits; torch runs the rest in float32.

    Args:
        source: a `.gsr` file with a graph, or a module, whose graph is captured on its first inputs.
        threads: of one call.

    Attributes:
        layers: the names of the weights that run on bits, known after the first `prepare`.
        left: why weights that are signs do not, by name.
    """

    def __init__(self, source: Path | nn.Module, *, threads: int) -> None:
        self.runtime, self.version = "binary", metadata.version("gossamer")
        self.precision, self.threads = "float32", threads
        self.name = type(source).__name__ if isinstance(source, nn.Module) else source.name
        self.network = materialize(source).cpu().eval() if isinstance(source, nn.Module) else load(source)
        self.layers: tuple[str, ...] = ()
        self.left: dict[str, str] = {}
        self._seen: set[Any] = set()
        self._executions: dict[Any, Execution] = {}

    def _planned(self, graph: Graph, names: list[str], stored: list[Tensor]) -> Execution:
        with Logged().busy("compiling the binary kernels and planning"):
            compile_kernels()
            plan = binary_plan(graph, [tensor.detach() for tensor in stored])
        if not counts_bits():
            why = "this processor has no instruction that counts bits"
            plan = BinaryPlan(plan.constants, {}, {}, dict.fromkeys(plan.weights(), why))
        self.layers = tuple(names[index] for index in plan.weights())
        self.left = {names[index]: why for index, why in plan.left.items()}
        for name, why in self.left.items():
            LOG.warning("%s: %s runs in float32 by torch, not on bits: %s", self.name, name, why)
        if not self.layers:
            LOG.info("%s: no layer runs on bits; torch runs the network in float32", self.name)
        return Execution(plan, self.threads)

    def execution(self, inputs: tuple[Tensor, ...]) -> Execution:
        """What runs inputs of these sizes; the batch is free."""
        key = None if isinstance(self.network, Network) else tuple(x.shape[1:] for x in inputs)
        if key not in self._executions and isinstance(self.network, Network):
            self._executions[key] = self._planned(*parts_of(self.network))
        elif key not in self._executions:
            state = self.network.state_dict()
            graph, constants = capture(self.network, inputs, list(state), dynamic_batch=True)
            names = [*state, *[f"constant {number}" for number in range(len(constants))]]
            self._executions[key] = self._planned(graph, names, [*state.values(), *constants])
        return self._executions[key]

    def prepare(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        prepared = tuple(x.detach().cpu() for x in inputs)
        if isinstance(self.network, Network) and (sizes := sizes_of(prepared)) not in self._seen:
            with torch_threads(self.threads), torch.inference_mode():
                self.network(*prepared)  # refuses what would take too much memory or time, before anything is planned
            self._seen.add(sizes)
        self.execution(prepared)
        return prepared

    def raw(self, prepared: Any) -> Any:
        # Torch's threads go on spinning for a while, in the way of those that count bits.
        torchs = self.threads if sum(x.numel() for x in prepared) >= MANY else 1
        with torch_threads(torchs), torch.inference_mode():
            return self.execution(prepared)(prepared)

    def outputs(self, raw: Any) -> tuple[Tensor, ...]:
        return tuple(leaf.clone() for leaf in tensors(raw))

    def __call__(self, *inputs: Tensor) -> Any:
        """What the network gives, in its own structure."""
        return tree_map_only(Tensor, Tensor.clone, self.raw(self.prepare(as_inputs(inputs, self.runtime))))
