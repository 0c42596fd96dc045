"""What the names on a command line stand for, looked at before anything is loaded: a slip costs no minutes."""

from pathlib import Path

from gossamer.cli.loading import DEPLOYED, FILES, PRETRAINED
from gossamer.core.user_code import is_reference, refuse_code_file, resolve
from gossamer.errors import BadInput, no_file, unknown

RESULTS = (DEPLOYED, "model.int8.onnx", "model.onnx")  # one of these is in a result folder
WEIGHTS = (".safetensors", ".pt", ".pth")


def check_model(text: str, weights: Path | None = None) -> None:
    """Refuse a model argument that names nothing, and weights that are no file of weights.

    Code of the user's is imported, libraries are asked for their names. Nothing is built or read.
    """
    from gossamer.models.libraries import LIBRARIES

    refuse_code_file(text)
    kind, _, name = text.partition(":")
    path = Path(text)
    if kind in LIBRARIES and name:
        _check_library(kind, name)
    elif is_reference(text):
        resolve(text)
    elif path.suffix in FILES:
        if not path.is_file():
            raise no_file(path)
    else:
        _check_name(text)
    if weights is not None and weights != PRETRAINED:
        if path.suffix in FILES and path.suffix != ".safetensors":
            raise BadInput(f"{path} has its weights inside; leave --weights out")
        if not weights.is_file():
            raise no_file(weights)
        if weights.suffix not in WEIGHTS:
            raise BadInput(f"--weights {weights}: weights are a {', '.join(WEIGHTS)} file, or `pretrained`")


def _check_library(kind: str, name: str) -> None:
    from gossamer.models.libraries import configuration, trained_weights

    if kind == "timm":
        configuration(name)
    elif kind == "torchvision":
        trained_weights(name)


def _check_name(text: str) -> None:
    """A name of the zoo, or a result folder."""
    from gossamer.models import ENTRIES

    path = Path(text)
    if text in ENTRIES or any((path / name).is_file() for name in RESULTS):
        return
    if path.is_dir():
        raise BadInput(f"{text} is a folder without a model.onnx; it is not a result of gossamer compress")
    if path.parent != Path():
        raise BadInput(f"{text}: no such file or folder")
    raise unknown("model", text, ENTRIES, listed="`gossamer models`")
