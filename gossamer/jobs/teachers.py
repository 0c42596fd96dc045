"""Teachers that are not modules, and students that come out of files or out of the teacher itself."""

import hashlib
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gossamer.constraints.apply import constrain
from gossamer.constraints.base import Constraint
from gossamer.constraints.codebook import Codebook
from gossamer.constraints.mask import Mask
from gossamer.core.context import Context
from gossamer.core.goal import Goal
from gossamer.core.task import Task
from gossamer.errors import BadInput, no_file
from gossamer.measure import Runner, evaluate
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.runtime.runners import open_runner
from gossamer.search.checkpoint_store import CheckpointStore
from gossamer.search.cost_model import SAFETY_MARGIN, CostModel
from gossamer.search.plan import Planner, shape_of
from gossamer.train.teacher_outputs import LAYOUT, TeacherOutputs
from gossamer.train.teachers import Ensemble, ExternalModel, gives_outputs_only
from gossamer.train.trainable_export import TrainableExport, trainable_export

SPARSE = 0.1  # share of zeros from which on a weight is held sparse
SHARED = 256  # distinct values up to which a weight is held to them
FLOAT_BYTES = 4


class OnnxTeacher(ExternalModel):
    """An `.onnx` file on ONNX Runtime, on the CPU; a session of its own in each process."""

    def __init__(self, path: Path, *, threads: int = 2) -> None:
        super().__init__()
        if not path.is_file():
            raise no_file(path)
        self.path, self.threads = path, threads
        # What it is told from other teachers by.
        digest = hashlib.sha256(path.read_bytes()).digest()
        self.register_buffer("digest", torch.frombuffer(bytearray(digest), dtype=torch.uint8))
        self.sessions: dict[int, Runner] = {}

    def forward(self, *inputs: Tensor) -> Any:
        if os.getpid() not in self.sessions:
            self.sessions = {os.getpid(): open_runner("onnxruntime", self.path, threads=self.threads)}
        outputs = self.sessions[os.getpid()](*inputs)
        device = inputs[0].device
        return tree_map_only(Tensor, lambda x: x.to(device), outputs)


class RecordedTeacher(ExternalModel):
    """A teacher of which only its outputs are left: a folder of `gossamer.train.teacher_outputs`."""

    recorded: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.cached_outputs = TeacherOutputs(folder)
        name = hashlib.sha256(str(folder.resolve()).encode()).digest()
        self.register_buffer("digest", torch.frombuffer(bytearray(name), dtype=torch.uint8))

    def forward(self, *inputs: Tensor) -> Any:
        return self.cached_outputs(inputs, None)


def external_teacher(path: Path) -> ExternalModel | None:
    """The teacher of an `.onnx` file or of a folder of outputs, or of a folder with one of these; None where the path
    is nothing of that kind."""
    if path.suffix == ".onnx":
        return OnnxTeacher(path)
    found = [one.parent for one in (*path.glob(LAYOUT), *path.glob(f"*/{LAYOUT}"))]
    if len(found) > 1:
        names = ", ".join(sorted(one.name for one in found))
        raise BadInput(f"{path} holds the outputs of {len(found)} teachers; name the folder of one, below it: {names}")
    return RecordedTeacher(found[0]) if found else None


def trainable(student: nn.Module) -> nn.Module:
    """The student, or what can be trained in its place: a network out of a file keeps its zeros and shared values."""
    ready = trainable_export(student)
    if not isinstance(ready, TrainableExport):
        return ready
    held = {name: rule for name, p in ready.named_parameters() if (rule := as_found(p.detach())) is not None}
    return constrain(ready, held) if held else ready


def as_found(weight: Tensor) -> Constraint | None:
    """What holds a weight to what its values show: few distinct values, or zeros; None for an ordinary one."""
    if weight.dim() < 2 or not weight.is_floating_point():
        return None
    values, indices = torch.unique(weight, return_inverse=True)
    if len(values) <= min(SHARED, weight.numel() // 4):
        return Codebook(values, indices, mean=True)
    zeros = weight == 0
    return Mask(~zeros) if float(zeros.double().mean()) >= SPARSE else None


def searched(
    teacher: nn.Module, task: Task, goal: Goal, context: Context, store: CheckpointStore, work: Path
) -> nn.Module:
    """A student for a goal, cut out of the teacher: the shapes that meet it by measurement compete,
    as in `compress`. Bytes are those of its weights in float32."""
    if isinstance(teacher, Ensemble):
        teacher = next((one for one in teacher.members if not gives_outputs_only(one)), teacher)
    if gives_outputs_only(teacher):
        raise BadInput("a student for a goal is cut out of its teacher, which must be a module; name a student")
    if goal.file_bytes is not None or goal.compression_ratio is not None:
        limit = goal.file_limit(FLOAT_BYTES * sum(p.numel() for p in teacher.parameters()))
        params = min(int(limit / FLOAT_BYTES), goal.params or int(limit))
        goal = Goal(**{**asdict(goal), "file_bytes": None, "compression_ratio": None, "params": params})
    cost_model = CostModel(teacher, task, goal, store, work, int8=False)
    whole = cost_model("original", lambda: teacher)
    if whole.worst_ratio <= SAFETY_MARGIN:
        raise BadInput("the teacher itself meets the goal; ask for less, or name a student")
    reference = evaluate(open_runner("torch", teacher, threads=goal.threads), task).value
    planner = Planner(
        teacher, task, replace(context, original=teacher), store, cost_model, RecoveryDistillation(epochs=4), reference
    )
    steps = planner.plan(whole)
    if steps is None:
        raise BadInput("no shape of the teacher meets the goal; ask for more, or name a student")
    student = teacher
    for step in shape_of(steps):  # whose edits belong to the job's record
        changed = step(student, task, context)
        context.log.edits.extend(changed.edits)
        student = changed.model
    return student
