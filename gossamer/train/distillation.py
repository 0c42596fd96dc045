"""Learning from the outputs of another network."""

from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gossamer.core.batches import Loader, Model, as_logits, inputs_and_target
from gossamer.core.copies import copy_network
from gossamer.core.outputs import plain, tensors
from gossamer.core.placement import device_of, train_mode
from gossamer.core.progress import Progress
from gossamer.detection.losses import gives_boxes, teacher_loss
from gossamer.errors import BadInput
from gossamer.losses import kd_loss, multi_label_loss, output_loss
from gossamer.train.batches import to_channels_last
from gossamer.train.teacher_outputs import TeacherOutputs, teacher_identity


class LossTerm(Protocol):
    """A term of the training loss: total = product of all `task_weight` * task loss + sum of all terms.

    Example:
        >>> import torch, gossamer
        >>> class SmallOutputs:
        ...     task_weight = 1.0
        ...     def __call__(self, inputs, outputs, target):
        ...         return 0.01 * outputs.square().mean()
        >>> batches = [(torch.rand(8, 3), torch.randint(2, (8,)))]
        >>> task, training = gossamer.Task.from_loaders(batches, batches), gossamer.Training(epochs=1, lr=0.01)
        >>> net, context = torch.nn.Linear(3, 2), gossamer.Context()
        >>> found = gossamer.fit(net, task, training, context, loss_terms=[SmallOutputs()])
        >>> len(found.history)
        1
    """

    @property
    def task_weight(self) -> float:
        """The weight that is left to the task's own loss."""

    def __call__(self, inputs: tuple[Any, ...], outputs: Any, target: Any) -> Tensor:
        """A scalar. outputs: what the network in training gave for the inputs; target: None where there is none."""


@runtime_checkable
class ScheduledTerm(Protocol):
    """A term that changes during the training."""

    def at(self, progress: float) -> None:
        """progress: from 0 to 1, the share of all steps that are done."""


@runtime_checkable
class DescribedTerm(Protocol):
    """A term that says by itself what it teaches."""

    def described(self) -> str:
        """One line, equal for equal terms."""


def described_term(term: LossTerm) -> str:
    """What a term teaches, so that no checkpoint goes on under another one: its class and its numbers, where it does
    not say more."""
    if isinstance(term, DescribedTerm):
        return term.described()
    plain = {key: x for key, x in vars(term).items() if key != "training" and isinstance(x, bool | int | float | str)}
    return f"{type(term).__name__}({', '.join(f'{key} {x}' for key, x in plain.items())})"


def called(function: Callable[..., Any]) -> str:
    """A function by its name, a method of hyper-parameters with them."""
    owner = getattr(function, "__self__", None)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{name} of {owner}" if is_dataclass(owner) else name


class Soft:
    """What terms of soft targets have in common: a temperature, the weight that is left to the hard loss, and what both
    become until the end of the training, None where they stay."""

    def __init__(
        self, temperature: float, alpha: float, temperature_end: float | None = None, alpha_end: float | None = None
    ) -> None:
        if not temperature > 0 or (temperature_end is not None and not temperature_end > 0):
            raise BadInput(f"distillation: temperature = {temperature} to {temperature_end} must be in (0, inf]")
        if not 0 <= alpha <= 1 or (alpha_end is not None and not 0 <= alpha_end <= 1):
            raise BadInput(f"distillation: alpha = {alpha} to {alpha_end} must be in [0, 1]")
        self.temperature = self.first_temperature = temperature
        self.task_weight = self.first_alpha = alpha
        self.temperature_end, self.alpha_end = temperature_end, alpha_end

    def at(self, progress: float) -> None:
        """Follow the schedules: linear from temperature and alpha to their ends, while progress goes from 0 to 1."""
        if self.temperature_end is not None:
            self.temperature = self.first_temperature + progress * (self.temperature_end - self.first_temperature)
        if self.alpha_end is not None:
            self.task_weight = self.first_alpha + progress * (self.alpha_end - self.first_alpha)


# Of the student's outputs, the teacher's, the target and the temperature: a scalar.
SoftLoss = Callable[[Tensor, Tensor, Any, float], Tensor]


class Distillation(Soft):
    """Teach the outputs of `teacher`: alpha * task loss + (1 - alpha) * soft loss.

    Args:
        teacher: a module is copied, evaluated and never trained; any other callable is used as it is. Where the network
            in training gives more than the teacher's one tensor (auxiliary heads), its first counts.
        temperature: of both softmaxes, in (0, inf].
        alpha: weight of the task's own loss, in [0, 1].
        loss: soft loss of (student's outputs, teacher's, target, temperature); None: `soft_loss`.
        temperature_end: what the temperature becomes until the end, linearly; None: it stays.
        alpha_end: what alpha becomes until the end, linearly; None: it stays.

    Example:
        >>> from gossamer.core.context import Context
        >>> from gossamer.core.progress import Quiet
        >>> from gossamer.data import tiny_network, tiny_task
        >>> from gossamer.train import Training, fit
        >>> term = Distillation(tiny_network(), temperature=2.0, alpha=0.5)
        >>> once, quiet = Training(epochs=1, lr=0.05), Context(progress=Quiet())
        >>> len(fit(tiny_network(), tiny_task(), once, quiet, loss_terms=[term]).history)
        1

    Source: Hinton et al. 2015, arXiv:1503.02531.
    """

    def __init__(
        self,
        teacher: Model,
        temperature: float = 4.0,
        alpha: float = 0.1,
        loss: SoftLoss | None = None,
        *,
        temperature_end: float | None = None,
        alpha_end: float | None = None,
    ) -> None:
        super().__init__(temperature, alpha, temperature_end, alpha_end)
        self.teacher = teacher
        if isinstance(teacher, nn.Module):
            self.teacher = copy_network(teacher).requires_grad_(False).eval()
            to_channels_last(self.teacher)
        self.loss = loss
        self.mode = ""
        self.cached_outputs: TeacherOutputs | None = None
        self.compiled = False
        self._ask: Callable[..., Any] | None = None

    def described(self) -> str:
        """With a digest of the teacher, where it is a module."""
        teacher = teacher_identity(self.teacher) if isinstance(self.teacher, nn.Module) else called(self.teacher)
        loss = "" if self.loss is None else f", {called(self.loss)}"
        return (
            f"Distillation(teacher {teacher}, temperature {self.first_temperature} to {self.temperature_end}, "
            f"alpha {self.first_alpha} to {self.alpha_end}{loss}{self.mode})"
        )

    def in_training(self) -> None:
        """From now on the teacher runs in train mode, but for norms and dropout."""
        if isinstance(self.teacher, nn.Module):
            train_mode(self.teacher)
            self.mode = ", in train mode"

    def in_evaluation(self) -> None:
        """From now on the teacher runs in eval mode, as at first."""
        if isinstance(self.teacher, nn.Module):
            self.teacher.eval()
            self.mode = ""

    def cache_outputs(self, folder: Path) -> None:
        """Keep what the teacher gives below a folder, and take what is there. Raises BadInput where it cannot be."""
        if not isinstance(self.teacher, nn.Module):
            raise BadInput("distillation: a teacher without modules cannot be told from others; give it as a module")
        self.cached_outputs = TeacherOutputs(folder / teacher_identity(self.teacher))

    def flush(self) -> None:
        """Write to disk what was remembered."""
        if self.cached_outputs is not None:
            self.cached_outputs.flush()

    def __call__(self, inputs: tuple[Any, ...], outputs: Any, target: Any) -> Tensor:
        """(1 - alpha) * soft loss, a scalar."""
        return self.soft(outputs, self.expected(inputs), target)

    def expected(self, inputs: tuple[Any, ...]) -> Any:
        """What the teacher gives, or has given for the same inputs."""
        return self.asked(*inputs) if self.cached_outputs is None else self.cached_outputs(inputs, self.asked)

    @torch.no_grad()
    def asked(self, *inputs: Any) -> Any:
        """What the teacher gives."""
        teacher = self._at(inputs)
        if not self.compiled:
            return plain(teacher(*inputs))
        if self._ask is None:  # a compiled module may have no truth value
            self._ask = torch.compile(teacher)
        return plain(self._ask(*inputs))

    def soft(self, outputs: Any, expected: Any, target: Any) -> Tensor:
        """(1 - alpha) * soft loss of outputs of the student and the teacher."""
        outputs, expected = _alone(outputs), _alone(expected)
        if isinstance(expected, Tensor) and isinstance(outputs, tuple) and outputs:
            outputs = outputs[0]
        return (1 - self.task_weight) * self._soft_loss(outputs, expected, target)

    def _soft_loss(self, outputs: Any, expected: Any, target: Any) -> Tensor:
        if are_logits(expected, target) and isinstance(outputs, Tensor):
            outputs, expected = as_logits(outputs), as_logits(expected)
        if self.loss is not None:
            if not (isinstance(outputs, Tensor) and isinstance(expected, Tensor)):
                raise BadInput(
                    f"distillation: this loss needs one tensor from student and teacher, got {type(outputs).__name__} "
                    f"and {type(expected).__name__}; distill.kd takes any outputs"
                )
            return self.loss(outputs, expected, target, self.temperature)
        return soft_loss(outputs, expected, target, self.temperature)

    def _at(self, inputs: tuple[Any, ...]) -> Model:
        """The teacher, on the device of the inputs."""
        device = next((x.device for x in inputs if isinstance(x, Tensor)), None)
        if isinstance(self.teacher, nn.Module) and device is not None:
            first = next(self.teacher.parameters(), None)
            if first is not None and first.device != device:
                self.teacher.to(device)
        return self.teacher


def kept_outputs(teacher: nn.Module, loader: Loader, folder: Path, progress: Progress, *, most: int) -> bool:
    """Ask a teacher once for all batches of a loader, and keep its outputs for the trainings that see these again.

    Args:
        teacher: runs on its own device, in eval mode.
        loader: whose samples are the same in every pass.
        folder: what `Context.cache` is to be.
        progress: where is said how far it is.
        most: bytes that the outputs may take.

    Returns:
        Whether they are kept. False where they would take more, or where they are not one for each sample.
    """
    term, device = Distillation(teacher), device_of(teacher)
    term.cache_outputs(folder)
    try:
        for done, batch in enumerate(progress.bar(loader, label="asking the teacher for its outputs")):
            term.expected(tree_map_only(Tensor, lambda x: x.to(device), inputs_and_target(batch)[0]))
            if (
                not done
                and term.cached_outputs is not None
                and term.cached_outputs.row_bytes * len(inputs_and_target(batch)[0][0]) * len(loader) > most
            ):
                return False
    except BadInput:  # outputs that belong to no sample
        return False
    term.flush()
    return True


def _alone(outputs: Any) -> Any:
    """The only tensor of outputs, or tuples and dicts of several."""
    found = list(tensors(outputs))
    return found[0] if len(found) == 1 else plain(outputs)


def soft_loss(outputs: Any, expected: Any, target: Any, temperature: float) -> Tensor:
    """`kd_loss` where the teacher's outputs are logits (N, classes, ...) for integer targets (N, ...),
    `multi_label_loss` where they are for targets of their own shape that are 0 or 1, `teacher_loss` where they are
    those of a detector that trains, `output_loss` otherwise."""
    if gives_boxes(outputs) and gives_boxes(expected):
        return teacher_loss(outputs, expected, temperature)
    if are_logits(expected, target):
        return kd_loss(outputs, expected, temperature)
    if are_labels(expected, target):
        return multi_label_loss(outputs, expected, temperature)
    return output_loss(outputs, expected)


def are_logits(outputs: Any, target: Any) -> bool:
    """Whether there is one class for each prediction."""
    return (
        isinstance(outputs, Tensor)
        and isinstance(target, Tensor)
        and not target.is_floating_point()
        and outputs.dim() >= 2
        and target.shape == outputs.shape[:1] + outputs.shape[2:]
    )


def are_labels(outputs: Any, target: Any) -> bool:
    """Whether there is a yes or no for each output, and a yes among them."""
    if not isinstance(outputs, Tensor) or not isinstance(target, Tensor) or target.shape != outputs.shape:
        return False
    yes = target == 1
    return outputs.dim() >= 2 and bool(yes.any()) and bool((yes | (target == 0)).all())
