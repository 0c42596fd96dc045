"""Trained networks that ship with gossamer."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import nn

from gossamer.core.kinds import checked_arguments
from gossamer.errors import BadInput, unknown
from gossamer.models.weights import load_weights
from gossamer.models.zoo import ENTRIES, build

FOLDER = Path(__file__).parent / "checkpoints"


@dataclass(frozen=True, kw_only=True)
class ShippedWeights:
    """One shipped file of weights.

    Args:
        name: of the network in the zoo.
        data: the data set that it was trained on.
        path: of the file.
        top1: percent on the test split of `data`.
        recipe: what it was trained with.
        in_channels: of the images.
        classes: number of outputs.
        input_size: side of the images, in pixels.

    Example:
        >>> any(one.name == "resnet14" for one in checkpoints())
        True
    """

    name: str
    data: str
    path: Path
    top1: float
    recipe: str
    in_channels: int
    classes: int
    input_size: int


def checkpoints() -> list[ShippedWeights]:
    """List every shipped checkpoint, by name.

    Returns:
        The checkpoints with their accuracy on test data and their recipe.

    Example:
        >>> all(one.top1 > 80 for one in checkpoints())
        True
    """
    return [_read(path) for path in sorted(FOLDER.glob("*.safetensors"))]


@checked_arguments
def pretrained(name: str, data: str) -> nn.Module:
    """Build a network of the zoo with the shipped weights for a data set.

    Args:
        name: of the network.
        data: of the data set.

    Returns:
        The network, in float32 and eval mode.

    Raises:
        BadInput: where no such weights are shipped; `gossamer models` lists them.

    Example:
        >>> pretrained("lenet300", "fashion-mnist").training
        False
    """
    shipped = {(c.name, c.data): c for c in checkpoints()}
    if (name, data) not in shipped:
        names = [f"{n} on {d}" for n, d in shipped]
        if name not in ENTRIES:
            raise unknown("checkpoint", f"{name} on {data}", names, listed="`gossamer models`")
        if name not in {n for n, _ in shipped}:
            what = f"no trained weights of {name} come with gossamer"
            raise BadInput(
                f"{what} (gossamer.models.checkpoints() lists those that do): build({name!r}) makes the network, fit "
                "trains it, load_weights reads a file of weights",
                shell=f"{what} (`gossamer models` lists those that do): train it with `gossamer train {name}`, give "
                "--weights, or --random where untrained weights will do",
            )
        there = ", ".join(d for n, d in shipped if n == name)
        what = f"no checkpoint of {name} for {data!r}; there is one for: {there}; train it"
        raise BadInput(
            f"{what} with fit(build({name!r}), task, ...), or read its weights with load_weights",
            shell=f"{what}: `gossamer train {name} --data {data}`, or give --weights (of a teacher NAME=FILE)",
        )
    found = shipped[name, data]
    model = build(name, in_channels=found.in_channels, classes=found.classes, input_size=found.input_size)
    return load_weights(model, found.path).eval()


def _read(path: Path) -> ShippedWeights:
    name, _, data = path.stem.partition("-")
    with safe_open(path, framework="pt") as file:
        meta: dict[str, str] = file.metadata() or {}
    return ShippedWeights(
        name=name,
        data=data,
        path=path,
        top1=float(meta["top1"]),
        recipe=meta.get("recipe", ""),
        in_channels=int(meta["in_channels"]),
        classes=int(meta["classes"]),
        input_size=int(meta["input_size"]),
    )
