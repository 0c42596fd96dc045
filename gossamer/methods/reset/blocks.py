"""Remove whole residual blocks, or plain convolutions with their batch norm and ReLU.

What it does: puts an identity in the place of residual blocks. A block is a module that gives back its input when its
own weights are zero, so the smaller network equals the original with those branches silenced, exactly. A plain
convolution can go where its output has its input's shape; what it has learned is lost.
Cost: nothing to compute. It saves all of a block's time, also on runtimes where narrower layers save little.
When it fails: without shortcuts the network is broken until it is trained again; very short networks lose accuracy
quickly.
Equation: x + F(x) becomes x; f(x) becomes x.
Source: Veit et al. 2016, arXiv:1605.06431, section 4 (residual networks survive the removal of single blocks); plain
layers undo what Net2DeeperNet does (Chen et al. 2016, arXiv:1511.05641, section 2.2).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from gossamer.errors import BadInput, unknown
from gossamer.methods.base import Method
from gossamer.network.blocks import find_blocks, find_layers, remove_blocks
from gossamer.record import Edit
from gossamer.run import Run
from gossamer.task import Task


@dataclass(frozen=True, kw_only=True)
class RemoveBlocks(Method):
    """names: the blocks or layers to remove, as `gossamer analyze` lists them."""

    stage: ClassVar[int] = 10
    saves: ClassVar[tuple[str, ...]] = ("params", "macs")

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.names:
            raise BadInput(f"{self.name()}: names is empty; name at least one block to remove")

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        found = [*find_blocks(model, task.example_inputs), *find_layers(model, task.example_inputs)]
        blocks = {block.name: block for block in found}
        for name in self.names:
            if name not in blocks:
                raise unknown("block or layer to remove", name, blocks)
        for name in self.names:
            before = f"{blocks[name].params:,} parameters"
            run.history.append(
                Edit(method=self.name(), kind="swap", target=name, before=before, after="identity", proof=0.0)
            )
        return remove_blocks(model, [blocks[name] for name in self.names])
