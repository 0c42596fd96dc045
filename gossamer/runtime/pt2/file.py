"""A torch module as a `.pt2`: a graph with its weights, for torch itself, without the class and without pickle."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from gossamer.compact.free_dimensions import free_dimensions
from gossamer.compact.network import Network
from gossamer.compact.torch_export import export_failure, exported_program, plain_outputs, refuse_compiled, silent
from gossamer.compact.watch import NotForeseen, on_meta
from gossamer.constraints.apply import materialize
from gossamer.core import record
from gossamer.core.batches import as_inputs
from gossamer.core.conditions import own_conditions
from gossamer.core.kinds import checked_arguments
from gossamer.core.outputs import has_marks, places, put, tensors
from gossamer.errors import BadInput, CorruptFile, GossamerError, first_line, no_file
from gossamer.graph.tracer import warm_up
from gossamer.gsr.format.graph import State, Value
from gossamer.runtime.metadata import STRUCTURE, says_places
from gossamer.runtime.pt2.archive import Archive
from gossamer.runtime.pt2.graph import Program, Taken, read_program


@checked_arguments
@own_conditions()
def export_pt2(model: nn.Module, example_inputs: Any, path: Path | str, *, dynamic_batch: bool = True) -> Path:
    """Write the module in eval mode as one `.pt2` file. The module is not touched.

    Args:
        model: any network that `torch.export` takes.
        example_inputs: a tensor, or a tuple of the network's positional arguments.
        path: the file.
        dynamic_batch: the first dimension of every input that shares it with the first one is free.

    Returns:
        The path.

    Raises:
        BadInput: with the operation, when the module cannot be exported.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     network = load_pt2(export_pt2(nn.Linear(2, 3), (torch.zeros(2, 2),), f"{folder}/model.pt2"))
        >>> network(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise BadInput(f"{path}: the folder {path.parent} does not exist")
    several = isinstance(example_inputs, tuple | list)  # they may hold more than tensors
    inputs = tuple(example_inputs) if several else as_inputs(example_inputs, "export_pt2")
    refuse_compiled(model, ".pt2")
    copied = materialize(model).eval()
    call = free_dimensions(copied, inputs, {}, {}, dynamic_batch=dynamic_batch)
    with silent(), torch.no_grad(), plain_outputs(copied):
        try:
            warm_up(copied, call.args)
            program = exported_program(copied, call)
        except Exception as error:
            raise BadInput(export_failure(copied, ".pt2", error, call)) from error
        if own := next(
            (node for node in program.graph.nodes if getattr(node.target, "namespace", "") == "gossamer"), None
        ):
            raise BadInput(f"a .pt2 cannot hold {own.target}, which only gossamer can run; export to .onnx")
        structure = places(copied.forward(*tree_map_only(Tensor, Tensor.clone, call.args)))  # it may write into them
        # Not needed to run: the example inputs would be pickled, the stack traces name the user's folders.
        program._example_inputs = None
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)
        buffer = io.BytesIO()
        noted = {STRUCTURE: json.dumps(structure)} if has_marks(structure) else {}
        torch.export.save(program, buffer, extra_files=noted)
    record.write_bytes(path, buffer.getvalue())
    return path


def load_pt2(path: Path | str) -> nn.Module:
    """Load the network of a `.pt2` file, in eval mode, callable like the original.

    Nothing of the file is unpickled, evaluated or compiled. Its operations, which must be in a list of harmless ones,
    run one after the other; what they would make is checked before. docs/untrusted.md states the limits.

    Args:
        path: the file.

    Returns:
        The network.

    Raises:
        CorruptFile: for a file that is damaged, or has operations that are not allowed.

    Example:
        >>> import tempfile
        >>> net, x = nn.Linear(2, 3), torch.ones(4, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = load_pt2(export_pt2(net, (x,), f"{folder}/model.pt2"))
        >>> torch.equal(again(x), net(x))
        True
    """
    path = Path(path)
    if not path.is_file():
        raise no_file(path)
    try:
        file_bytes = path.stat().st_size
        with Archive(path) as archive:
            stored = archive.tensors("weights")
            constants = archive.tensors("constants")
            if twice := sorted(stored.keys() & constants.keys()):
                raise CorruptFile(f"tensor {twice[0]!r:.80} is stored twice")
            stored |= constants
            program = read_program(archive.graph(), list(stored))
            structure = archive.outputs()
        if structure is not None and not says_places(structure, _count(program.graph.output)):
            raise CorruptFile("what it says of its outputs is not what gossamer writes")
        _rehearse(program, stored, file_bytes)
        return Frozen(_network(program, stored, file_bytes), program.takes, structure)
    except GossamerError as error:
        raise CorruptFile(f"{path} is not a .pt2 file that can be read: {error}") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from error
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError, OverflowError) as error:
        told = f"{type(error).__name__}: {first_line(error)}"
        raise CorruptFile(f"{path} is not a .pt2 file that can be read: incomplete archive: {told}") from error


def _count(output: Any) -> int:
    """How many tensors a graph gives."""
    return sum(isinstance(leaf, Value | State) for leaf in tree_leaves(output))


def _network(program: Program, stored: dict[str, tuple[Tensor, bool]], file_bytes: int) -> Network:
    tensors, kept = [tensor for tensor, _ in stored.values()], [parameter for _, parameter in stored.values()]
    return Network(program.graph, list(stored), tensors, kept, file_bytes=file_bytes)


def _rehearse(program: Program, stored: dict[str, tuple[Tensor, bool]], file_bytes: int) -> None:
    """Run the graph on sizes alone. Raises BadInput where it asks for too much or cannot run."""
    without_data = {name: (on_meta(tensor), kept) for name, (tensor, kept) in stored.items()}
    network = _network(program, without_data, file_bytes)
    with contextlib.suppress(NotForeseen):
        network(*(taken.example() for taken in program.takes if taken.enters))


class Frozen(nn.Module):
    """The network of a file. It has no train mode, so eval() and train(False) do nothing and train() is refused."""

    out_of_file = True

    def __init__(self, network: Network, takes: tuple[Taken, ...], structure: Any = None) -> None:
        super().__init__()
        self.network = network
        self.takes = takes
        self.structure = structure
        self.training = False

    def forward(self, *inputs: Any) -> Any:
        leaves = inputs if all(isinstance(x, Tensor) for x in inputs) else tuple(tree_leaves(inputs))
        if len(leaves) != len(self.takes):
            raise BadInput(f"this network takes {len(self.takes)} inputs, not {len(leaves)}")
        for number, (leaf, taken) in enumerate(zip(leaves, self.takes), 1):
            taken.check(leaf, number)
        given = tuple(leaf for leaf, taken in zip(leaves, self.takes) if taken.enters)
        output = self.network(*given)
        return output if self.structure is None else put(list(tensors(output)), self.structure)

    def train(self, mode: bool = True) -> "Frozen":
        if mode:
            raise BadInput("a network out of a .pt2 file cannot be trained: it was exported in eval mode")
        return self
