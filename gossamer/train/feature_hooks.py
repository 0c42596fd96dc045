"""Learning from layers inside another network: nothing is changed in either, and nothing is left when it ends.

Forward hooks take the outputs of named layers; adapters, which train with the student, bring them to the teacher's
shape. Both last as long as a `with hooked(...)`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.core.conditions import own_randomness
from gossamer.core.placement import evaluating
from gossamer.errors import BadInput, unknown
from gossamer.train.attached_modules import attached
from gossamer.train.batches import seed_everything
from gossamer.train.distillation import Distillation, called

# A layer of the student and the layer of the teacher that it learns from.
Pair = tuple[str, str]
# Of the student's features and the teacher's, in the order of the pairs: a scalar.
FeatureLoss = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
# Of both shapes and the names of the layers: a module from the student's to the teacher's.
Adapt = Callable[[Sequence[int], Sequence[int], str], nn.Module]

# Above this a regressor without padding has too many weights, and features are pooled instead.
LARGEST_KERNEL = 5


class FeatureHooks:
    """Copies of what named layers gave in the network's last run."""

    def __init__(self, network: nn.Module, layers: Sequence[str], whose: str) -> None:
        modules = {name: module for name, module in network.named_modules() if name}
        for layer in layers:
            if layer not in modules:
                raise unknown(f"layer of the {whose}", layer, modules, listed="`gossamer analyze`")
        self.layers, self.whose = list(layers), whose
        self.features: dict[str, Tensor] = {}
        self.hooks = [modules[x].register_forward_hook(partial(self._take, x)) for x in dict.fromkeys(layers)]
        self.hooks.append(network.register_forward_pre_hook(self._forget))

    def __call__(self) -> list[Tensor]:
        """The features, in the order of the layers; they are forgotten here."""
        for layer in self.layers:
            if layer not in self.features:
                raise BadInput(f"distillation: layer {layer!r} of the {self.whose} did not run; name one that does")
        taken = [self.features[layer] for layer in self.layers]
        self.features = {}
        return taken

    def remove(self) -> None:
        """Take the hooks off."""
        for hook in self.hooks:
            hook.remove()

    def _forget(self, module: nn.Module, inputs: Any) -> None:
        self.features = {}

    def _take(self, layer: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise BadInput(
                f"distillation: layer {layer!r} of the {self.whose} gives a {type(output).__name__}; name one that "
                "gives one tensor"
            )
        if layer in self.features:
            raise BadInput(f"distillation: layer {layer!r} of the {self.whose} runs twice in one run; name another")
        # A copy, since what follows may change it in place.
        self.features[layer] = output.clone()


def stages(network: nn.Module, inputs: tuple[Any, ...]) -> dict[tuple[int, int], Pair]:
    """First and last module that gives images (N, C, H, W) of each resolution, by (H, W), the largest first.

    Modules that run more than once, and resolution 1 x 1, are left out.
    """
    shapes: list[tuple[str, tuple[int, ...]]] = []

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        shapes.append((name, tuple(output.shape) if isinstance(output, Tensor) else ()))

    hooks = [m.register_forward_hook(partial(note, name)) for name, m in network.named_modules() if name]
    try:
        _run_once(network, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    names = [name for name, _ in shapes]
    found: dict[tuple[int, int], Pair] = {}
    for name, shape in shapes:
        if len(shape) == 4 and shape[2] * shape[3] > 1 and names.count(name) == 1:
            size = (shape[2], shape[3])
            found[size] = (found[size][0] if size in found else name, name)
    return dict(sorted(found.items(), reverse=True))


def stages_in_words(found: Mapping[tuple[int, int], Pair]) -> str:
    """`stages` as text: the last layer of each resolution."""
    return ", ".join(f"{last} ({height}x{width})" for (height, width), (_, last) in found.items()) or "none"


def regressor(student: Sequence[int], teacher: Sequence[int], where: str) -> nn.Module:
    """From the student's shape to the teacher's: a convolution without padding, whose kernel takes away as many
    positions as the student has more (FitNets), a linear layer for vectors, and nothing where the shapes are equal."""
    larger = [s - t + 1 for s, t in zip(student[2:], teacher[2:])]
    if len(student) == len(teacher) == 4 and all(1 <= k <= LARGEST_KERNEL for k in larger) and max(larger) > 1:
        return nn.Conv2d(student[1], teacher[1], (larger[0], larger[1]))
    return projection(student, teacher, where)


def projection(student: Sequence[int], teacher: Sequence[int], where: str) -> nn.Module:
    """From the student's channels to the teacher's, position by position; nothing where they are as many."""
    if len(student) == len(teacher):
        if len(student) == 2 or (len(student) == 3 and student[1] == teacher[1]):
            equal = student[-1] == teacher[-1]
            return nn.Identity() if equal else nn.Linear(student[-1], teacher[-1])
        if len(student) == 3 and student[2] == teacher[2]:
            return nn.Conv1d(student[1], teacher[1], 1)
        if len(student) == 4:
            return nn.Identity() if student[1] == teacher[1] else nn.Conv2d(student[1], teacher[1], 1)
    raise _unlike(student, teacher, where)


def positions(student: Sequence[int], teacher: Sequence[int], where: str) -> nn.Module:
    """Nothing, for losses that compare positions whatever the channels."""
    if len(student) != len(teacher) or len(student) < 3 or (len(student) != 4 and student[2:] != teacher[2:]):
        raise _unlike(student, teacher, where)
    return nn.Identity()


def any_shapes(student: Sequence[int], teacher: Sequence[int], where: str) -> nn.Module:
    """Nothing, for losses that compare samples whatever their shape."""
    return nn.Identity()


def _unlike(student: Sequence[int], teacher: Sequence[int], where: str) -> BadInput:
    return BadInput(
        f"distillation: {where} cannot be matched: shapes {tuple(student)} and {tuple(teacher)}; both must be "
        "(N, features), (N, channels, height, width), or (N, a, b) that differ in one of a and b"
    )


@dataclass(frozen=True)
class LayerLoss:
    """How layers of a student are compared with those of its teacher.

    Args:
        loss: of the features of all pairs.
        adapt: makes the module that brings a layer of the student to the shape of the teacher's.
        weight: of the loss, besides the soft loss of the outputs and the task's loss.
        alone: whether neither of these counts.
    """

    loss: FeatureLoss
    adapt: Adapt
    weight: float = 1.0
    alone: bool = False


class FeatureTerm:
    """A term of `loss_terms`: the loss of features, and the soft loss of the outputs from the same run of the
    teacher."""

    def __init__(
        self,
        hooks: tuple[FeatureHooks, FeatureHooks],
        adapters: Sequence[nn.Module],
        distillation: Distillation,
        layers: LayerLoss,
    ) -> None:
        self.hooks, self.adapters, self.distillation, self.layers = hooks, adapters, distillation, layers

    @property
    def task_weight(self) -> float:
        """The weight that is left to the task's own loss."""
        return 0.0 if self.layers.alone else self.distillation.task_weight

    def described(self) -> str:
        """With its layers."""
        pairs, own = ", ".join(f"{s} from {t}" for s, t in zip(*(one.layers for one in self.hooks))), self.layers
        return f"{own.weight} {called(own.loss)} of {pairs}, alone {own.alone}, {self.distillation.described()}"

    def at(self, progress: float) -> None:
        """Follow the schedules of the soft loss."""
        self.distillation.at(progress)

    def __call__(self, inputs: tuple[Any, ...], outputs: Any, target: Any) -> Tensor:
        """A scalar."""
        expected = self.distillation.asked(*inputs)  # the layers must run
        student, teacher = (features() for features in self.hooks)
        matched = [of_one_size(adapt(s), t) for adapt, s, t in zip(self.adapters, student, teacher)]
        total = self.layers.weight * self.layers.loss([s for s, _ in matched], [t for _, t in matched])
        if self.layers.alone or self.task_weight == 1:
            return total
        return total + self.distillation.soft(outputs, expected, target)


def of_one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Images of different resolutions, averaged down to the smaller height and width."""
    if student.dim() != 4 or teacher.dim() != 4 or student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)


@contextmanager
def hooked(
    student: nn.Module,
    distillation: Distillation,
    pairs: Sequence[Pair],
    layers: LayerLoss,
    *,
    inputs: tuple[Any, ...],
    seed: int = 0,
) -> Iterator[FeatureTerm]:
    """Within, a term for `fit(student, ..., loss_terms=[term])` that compares pairs of layers of student and teacher.

    inputs: an example, to see the shapes. Adapters start from the seed; their weights are parameters of the student for
    as long, so that its optimizer and its checkpoints have them. Raises BadInput for layers that do not exist, do not
    run, or cannot be matched, with both shapes.
    """
    if not isinstance(distillation.teacher, nn.Module):
        raise BadInput("distillation: a teacher without modules has no layers to learn from; give it as a module")
    with ExitStack() as cleared:
        ours = FeatureHooks(student, [s for s, _ in pairs], "student")
        cleared.callback(ours.remove)
        theirs = FeatureHooks(distillation.teacher, [t for _, t in pairs], "teacher")
        cleared.callback(theirs.remove)
        _run_once(student, inputs)
        _run_once(distillation.teacher, inputs)
        shapes = [(s.shape, t.shape) for s, t in zip(ours(), theirs())]
        with own_randomness():
            seed_everything(seed, 0)
            adapters = [
                layers.adapt(s, t, f"layers {a!r} of the student and {b!r} of the teacher")
                for (s, t), (a, b) in zip(shapes, pairs)
            ]
        cleared.enter_context(attached(student, adapters))
        yield FeatureTerm((ours, theirs), adapters, distillation, layers)


@torch.no_grad()
def _run_once(network: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Run an example through, in eval mode."""
    home = next(network.parameters(), torch.zeros(0))
    with evaluating(network):
        network(*(x.to(home.device) if isinstance(x, Tensor) else x for x in inputs))
