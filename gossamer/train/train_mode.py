"""Whether a network that trains gives what its teacher gives: detectors, for one, give other things in train mode."""

from typing import Any

import torch
from torch import Tensor, nn

from gossamer.core.batches import Model, inputs_and_target
from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.outputs import plain, tensors
from gossamer.core.placement import place_whole
from gossamer.core.task import Task
from gossamer.errors import own_error
from gossamer.train.distillation import Distillation


def teacher_terms(
    teacher: Model, student: nn.Module, task: Task, context: Context, *, temperature: float, alpha: float
) -> list[Distillation]:
    """What the outputs of a teacher teach this student. Where the student gives other things in train mode, the teacher
    is put in train mode, too, but for norms and dropout; where even that gives nothing to compare, as with losses, the
    student learns from the task's loss alone, which is said. A teacher that was asked for is kept as it is. With a
    cache in the context, the outputs of a module are kept there."""
    term = Distillation(teacher, temperature=temperature, alpha=alpha)
    if context.cache is not None and isinstance(teacher, nn.Module):
        term.cache_outputs(context.cache)
    reason = follow_train_mode(term, student, task, context)
    if reason is None or context.teacher is not None:
        return [term]
    context.progress.say(
        f"no teacher: in train mode the network gives nothing to compare{reason}; the task's loss alone counts"
    )
    return []


def follow_train_mode(term: Distillation, student: nn.Module, task: Task, context: Context) -> str | None:
    """Put a teacher in train mode, but for norms and dropout, where the student gives there what only that can be
    compared with: detectors do.

    Args:
        term: of the teacher; it is changed where that helps.
        student: to be trained.
        task: gives the first batch, and the loss that runs the student.
        context: where it is said.

    Returns:
        None where outputs can be compared, or where the training itself says what is wrong; else why they cannot, as
        the end of a sentence, and the teacher is as it was.
    """
    if not isinstance(term.teacher, nn.Module):
        return None
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            batch = _first_batch(task, student)
            inputs, given = inputs_and_target(batch)[0], _given(student, task, batch)
            if given is None or same_outputs(given, term.asked(*inputs)):
                return None
        except Exception:  # the training itself says what is wrong
            return None
        term.in_training()
        try:
            if same_outputs(given, term.asked(*inputs)):
                term.cached_outputs = None  # those of the other mode
                context.progress.say(
                    "in train mode the network gives other things than in eval mode: so does its teacher"
                )
                return None
        except Exception as error:  # it asks for more than inputs, such as the boxes to find
            reason = f" ({own_error(error)})"
        else:
            reason = ""
    term.in_evaluation()
    return reason


def same_outputs(student: Any, teacher: Any) -> bool:
    """Whether outputs have the same parts, in the same shapes, and numbers among them that are no losses. Of a student
    that gives more than its teacher's one tensor, the first counts."""
    student, teacher = plain(student), plain(teacher)
    if isinstance(teacher, Tensor) and isinstance(student, tuple) and student:
        student = student[0]
    return _same(student, teacher) and any(x.is_floating_point() and x.dim() for x in tensors(teacher))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other))
    return not any(isinstance(x, Tensor | dict | tuple) for x in (one, other))


def _given(student: nn.Module, task: Task, batch: Any) -> Any:
    """What a copy of the student gives to the task's loss in train mode; None where the loss does not run it once."""
    network, outputs = copy_network(student).train(), list[Any]()

    def noted(*inputs: Any, **named: Any) -> Any:
        outputs.append(network(*inputs, **named))
        return outputs[-1]

    task.loss(noted, batch)
    return outputs[0] if len(outputs) == 1 else None


def _first_batch(task: Task, model: nn.Module) -> Any:
    return place_whole(model, next(iter(task.train)))
