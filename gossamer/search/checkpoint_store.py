"""What a job has already found out, on disk, so that a killed job goes on where it was."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gossamer.constraints.apply import materialize
from gossamer.constraints.serialization import constraint_spec, restore_constraints
from gossamer.core.context import Context
from gossamer.core.copies import copy_network, state_of
from gossamer.core.record import Curve, Edit, to_json, write_text
from gossamer.core.task import Task
from gossamer.errors import BadInput, CorruptFile
from gossamer.methods._base import Method
from gossamer.models.weights import read_weights, save_weights

FORMAT = "journal 4"  # what is remembered of a step; work in another format is another job's


class CheckpointStore:
    """Named results of the steps of one job. A step that is in the store is not done again.

    With a folder, every result is written before the next step starts: numbers to `journal.json`, networks to
    `<step>.safetensors`. Timings are results too, so a job that goes on decides as it would have.
    """

    def __init__(self, folder: Path | None, fingerprint: str) -> None:
        self.folder = folder
        self.results: dict[str, Any] = {}
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "journal.json"
        if not path.exists() and any(folder.iterdir()):  # a job deletes what it no longer needs there
            raise BadInput(f"{folder} holds files that are not of a job of gossamer; name another output folder")
        if path.exists():
            known = _read(path)
            if known["fingerprint"] != fingerprint:
                raise BadInput(
                    f"{folder.parent} holds the work of another job (another network, data, goal or recipe); "
                    f"name another folder, or delete {folder} to start over there"
                )
            self.results = known["results"]
        self.fingerprint = fingerprint
        self._write()

    def get_or_compute(self, name: str, compute: Callable[[], Any]) -> Any:
        """The JSON value of this step: from the store, else computed and kept."""
        if name not in self.results:
            self.results[name] = json.loads(json.dumps(compute()))
            self._write()
        return self.results[name]

    def get_or_compute_model(
        self, name: str, before: nn.Module, step: Callable[[nn.Module], tuple[nn.Module, Any]]
    ) -> tuple[nn.Module, Any]:
        """What a step makes of a network, and the JSON value that comes with it.

        Kept where the step leaves the layers and their shapes alone, however it holds their weights; a step that
        changes them is done again.
        """
        path = self.folder / f"{name}.safetensors" if self.folder else None
        if name in self.results and path is not None:
            known = self.results[name]
            return restore_constraints(before, known["held"], read_weights(path)), known["value"]
        model, value = step(before)
        if path is not None and _layout(model) == _layout(before):
            save_weights(model, path, {"step": name})
            self.results[name] = json.loads(json.dumps({"held": constraint_spec(model), "value": value}))
            self._write()
        return model, value

    @property
    def left(self) -> dict[str, list[str]]:
        """Name and reason of what was left out, by the key of its trial."""
        found: dict[str, list[str]] = self.results.setdefault("left out", {})
        return found

    def leave(self, key: str, name: str, why: str) -> None:
        """Note that what was tried under this key is left out."""
        self.left[key] = [name, why]
        self._write()

    def _write(self) -> None:
        if self.folder is not None:
            text = json.dumps({"fingerprint": self.fingerprint, "results": self.results}, indent=1)
            write_text(self.folder / "journal.json", text)


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {"fingerprint": known["fingerprint"], "results": dict(known["results"])}
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"{path} is damaged: {error}; delete {path.parent} to start over there") from error


def take_step(
    step: Method, model: nn.Module, name: str, task: Task, context: Context, store: CheckpointStore
) -> nn.Module:
    """The network after a step, whose edits and curves go to the run. It has a folder of its own below the run's for
    its checkpoints; what was done before a kill comes from the store where it can."""

    def work(before: nn.Module) -> tuple[nn.Module, Any]:
        folder = context.folder / name.replace(", ", "-").replace(" ", "-") if context.folder is not None else None
        if folder is not None:
            folder.mkdir(exist_ok=True)
        changed = step(before, task, replace(context, folder=folder))
        if folder is not None:
            shutil.rmtree(folder)
        return changed.model, {"edits": to_json(changed.edits), "curves": to_json(changed.curves)}

    model, kept = store.get_or_compute_model(name, model, work)
    context.log.edits.extend(Edit.parse(edit) for edit in kept["edits"])
    context.log.curves.extend(Curve(**curve) for curve in kept["curves"])
    return model


def take_steps(
    original: nn.Module, steps: Sequence[Method], task: Task, context: Context, store: CheckpointStore
) -> nn.Module:
    """The network after the steps. A step is in the store under all that was done until then, so that what another
    candidate began with is not done again."""
    model = copy_network(original)
    for number, step in enumerate(steps):
        model = take_step(step, model, step_name(steps[: number + 1]), task, context, store)
    return model.eval()


def step_name(steps: Sequence[Method]) -> str:
    """The name of the last step, and a digest of all of them."""
    return f"{steps[-1].name()} {hashlib.sha256(repr(tuple(steps)).encode()).hexdigest()[:12]}"


def _layout(model: nn.Module) -> list[tuple[str, str]]:
    """Layers and shapes, whatever holds the weights."""
    plain = materialize(model)
    modules = [(name, repr(type(module))) for name, module in plain.named_modules()]
    return [*modules, *((name, str(tuple(t.shape))) for name, t in state_of(plain).items())]


def job_fingerprint(model: nn.Module, *parts: object) -> str:
    """A digest of a network's weights and of whatever else makes a job the same job."""
    return _digest(state_of(model), FORMAT, *parts)


def data_fingerprint(task: Task) -> str:
    """A digest of what tells a task from others: lengths of its splits, the first batch of validation, the metric."""
    leaves = tree_leaves(next(iter(task.validation)))
    tensors = {str(at): leaf for at, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
    lengths = [len(one) for one in (task.train, task.validation, task.test) if one is not None]
    metric = task.metric
    return _digest(tensors, task.name, *lengths, metric.name, metric.unit, metric.points, metric.higher_is_better)


def _digest(tensors: Mapping[str, Tensor], *parts: object) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for part in parts:
        digest.update(repr(part).encode())
    return digest.hexdigest()
