"""Neuron selection (face model compression, MobileID): train a student on the most useful neurons of the teacher.

What it does: selects the neurons of a layer of the teacher, usually its embedding, that tell the classes apart and do
not repeat others. First trains the student to predict them through a linear layer, which is then dropped, then trains
all of it on the teacher's outputs. Works on layers of any two networks, with labels of classes or of attributes; of
landmarks, each coordinate is an attribute: whether it is above its median.
Cost: `batches` forward passes of the teacher to select, then one for each batch of both stages.
When it fails: where labels say nothing about the purpose of the embedding.
Equation: E(y) = -sum u_i y_i + beta sum over i < j of r_ij y_i y_j, minimized in mean field; stage 1: the squared error
of the selected neurons over their mean square; stage 2: as `distill.kd`.
Source: Luo et al. 2016, doi:10.1609/aaai.v30i1.10452, section 3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.core.batches import inputs_and_target
from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.placement import evaluating, place
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput
from gossamer.losses import select_neurons
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import HintedStudent, pooled_embeddings, relative_hint_loss
from gossamer.train.feature_hooks import FeatureHooks


class Pooled(nn.Module):
    """`pooled_embeddings`, as a module."""

    def forward(self, features: Tensor) -> Tensor:
        return pooled_embeddings(features)


@dataclass(frozen=True, kw_only=True)
class NeuronSelection(HintedStudent):
    """Train a student on selected neurons of the teacher, then on its outputs.

    `layers` is one pair, usually the layers before the classifier; empty: the last of the lowest resolution. The other
    options are those of `HintedStudent`, `Student` and `Retrain`.

    Args:
        share: fraction of the layer's neurons that is selected, in (0, 1].
        beta: of the equation, the weight of the redundancy, at least 0.
        batches: number of batches of training data from which to select, at least 1.

    Raises:
        BadInput: there is no teacher, more than one pair of layers, or targets are neither classes nor attributes nor
            landmarks.

    Example:
        >>> import gossamer
        >>> student, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> layers = {"fc1": "fc1"}
        >>> method = gossamer.methods.distill.NeuronSelection(layers=layers, epochs=1, hint_epochs=1, lr=0.01)
        >>> trained, edits = method(student, task, teacher=gossamer.data.tiny_network())
        >>> [edit.target for edit in edits]
        ['all weights on hints', 'all weights']
    """

    example: ClassVar[Settings] = {"epochs": 1, "hint_epochs": 1, "lr": 0.01, "layers": {"head": "body"}}

    share: Annotated[float, Range(0, 1, open_=("low",))] = 0.25
    beta: Annotated[float, Range(0, 1e6)] = 4.0
    batches: Annotated[int, Range(1, 100_000)] = 32

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        student = copy_network(model)
        pair = self.pairs(student, task, context)[-1]
        if len(self.layers) > 1:
            raise BadInput(f"{self.name()}: layers has {len(self.layers)} entries; neurons are selected in one layer")
        chosen = self.select(self.teacher(context), pair[1], task)

        def regressor(student: Sequence[int], teacher: Sequence[int], where: str) -> nn.Module:
            return nn.Sequential(Pooled(), nn.Linear(student[1], len(chosen)))

        def loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
            return relative_hint_loss(student, [pooled_embeddings(teacher[0])[:, chosen.to(teacher[0].device)]])

        return self.in_two_stages([pair], loss, regressor, student, task, context)

    @torch.no_grad()
    def select(self, teacher: nn.Module, layer: str, task: Task) -> Tensor:
        """Return the indices of the neurons to learn."""
        hooks = FeatureHooks(teacher, [layer], "teacher")
        rows: list[tuple[Tensor, Tensor]] = []
        try:
            with evaluating(teacher):
                for batch in islice(task.train, self.batches):
                    labels = self.labels(inputs_and_target(batch)[1])
                    teacher(*place(teacher, batch))
                    rows.append((pooled_embeddings(hooks()[0]).cpu(), labels))
        finally:
            hooks.remove()
        features, labels = torch.cat([x for x, _ in rows]), torch.cat([y for _, y in rows])
        if labels.is_floating_point():
            labels = (labels > labels.nanmedian(0).values).long()
        count = max(1, round(self.share * features.shape[1]))
        return select_neurons(features, labels, count, self.beta)

    def labels(self, target: Any) -> Tensor:
        """Return classes (N,) or attributes (N, A), integers; or the coordinates of landmarks (N, 2 L)."""
        points = target.get("points") if isinstance(target, Mapping) else target
        if isinstance(points, Tensor) and points.is_floating_point() and points.dim() == 3 and points.shape[2] == 2:
            return points.cpu().flatten(1)
        if isinstance(target, Tensor):
            attributes = target.dim() == 2 and bool(((target == 0) | (target == 1)).all())
            if attributes or (target.dim() == 1 and not target.is_floating_point()):
                return target.cpu().long()
        raise BadInput(
            f"{self.name()}: targets must be classes (N,), attributes (N, A) of 0 and 1, or landmarks (N, L, 2)"
        )
