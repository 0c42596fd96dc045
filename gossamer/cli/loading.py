"""The network that the user names on the command line.

A name of the zoo, `package.module:factory`, `timm:NAME`, `torchvision:NAME`, `hf:NAME` or `hf:FOLDER`, an `.onnx`,
`.pt2` or `.gsr`, a result folder, or a `.safetensors` that `gossamer train` wrote.
"""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.cli.loading_data import PREPROCESSING
from gossamer.core.batches import cross_entropy
from gossamer.core.copies import load_state
from gossamer.core.progress import Progress, Silent
from gossamer.core.task import Task, description, refuse_outputs
from gossamer.core.user_code import call, is_reference, refuse_code_file, resolve
from gossamer.errors import BadInput, own_error, unknown

PRETRAINED = Path("pretrained")  # in the place of a file of weights: the library's own
DEPLOYED = "model.pt2"  # in a result folder
Say = Callable[[str], None]


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
    no task gives inputs; random: untrained weights will do; new_head: weights for other classes get a new last layer,
    since it is trained next."""

    model: str
    task: Task | None = None
    weights: Path | None = None
    random: bool = False
    new_head: bool = False
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


def load_model(request: Request, progress: Progress | None = None) -> Source:
    """The network of a model argument, in eval mode, with its weights loaded; it takes the example inputs. What it was
    changed for the data is said."""
    say = (progress or Silent()).say
    from gossamer.models.libraries import LIBRARIES

    refuse_code_file(request.model)
    kind, _, rest = request.model.partition(":")
    path = Path(request.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        if kind in LIBRARIES and rest:
            source = _from_library(request, say)
        elif is_reference(request.model):
            source = _from_factory(request, say)
        elif path.suffix in FILES:
            source = FILES[path.suffix](path, request, say)
        elif (path / DEPLOYED).is_file():
            source = replace(_from_pt2(path / DEPLOYED, request, say), name=path.name)
        else:
            source = _from_zoo(request, say)
    source.model.eval()
    _check_fit(source, request, say)
    return source if source.note else replace(source, note=_note(request, source))


def _note(request: Request, source: Source) -> dict[str, str]:
    """Which network it is, in the words of the command line, with the sizes of its input and output."""
    note = {"model": request.model} | ({"data": request.task.name} if request.task is not None else {})
    if request.task is not None and (about := description(request.task)):
        note[PREPROCESSING] = json.dumps(about)
    image = source.example_inputs[0]
    if isinstance(image, Tensor) and image.ndim == 4:
        note |= {"in_channels": str(image.shape[1]), "input_size": str(image.shape[3])}
    return note | ({"classes": str(request.classes)} if request.classes is not None else {})


def _check_fit(source: Source, request: Request, say: Say) -> None:
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
    if request.task is not None and not request.random and not _map_outputs(source, request, output, say):
        refuse_outputs(output, request.task, request.model)


def _map_outputs(source: Source, request: Request, output: Any, say: Say) -> bool:
    """Leave those outputs that the data has classes for, by the names that the library gives them, if it does."""
    from gossamer.models.head import keep_outputs
    from gossamer.models.libraries import LIBRARIES, class_names, outputs_of

    task, library = request.task, source.note.get("model", request.model)
    if task is None or library.partition(":")[0] not in LIBRARIES:
        return False
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] <= len(task.classes):
        return False
    kept = outputs_of(task.classes, class_names(library, output.shape[1])) if task.classes else None
    if kept is None:
        return False
    keep_outputs(source.model, kept, source.example_inputs)
    say(f"{request.model}: {len(kept)} of {output.shape[1]} outputs are kept, by the names of the data's classes")
    return True


def _from_zoo(request: Request, say: Say) -> Source:
    from gossamer.models import ENTRIES, build, build_for, pretrained

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
    _weigh(model, request, say)
    entry = ENTRIES[name]
    shape = (1, entry.in_channels, entry.input_size, entry.input_size)
    return Source(name=name, model=model, example_inputs=request.inputs or (torch.randn(shape),))


def _from_factory(request: Request, say: Say) -> Source:
    made = resolve(request.model)
    model = made if isinstance(made, nn.Module) else call(made, request.model)
    if not isinstance(model, nn.Module):
        raise BadInput(f"{request.model} returned {type(model).__name__}; it must return a torch.nn.Module")
    inputs = _needed_inputs(request)
    _weigh(model, request, say)
    return Source(name=request.model.rpartition(":")[2], model=model, example_inputs=inputs)


def _from_library(request: Request, say: Say) -> Source:
    """A network of timm, torchvision or transformers. Trained weights with another number of classes are refused or
    mapped later,
    or keep all but the last layer."""
    from gossamer.models.head import with_own_head

    own = request.weights is not None and request.weights != PRETRAINED
    bare = request.random or own
    model, inputs = _made(request, trained=not bare, fit=bare)
    if own:
        _weigh(model, request, say)
    elif request.new_head and not bare:
        fitted, _ = _made(request, trained=False, fit=True)
        tensors, layer = with_own_head(model.state_dict(), fitted)
        if layer is not None:
            load_state(fitted, tensors)
            model = fitted
            _say_new_head(request, layer, say)
    name = Path(request.model.partition(":")[2]).name
    return Source(name=name, model=model, example_inputs=request.inputs or inputs)


def _made(request: Request, *, trained: bool, fit: bool) -> tuple[nn.Module, tuple[Any, ...]]:
    """A library's network with its weights or without, and example inputs. fit: to the data's classes, and its
    channels where the library can do that."""
    from gossamer.models import libraries

    kind, _, name = request.model.partition(":")
    if kind == "hf":
        from gossamer.models.hugging_face import load_hugging_face
        from gossamer.runtime.metadata import Interface

        found = load_hugging_face(name, trained=trained, classes=request.classes if fit else None)
        if found.names:
            sizes = {number: {0: "batch", 1: "tokens"} for number in range(len(found.names))}
            found.model.interface = Interface(inputs=found.names, free=sizes)  # type: ignore[assignment]
        return found.model, found.inputs
    form = libraries.preprocessing_of(request.model)
    options: dict[str, Any] = {"num_classes": request.classes} if fit and request.classes else {}
    if kind == "timm":
        timm = libraries.installed("timm")
        options |= {"in_chans": request.channels} if fit and request.channels else {}
        model = _library_call(request.model, lambda: timm.create_model(name, pretrained=trained, **options))
        return model, (torch.randn(1, *getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))),)
    models, weights = libraries.installed("torchvision").models, "DEFAULT" if trained else None
    if not trained and "weights_backbone" in signature(models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None  # the default is a download
    model = _library_call(request.model, lambda: models.get_model(name, weights=weights, **options))
    side = form.size if form is not None else 224
    return model, (torch.randn(1, 3, side, side),)


def _say_new_head(request: Request, layer: str, say: Say) -> None:
    say(f"{request.model}: {layer} is new, with {request.classes} outputs; all other weights are the trained ones")


def _from_pt2(path: Path, request: Request, _: Say) -> Source:
    from gossamer.runtime.pt2.file import load_pt2

    if request.weights is not None:
        raise BadInput(f"{path} has its weights inside; leave --weights out")
    model = load_pt2(_existing(path))
    return Source(name=path.stem, model=model, example_inputs=_needed_inputs(request))


def _from_safetensors(path: Path, request: Request, say: Say) -> Source:
    """A file of `gossamer train` or of a result, whose header says which network its weights are for. Of what the
    header says no code of the user's is run: a network of theirs has to be named."""
    from gossamer.models import build, load_weights
    from gossamer.models.libraries import LIBRARIES
    from gossamer.models.weights import STRUCTURE, read_metadata

    note = read_metadata(_existing(path))
    note.pop(STRUCTURE, None)
    name = note.get("model", "")
    kind = name.partition(":")[0]
    if kind in LIBRARIES:
        return replace(_from_library(replace(request, model=name, weights=path), say), note=note)
    try:
        channels, classes, side = (int(note[key]) for key in ("in_channels", "classes", "input_size"))
        model = build(name, in_channels=channels, classes=classes, input_size=side)
    except (ValueError, KeyError, BadInput) as error:
        known = f"its weights are for {name}" if name else "it does not say which network its weights are for"
        shown = name if is_reference(name) else "the network"
        raise BadInput(f"{path}: {known}; name {shown} as MODEL and add --weights {shlex.quote(str(path))}") from error
    load_weights(model, path)
    inputs = request.inputs or (torch.randn(1, channels, side, side),)
    return Source(name=name, model=model, example_inputs=inputs, note=note)


def _from_gsr(path: Path, request: Request, _: Say) -> Source:
    from gossamer.compact.reading import load

    if request.weights is not None:
        raise BadInput(f"{path} has its weights inside; leave --weights out")
    return Source(name=path.stem, model=load(_existing(path)), example_inputs=_needed_inputs(request))


def _from_onnx(path: Path, request: Request, say: Say) -> Source:
    """A network out of an ONNX file, compared with ONNX Runtime node by node on the inputs at hand."""
    from gossamer.onnx_import import check_import, example_inputs, import_onnx

    if request.weights is not None:
        raise BadInput(f"{path} has its weights inside; leave --weights out")
    network = import_onnx(_existing(path))
    inputs = request.inputs or example_inputs(network)
    worst = check_import(path, network, inputs)
    say(f"{path.name}: {len(network.steps)} nodes are imported; against ONNX Runtime {worst:.1g} relative")
    return Source(name=path.stem, model=network, example_inputs=inputs)


def judged(task: Task, source: Source, say: Say) -> Task:
    """The task; of data without labels with what the network says in their place, unless it has a metric of its own."""
    from gossamer.data.unlabelled import NoLabels
    from gossamer.measure import Top1, has_labels, judged_by

    if has_labels(task):
        return task
    known = judged_by(task, source.model)
    if isinstance(task.metric, Top1 | NoLabels):
        say(f"{task.name} has no labels: networks are judged by how far they agree with {source.name}")
        return known
    say(f"{task.name} has no labels: networks are judged by its metric, {task.metric.name}")
    return replace(task, loss=known.loss) if task.loss is cross_entropy else task


def ready_to_train(text: str, source: Source, task: Task, say: Say) -> None:
    """A network out of an ONNX file gets the batch norms back that its exporter folded. text: the model argument."""
    if Path(text).suffix != ".onnx":
        return
    from gossamer.onnx_import import OnnxNetwork, put_back_norms

    if isinstance(source.model, OnnxNetwork) and (norms := put_back_norms(source.model, task.calibration)):
        say(f"{source.name}: {norms} batch norms are put back behind convolutions, with what they give on the data")


FILES: dict[str, Callable[[Path, Request, Say], Source]] = {
    ".pt2": _from_pt2,
    ".gsr": _from_gsr,
    ".onnx": _from_onnx,
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


def _weigh(model: nn.Module, request: Request, say: Say) -> None:
    from gossamer.models import load_weights

    if request.weights is not None:
        told = (lambda layer: _say_new_head(request, layer, say)) if request.new_head else None
        load_weights(model, request.weights, new_head=told)


def _library_call(text: str, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except Exception as error:
        raise BadInput(
            f"{text} could not be made: {own_error(error)}; weights that cannot be downloaded are given with "
            "--weights FILE"
        ) from error
