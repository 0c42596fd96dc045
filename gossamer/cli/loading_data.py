"""The data that the user names on the command line.

A built-in name, a folder of class folders, `package.module:task`, or `auto`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.core.preprocessing import Preprocessing
from gossamer.core.progress import Progress, Silent
from gossamer.core.task import Task
from gossamer.core.user_code import call, is_reference, refuse_code_file, resolve
from gossamer.errors import BadInput, CorruptFile

AUTO = "auto"
USUAL_BATCH = 64
PREPROCESSING = "preprocessing"  # in the header of a file of weights


@dataclass(frozen=True, kw_only=True)
class Consumer:
    """The network that data are for, and what the user says of the data.

    Attributes:
        model: the network, as far as it is named; it may say how images become inputs.
        weights: of the network; they may say it, too.
        preprocessing: what the user says of that (`image_fields.parse_fields`), which comes first.
        skip_faulty: faulty boxes are left out instead of refused.
    """

    model: str | None = None
    weights: Path | None = None
    preprocessing: str | None = None
    skip_faulty: bool = False


def load_data(
    text: str,
    *,
    consumer: Consumer | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    seed: int = 0,
    augment: bool | None = None,
    progress: Progress | None = None,
) -> Task:
    """The task of a data argument. "auto" takes Fashion-MNIST where it is found, else digits, and says which.

    consumer: the network that the data are for. Images of a folder are made as it wants them, as far as that is known.

    batch_size: None for 128, fewer of large images. workers: threads that prepare batches ahead. augment: None for yes.
    A task of the user's own has its own of all three.
    """
    consumer = consumer or Consumer()
    refuse_code_file(text)
    if not is_reference(text):
        form, chosen = None, dict[str, Any]()
        if Path(text).is_dir():
            sources = (consumer.weights, consumer.model)
            known = (preprocessing_for(str(source)) for source in sources if source is not None)
            form = next((one for one in known if one is not None), None)
            chosen = _image_fields(consumer, form, progress)
        elif consumer.preprocessing is not None:
            raise BadInput(f"--preprocessing is for folders of images; {text} has its own")
        options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "augment": augment is not False}
        options |= {"progress": progress}
        if consumer.skip_faulty:
            options["faulty"] = "skip"
        if consumer.skip_faulty and not Path(text).is_dir():
            raise BadInput(f"--skip-faulty is for folders with boxes; {text} has none that are faulty")
        task = _loaded(text, form, image_fields=chosen, **options)
        for loader in (task.train, task.validation, task.test, task.calibration):
            loader.workers = workers or 0  # type: ignore[union-attr]
        return task
    given = {
        "--batch-size": batch_size,
        "--workers": workers,
        "--preprocessing": consumer.preprocessing,
        "--skip-faulty": consumer.skip_faulty or None,
    }
    for option, value in given.items():
        if value is not None:
            raise BadInput(f"{option} is for built-in data and folders of images; {text} makes its own batches")
    made = call(resolve(text), text)
    if not isinstance(made, Task):
        raise BadInput(f"{text} returned {type(made).__name__}; it must return a gossamer.Task")
    return made


def _image_fields(consumer: Consumer, form: Preprocessing | None, progress: Progress | None) -> dict[str, Any]:
    """What the user says of images, and before it what an `.onnx` file says that does not know its preprocessing."""
    from gossamer.cli.image_fields import fields_of_onnx, parse_fields

    model, chosen = consumer.model, parse_fields(consumer.preprocessing) if consumer.preprocessing is not None else {}
    if form is None and model is not None and Path(model).suffix == ".onnx" and Path(model).is_file():
        say = (progress or Silent()).say if "mean" not in chosen else Silent().say
        return fields_of_onnx(Path(model), say) | chosen
    return chosen


def _loaded(
    text: str,
    form: Preprocessing | None,
    *,
    image_fields: dict[str, Any],
    progress: Progress | None,
    **options: Any,
) -> Task:
    from gossamer.data import default_task, load_task

    if text != AUTO:
        return load_task(text, progress=progress, preprocessing=form, image_fields=image_fields, **options)
    task, which = default_task(progress=progress, **options)
    (progress or Silent()).say(which)
    return task


def usual_batch(inputs: Sequence[Any], asked: int | None) -> int:
    """Samples of a call that is timed: as many as were asked for, or 64, fewer where they are large."""
    if asked is not None:
        return asked
    from gossamer.data.batches import largest_batch

    return min(USUAL_BATCH, largest_batch(inputs[0].shape))


def preprocessing_for(model: str) -> Preprocessing | None:
    """How images become inputs of a network: from its library's configuration, or as a result folder, an `.onnx` or a
    file of weights says. None where nobody does."""
    from gossamer.models.libraries import LIBRARIES, preprocessing_of
    from gossamer.models.weights import read_metadata

    path = Path(model)
    if model.partition(":")[0] in LIBRARIES:
        return preprocessing_of(model)
    if path.is_dir():
        path = path / "preprocessing.json"
    if not path.is_file():
        return None
    note: dict[str, str] = {}
    match path.suffix:
        case ".json":
            text = path.read_text(encoding="utf-8", errors="replace")
        case ".onnx":
            from gossamer.runtime.onnx_clean import about

            text = about(path)
        case ".safetensors":
            note = read_metadata(path)
            text = note.get(PREPROCESSING, "")
        case _:
            return None
    if not text:
        return preprocessing_of(note["model"]) if note.get("model", "").partition(":")[0] in LIBRARIES else None
    try:
        known = json.loads(text)
        if not isinstance(known, dict):
            raise ValueError(f"a JSON object is expected, not {text[:40]!r}")
        return Preprocessing.parse(known) if "size" in known else None
    except (ValueError, TypeError) as error:
        raise CorruptFile(f"{path}: {error}") from error
