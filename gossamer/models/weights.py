"""Weights in files: safetensors, and torch files that hold tensors only."""

import pickle
import warnings
from collections.abc import Collection, Mapping
from itertools import zip_longest
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from gossamer.errors import BadInput, CorruptFile
from gossamer.record import write_bytes

MOST_MISMATCHES = 5
WRAPPERS = ("state_dict", "model_state_dict", "model")


def save_weights(model: nn.Module, path: Path | str, metadata: Mapping[str, str], *, half: bool = False) -> None:
    """Write parameters and buffers as safetensors, atomically; `half` stores floating-point tensors as float16."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu()
        # clone: safetensors refuses tensors that share memory
        tensors[name] = tensor.half() if half and tensor.is_floating_point() else tensor.clone().contiguous()
    write_bytes(Path(path), save(tensors, dict(metadata)))


def load_weights(model: nn.Module, path: Path | str) -> nn.Module:
    """Put the weights of a `.safetensors` file, or of a `.pt`/`.pth` file that holds tensors only, into the model.

    Changes the model in place and gives it back. Half precision is converted to the model's own dtype. A first part
    that all names share and the model has not (`module.`) is left out. The model stays as it was when names or shapes
    do not fit.
    """
    path = Path(path)
    own = model.state_dict()
    tensors = _unwrapped(read_tensors(path), own)
    missing = [f"{name} is missing" for name in own if name not in tensors]
    strange = [f"{name} is not in the model" for name in tensors if name not in own]
    misfits = [one for pair in zip_longest(missing, strange) for one in pair if one]
    misfits += [
        f"{name} has shape {tuple(tensors[name].shape)}, the model needs {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if misfits:
        more = f"; and {len(misfits) - MOST_MISMATCHES} more" if len(misfits) > MOST_MISMATCHES else ""
        listed = "; ".join(misfits[:MOST_MISMATCHES])
        raise BadInput(
            f"the weights of {path} do not fit {type(model).__name__}: {listed}{more}; "
            "build the model with the numbers of channels and classes that it was trained with"
        )
    broken = next((name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()), None)
    if broken is not None:
        raise BadInput(f"{path}: {broken} holds NaN or infinite values")
    model.load_state_dict(tensors)
    return model


def _unwrapped(tensors: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Without what the wrapper of a training (`module.`, `_orig_mod.`, `model.`) puts before every name."""
    bare = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
    first = {name.partition(".")[0] for name in tensors}
    return bare if len(first) == 1 and bare.keys() == set(own) else tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a file of weights, on the CPU."""
    if not path.is_file():
        raise BadInput(f"no such file of weights: {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CorruptFile(f"{path} is not a safetensors file, or it is damaged: {error}") from error
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
        raise CorruptFile(f"{path} is not a torch file, or it is damaged: {error}") from error


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
