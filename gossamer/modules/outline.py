"""What a module is made of, as boxes in columns: for the record of what stood in a place, and what stands there now."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from gossamer.core.edit_details import BlockPart
from gossamer.graph.tracer import trace

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def outline(module: nn.Module, example_inputs: tuple[Any, ...]) -> list[BlockPart]:
    """The layers that a run calls, in its order: each in the column behind the last one that it reads from, in its row
    or in the first free one below."""
    t = trace(module, example_inputs)
    modules = dict(module.named_modules())
    # Column and row that a tensor is ready for; nothing else of the trace depends on the input.
    ready = {ref.index: (0, 0) for ref in t.inputs}
    places: dict[str, tuple[int, int]] = {}
    for op in t.ops:
        read = [ready[ref.index] for ref in op.refs() if ref.index in ready]
        if not read:
            continue
        place, name = max(read), op.modules[-1] if op.modules else ""
        if name in modules and not any(modules[name].children()):
            if name not in places:
                column, row = place
                while (column, row) in places.values():
                    row += 1
                places[name] = column, row
            place = places[name][0] + 1, places[name][1]
        ready |= {out.index: place for out in op.outs if out is not None}
    return [part(modules[name], *place) for name, place in places.items()]


def part(layer: Any, column: int = 0, row: int = 0) -> BlockPart:
    """One layer as a box."""
    where: Any = {"column": column, "row": row}
    if isinstance(layer, nn.Linear):
        return BlockPart(kind="linear", inputs=layer.in_features, outputs=layer.out_features, **where)
    if not isinstance(layer, CONVOLUTIONS):
        return BlockPart(kind=type(layer).__name__, **where)
    size, counts = "×".join(map(str, layer.kernel_size)), (layer.in_channels, layer.out_channels)
    stride = "×".join(map(str, layer.stride)) if set(layer.stride) != {1} else ""
    return BlockPart(kind=size, inputs=counts[0], outputs=counts[1], groups=layer.groups, stride=stride, **where)


def in_row(layers: Iterable[nn.Module]) -> list[BlockPart]:
    """Layers one after the other."""
    return [part(layer, column) for column, layer in enumerate(layers)]
