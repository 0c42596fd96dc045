"""Weights in files: safetensors, and torch files that hold tensors only."""

import pickle
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from gossamer.core.copies import state_of
from gossamer.core.kinds import checked_arguments
from gossamer.core.record import write_bytes
from gossamer.errors import BadInput, CorruptFile, first_line, no_file
from gossamer.models.head import with_own_head
from gossamer.modules.replay import restore
from gossamer.modules.structure import Structure

STRUCTURE = "gossamer.structure"
WRAPPERS = ("state_dict", "model_state_dict", "model")


def save_weights(
    model: nn.Module,
    path: Path | str,
    metadata: Mapping[str, str],
    *,
    half: bool = False,
    structure: Structure | None = None,
) -> None:
    """Write parameters and buffers as safetensors, atomically.

    Args:
        model: the network.
        path: of the file.
        metadata: of the file's header.
        half: store floating-point tensors as float16.
        structure: of a network that was changed, to be replayed on one as it was before.

    Raises:
        OSError: the file cannot be written; what was there is left as it was.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "net.safetensors"
        >>> save_weights(torch.nn.Linear(3, 2), path, {"model": "linear"})
        >>> load_weights(torch.nn.Linear(3, 2), path)
        Linear(in_features=3, out_features=2, bias=True)
    """
    tensors = {}
    for name, tensor in state_of(model).items():
        tensor = tensor.detach().cpu()
        # clone: safetensors refuses tensors that share memory
        tensors[name] = tensor.half() if half and tensor.is_floating_point() else tensor.clone().contiguous()
    more = {} if structure is None else {STRUCTURE: structure.text()}
    write_bytes(Path(path), save(tensors, {**metadata, **more}))


@checked_arguments
def load_weights(model: nn.Module, path: Path | str, *, new_head: Callable[[str], None] | None = None) -> nn.Module:
    """Put the weights of a `.safetensors` file, or of a `.pt`/`.pth` file that holds tensors only, into the model.

    Half precision is converted to the model's own dtype. A first part that all names share and the model has not
    (`module.`) is left out. Weights of a compressed network go into the network as it was before, which gets the
    compressed structure, or into one that has it already.

    Args:
        model: is changed in place; it stays as it was when names or shapes do not fit.
        path: of the file.
        new_head: one layer with another number of outputs may stay the model's own; it is told which. None: none may.

    Returns:
        The model.

    Raises:
        BadInput: names, shapes or values that cannot be used.
        CorruptFile: the file is damaged.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(torch.nn.Linear(2, 1), f"{folder}/one.safetensors", {})
        ...     load_weights(torch.nn.Linear(2, 1), f"{folder}/one.safetensors")
        Linear(in_features=2, out_features=1, bias=True)
    """
    path = Path(path)
    tensors = _unwrapped(read_weights(path), state_of(model))
    broken = next((name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()), None)
    if broken is not None:
        raise BadInput(f"{path}: {broken} holds NaN or infinite values")
    if new_head is not None:
        tensors, layer = with_own_head(tensors, model)
        if layer is not None:
            new_head(layer)
    text = read_metadata(path).get(STRUCTURE) if path.suffix == ".safetensors" else None
    try:
        restore(model, tensors, None if text is None else Structure.parse(text), str(path))
    except CorruptFile as error:
        raise CorruptFile(f"{path}: {error}") from error
    return model


def read_metadata(path: Path) -> dict[str, str]:
    """What the header of a safetensors file says about it."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise CorruptFile(f"{path} is not a safetensors file, or it is damaged: {first_line(error)}") from error


def _unwrapped(tensors: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Without what the wrapper of a training (`module.`, `_orig_mod.`, `model.`) puts before every name."""
    bare = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
    first = {name.partition(".")[0] for name in tensors}
    return bare if len(first) == 1 and bare.keys() == set(own) else tensors


def read_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors of a file of weights, on the CPU."""
    if not path.is_file():
        raise no_file(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CorruptFile(f"{path} is not a safetensors file, or it is damaged: {first_line(error)}") from error
    if path.suffix not in (".pt", ".pth"):
        raise BadInput(
            f"{path}: weights must be a .safetensors, .pt or .pth file, not {path.suffix or 'without suffix'}"
        )
    return _state_dict(_torch_load(path), path)


def _torch_load(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            # Said of pickles of other protocols than torch's own, which are then refused or read like all others.
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BadInput(
            f"{path} holds more than tensors (a pickled model?), and gossamer unpickles nothing, because that can run "
            "code; save its tensors where it was made: torch.save(model.state_dict(), 'weights.pt')"
        ) from error
    # A damaged file makes torch's reader raise nearly anything.
    except Exception as error:
        raise CorruptFile(f"{path} is not a torch file, or it is damaged: {first_line(error)}") from error


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    """The tensors by name, also where a training checkpoint wraps them."""
    if isinstance(content, dict):
        for key in WRAPPERS:
            if isinstance(content.get(key), dict):
                content = content[key]
                break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise BadInput(f"{path} must hold a state_dict: a dictionary of tensors by name")
    return {str(name): tensor for name, tensor in content.items()}
