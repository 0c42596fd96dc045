"""What every runtime looks like from outside."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from gossamer.core.batches import as_inputs
from gossamer.core.outputs import put


class Runner(ABC):
    """A deployed network: callable on torch tensors, so that it fits `task.metric`.

    Attributes:
        runtime: what runs it.
        version: of the runtime.
        precision: "float32", "int8" or "bfloat16".
        threads: of one call.
        device: where it runs.
        structure: where the tensors stand in what the network gives, as `places` says; None: one tensor, or a tuple.

    Example:
        >>> import torch, gossamer
        >>> runner = gossamer.runtime.open_runner("torch", torch.nn.Linear(3, 2))
        >>> runner(torch.ones(5, 3)).shape, runner.precision
        (torch.Size([5, 2]), 'float32')
    """

    runtime: str
    version: str
    precision: str
    threads: int
    device: str = "cpu"
    # Where the tensors stand in what the network gives, as `places` says; None: one tensor, or a tuple.
    structure: Any = None

    @abstractmethod
    def prepare(self, inputs: tuple[Tensor, ...]) -> Any:
        """The inputs in the runtime's own form, so that `raw` converts nothing."""

    @abstractmethod
    def raw(self, prepared: Any) -> Any:
        """One run on prepared inputs; outputs in the runtime's own form. This is what is timed."""

    @abstractmethod
    def outputs(self, raw: Any) -> tuple[Tensor, ...]:
        """Outputs of `raw` as torch tensors."""

    def __call__(self, *inputs: Tensor) -> Any:
        """What the network gives, in its structure where that is known; else a tensor, or a tuple of several.

        Raises BadInput for inputs that are no tensors.
        """
        outputs = self.outputs(self.raw(self.prepare(as_inputs(inputs, self.runtime))))
        if self.structure is not None:
            return put(outputs, self.structure)
        return outputs[0] if len(outputs) == 1 else outputs
