"""The data that the user names on the command line.

A built-in name, a folder of class folders, `package.module:task`, or `auto`.
"""

import json
from pathlib import Path
from typing import Any

from gossamer.core.preprocessing import Preprocessing
from gossamer.core.progress import Progress, Silent
from gossamer.core.task import Task
from gossamer.core.user_code import call, is_reference, resolve
from gossamer.errors import BadInput, CorruptFile

AUTO = "auto"
PREPROCESSING = "preprocessing"  # in the header of a file of weights


def load_data(
    text: str,
    *,
    model: str | None = None,
    weights: Path | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    seed: int = 0,
    augment: bool = True,
    progress: Progress | None = None,
) -> Task:
    """The task of a data argument. "auto" takes Fashion-MNIST where it is found, else digits, and says which.

    model, weights: for which the data are. Images of a folder are then made as they were in the training of it, where
    that is known.

    batch_size: None for 128, fewer of large images. workers: threads that prepare batches ahead. A task of the user's
    own has its own of both.
    """
    if not is_reference(text):
        form = None
        if Path(text).is_dir():
            known = (preprocessing_for(str(source)) for source in (weights, model) if source is not None)
            form = next((one for one in known if one is not None), None)
        task = _loaded(text, form, batch_size=batch_size, seed=seed, augment=augment, progress=progress)
        for loader in (task.train, task.validation, task.test, task.calibration):
            loader.workers = workers or 0  # type: ignore[union-attr]
        return task
    given = {"--batch-size": batch_size, "--workers": workers}
    for option, value in given.items():
        if value is not None:
            raise BadInput(f"{option} is for built-in data and folders of images; {text} makes its own batches")
    made = call(resolve(text), text)
    if not isinstance(made, Task):
        raise BadInput(f"{text} returned {type(made).__name__}; it must return a gossamer.Task")
    return made


def _loaded(text: str, form: Preprocessing | None, *, progress: Progress | None, **options: Any) -> Task:
    from gossamer.data import default_task, load_task

    if text != AUTO:
        return load_task(text, progress=progress, preprocessing=form, **options)
    task, which = default_task(progress=progress, **options)
    (progress or Silent()).say(which)
    return task


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
            text = path.read_text(errors="replace")
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
