"""What the user names on the command line, turned into a network and a task.

A model: a name of the zoo, `package.module:factory`, `timm:NAME`, `torchvision:NAME`, a `.pt2` or `.gsr`, a result
folder, or a `.safetensors` that `gossamer train` wrote. Data: a built-in name, a folder of class folders,
`package.module:task`, or `auto`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import BadInput, MissingExtra, own_error, require, unknown
from gossamer.references import call, is_reference, resolve
from gossamer.run import Progress, Silent
from gossamer.task import Task

AUTO = "auto"
BATCH_SIZE = 128
DEPLOYED = "model.pt2"  # in a result folder


@dataclass(frozen=True, kw_only=True)
class Source:
    """A network with inputs that it takes. name: short, fit for a folder name. note: what a file of its weights has to
    say, so that `load_model` makes the network again from that file alone."""

    name: str
    model: nn.Module
    example_inputs: tuple[Any, ...]
    note: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which network is wanted. task: its name chooses the shipped weights; shape: of one input, with its batch, where
    no task gives inputs; random: untrained weights will do."""

    model: str
    task: Task | None = None
    weights: Path | None = None
    random: bool = False
    shape: tuple[int, ...] | None = None
    seed: int = 0

    @property
    def inputs(self) -> tuple[Any, ...] | None:
        """Example inputs, as far as the request itself says."""
        if self.task is not None:
            return self.task.example_inputs
        return None if self.shape is None else (torch.randn(self.shape, generator=torch.Generator().manual_seed(0)),)

    @property
    def classes(self) -> int | None:
        return len(self.task.classes) or None if self.task is not None else None

    @property
    def channels(self) -> int | None:
        return self._image_size(1)

    @property
    def side(self) -> int | None:
        return self._image_size(3)

    def _image_size(self, dim: int) -> int | None:
        first = self.inputs[0] if self.inputs else None
        return int(first.shape[dim]) if isinstance(first, Tensor) and first.ndim == 4 else None


def load_data(
    text: str,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    seed: int = 0,
    augment: bool = True,
    progress: Progress | None = None,
) -> Task:
    """The task of a data argument. "auto" takes Fashion-MNIST where it is found, else digits, and says which.

    batch_size: None for 128. workers: threads that prepare batches ahead. A task of the user's own has its own of both.
    """
    if not is_reference(text):
        size = BATCH_SIZE if batch_size is None else batch_size
        task = _loaded(text, batch_size=size, seed=seed, augment=augment, progress=progress)
        for loader in (task.train, task.validation, task.test, task.calibration):
            loader.workers = workers or 0  # type: ignore[attr-defined]
        return task
    given = {"--batch-size": batch_size, "--workers": workers}
    for option, value in given.items():
        if value is not None:
            raise BadInput(f"{option} is for built-in data and folders of images; {text} makes its own batches")
    made = call(resolve(text), text)
    if not isinstance(made, Task):
        raise BadInput(f"{text} returned {type(made).__name__}; it must return a gossamer.Task")
    return made


def _loaded(text: str, *, progress: Progress | None, **options: Any) -> Task:
    from gossamer.data import default_task, load_task

    if text != AUTO:
        return load_task(text, progress=progress, **options)
    task, which = default_task(progress=progress, **options)
    (progress or Silent()).say(which)
    return task


def load_model(request: Request) -> Source:
    """The network of a model argument, in eval mode, with its weights loaded; it takes the example inputs."""
    kind, _, rest = request.model.partition(":")
    path = Path(request.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        if kind in _LIBRARIES and rest:
            source = _LIBRARIES[kind](rest, request)
        elif is_reference(request.model):
            source = _from_factory(request)
        elif path.suffix in FILES:
            source = FILES[path.suffix](path, request)
        elif (path / DEPLOYED).is_file():
            source = replace(_from_pt2(path / DEPLOYED, request), name=path.name)
        else:
            source = _from_zoo(request)
    source.model.eval()
    _check_fit(source, request)
    return source if source.note else replace(source, note=_note(request, source))


def _note(request: Request, source: Source) -> dict[str, str]:
    """Which network it is, in the words of the command line, with the sizes of its input and output."""
    note = {"model": request.model} | ({"data": request.task.name} if request.task is not None else {})
    image = source.example_inputs[0]
    if isinstance(image, Tensor) and image.ndim == 4:
        note |= {"in_channels": str(image.shape[1]), "input_size": str(image.shape[3])}
    return note | ({"classes": str(request.classes)} if request.classes is not None else {})


def _check_fit(source: Source, request: Request) -> None:
    """Run the network once on what it will be given."""
    shapes = ", ".join("x".join(map(str, x.shape)) for x in source.example_inputs if isinstance(x, Tensor))
    try:
        with torch.no_grad():
            output = source.model(*source.example_inputs)
    except Exception as error:
        origin = "--input" if request.task is None else f"the data {request.task.name}"
        raise BadInput(
            f"{request.model} rejects inputs of shape {shapes} (from {origin}): {own_error(error)}"
        ) from error
    classes = request.classes
    if classes and isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] < classes:
        raise BadInput(f"{request.model} gives {output.shape[1]} outputs, but the data has {classes} classes")


def _from_zoo(request: Request) -> Source:
    from gossamer.models import ENTRIES, build, build_for, load_weights, pretrained

    name = request.model
    if name not in ENTRIES:
        raise unknown("model", name, ENTRIES, listed="`gossamer models`")
    if request.weights is None and not request.random:
        if request.task is None:
            raise BadInput(f"{name}: the data that it was trained on is not given: add --data, --weights or --random")
        model = pretrained(name, request.task.name)
    elif request.task is not None:
        model = build_for(name, request.task)
    else:
        model = build(name, in_channels=request.channels, input_size=request.side)
    if request.weights is not None:
        load_weights(model, request.weights)
    entry = ENTRIES[name]
    shape = (1, entry.in_channels, entry.input_size, entry.input_size)
    return Source(name=name, model=model, example_inputs=request.inputs or (torch.randn(shape),))


def _from_factory(request: Request) -> Source:
    made = resolve(request.model)
    model = made if isinstance(made, nn.Module) else call(made, request.model)
    if not isinstance(model, nn.Module):
        raise BadInput(f"{request.model} returned {type(model).__name__}; it must return a torch.nn.Module")
    inputs = _needed_inputs(request)
    _weigh(model, request)
    return Source(name=request.model.rpartition(":")[2], model=model, example_inputs=inputs)


def _from_timm(name: str, request: Request) -> Source:
    timm = _library("timm")
    if name not in timm.list_models():
        raise unknown("timm model", name, timm.list_models(), listed="`timm.list_models()`")
    bare = request.random or request.weights is not None
    sizes = {"num_classes": request.classes, "in_chans": request.channels} if bare else {}
    options = {key: value for key, value in sizes.items() if value is not None}
    model = _library_call(f"timm:{name}", lambda: timm.create_model(name, pretrained=not bare, **options))
    facts: Any = model.default_cfg
    shape = (1, *facts.get("input_size", (3, 224, 224)))
    return _weighed(name, model, request, shape)


def _from_torchvision(name: str, request: Request) -> Source:
    models = _library("torchvision").models
    if name not in models.list_models():
        raise unknown("torchvision model", name, models.list_models(), listed="`torchvision.models.list_models()`")
    bare = request.random or request.weights is not None
    options = {"num_classes": request.classes} if bare and request.classes else {}
    model = _library_call(
        f"torchvision:{name}", lambda: models.get_model(name, weights=None if bare else "DEFAULT", **options)
    )
    side = 299 if name == "inception_v3" else 224
    return _weighed(name, model, request, (1, 3, side, side))


_LIBRARIES: dict[str, Callable[[str, Request], Source]] = {"timm": _from_timm, "torchvision": _from_torchvision}


def _from_pt2(path: Path, request: Request) -> Source:
    from gossamer.deploy import load_pt2

    if request.weights is not None:
        raise BadInput(f"{path} has its weights inside; leave --weights out")
    model = load_pt2(_existing(path))
    return Source(name=path.stem, model=model, example_inputs=_needed_inputs(request))


def _from_safetensors(path: Path, request: Request) -> Source:
    """A file of `gossamer train` or of a result, whose header says which network its weights are for. Of what the
    header says no code of the user's is run: a network of theirs has to be named."""
    from gossamer.models import build, load_weights
    from gossamer.models.weights import STRUCTURE, read_metadata

    note = read_metadata(_existing(path))
    note.pop(STRUCTURE, None)
    name = note.get("model", "")
    kind = name.partition(":")[0]
    if kind in _LIBRARIES:
        return replace(_LIBRARIES[kind](name.partition(":")[2], replace(request, model=name, weights=path)), note=note)
    try:
        channels, classes, side = (int(note[key]) for key in ("in_channels", "classes", "input_size"))
        model = build(name, in_channels=channels, classes=classes, input_size=side)
    except (ValueError, KeyError, BadInput) as error:
        known = f"its weights are for {name}" if name else "it does not say which network its weights are for"
        shown = name if is_reference(name) else "the network"
        raise BadInput(f"{path}: {known}; name {shown} as MODEL and add --weights {path}") from error
    load_weights(model, path)
    inputs = request.inputs or (torch.randn(1, channels, side, side),)
    return Source(name=name, model=model, example_inputs=inputs, note=note)


def _from_gsr(path: Path, request: Request) -> Source:
    from gossamer.deploy.gsr import load

    if request.weights is not None:
        raise BadInput(f"{path} has its weights inside; leave --weights out")
    return Source(name=path.stem, model=load(_existing(path)), example_inputs=_needed_inputs(request))


FILES: dict[str, Callable[[Path, Request], Source]] = {
    ".pt2": _from_pt2,
    ".gsr": _from_gsr,
    ".safetensors": _from_safetensors,
}


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    return path


def _needed_inputs(request: Request) -> tuple[Any, ...]:
    if request.inputs is None:
        raise BadInput(f"{request.model}: unknown what it takes; add --data, or --input such as 1x3x224x224")
    return request.inputs


def _weighed(name: str, model: nn.Module, request: Request, shape: tuple[int, ...]) -> Source:
    _weigh(model, request)
    return Source(name=name, model=model, example_inputs=request.inputs or (torch.randn(shape),))


def _weigh(model: nn.Module, request: Request) -> None:
    from gossamer.models import load_weights

    if request.weights is not None:
        load_weights(model, request.weights)


def _library(name: str) -> Any:
    """The library, which is also the name of the extra that brings it."""
    try:
        return require(name, name)
    except MissingExtra:
        raise
    except Exception as error:  # torchvision without its compiled part, for one
        raise BadInput(f"{name} is installed but cannot be imported: {own_error(error)}") from error


def _library_call(text: str, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except Exception as error:
        raise BadInput(
            f"{text} could not be made: {own_error(error)}; weights that cannot be downloaded are given with "
            "--weights FILE, and --random does without"
        ) from error
