"""Specialist ensemble distillation: train a student on a generalist and on specialists for the classes it confuses.

What it does: finds groups of classes that the teacher confuses. For each it trains a copy of the teacher that tells
these classes apart, with one dustbin class for all others, on data in which half the samples are of the group. Then it
trains the student on the combined prediction of the generalist and all specialists.
Cost: a short training for each specialist on a part of the data; the forward passes of all for each batch.
When it fails: few classes, or a teacher that confuses none of them.
Equation: q = argmin KL(p_g || q) + sum over k of KL(p_k || q), where q of the dustbin of k is that of all classes
outside its group; then as `distill.kd` with q as the teacher's probabilities.
Source: Hinton et al. 2015, arXiv:1503.02531, section 5. The dustbin's logit is the log-sum-exp of the other classes',
so that a specialist begins as exactly the generalist.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.core.batches import Loader, Model, inputs_and_target
from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.placement import evaluating, place
from gossamer.core.task import Task
from gossamer.core.validation import Range
from gossamer.errors import BadInput, require
from gossamer.losses.specialists import combined_opinion, dustbin, in_group
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import Student


class SpecialistEnsemble(nn.Module):
    """Generalist and specialists as one network, whose logits are log q.

    Args:
        generalist: gives logits (N, classes).
        specialists: one for each group, with logits of all classes.
        groups: numbers of the classes of each group.
        shifts: added to a dustbin's logit, because its classes were rarer in the specialist's training than they are.
    """

    def __init__(self, generalist: nn.Module, specialists: Sequence[nn.Module], groups: Any, shifts: Any) -> None:
        super().__init__()
        self.generalist, self.specialists = generalist, nn.ModuleList(specialists)
        self.groups, self.shifts = groups, shifts

    def forward(self, *inputs: Any) -> Tensor:
        """Return logits (N, classes)."""
        special = []
        for network, group, shift in zip(self.specialists, self.groups, self.shifts):
            logits = dustbin(network(*inputs), group)
            special.append(torch.cat([logits[:, :-1], logits[:, -1:] + shift], 1).softmax(1))
        q = combined_opinion(self.generalist(*inputs).softmax(1), special, self.groups)
        return q.clamp_min(torch.finfo(q.dtype).tiny).log()


class Enriched:
    """Batches in which half the samples are of a group: all there are of it, and as many others, at least two."""

    def __init__(self, loader: Loader, group: Sequence[int]) -> None:
        self.loader, self.group = loader, torch.tensor(group)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
        for batch in self.loader:
            inputs, target = inputs_and_target(batch)
            of_group = torch.isin(target.cpu(), self.group)
            inside, outside = of_group.nonzero()[:, 0], (~of_group).nonzero()[:, 0]
            drawn = outside[torch.randperm(len(outside))[: max(len(inside), 2)]]
            kept = torch.cat([inside, drawn])
            yield tuple(x[kept] for x in inputs), target[kept]


@torch.no_grad()
def confused(network: nn.Module, task: Task, count: int, seed: int) -> tuple[list[list[int]], Tensor]:
    """Return groups of classes that the network confuses, and the mean probabilities of all classes.

    The classes are clustered by the covariance of the network's probabilities on calibration data.
    """
    rows = []
    with evaluating(network):
        for batch in task.calibration:
            logits = network(*place(network, batch))
            if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] <= count:
                raise BadInput(
                    f"distill.specialists: needs logits (N, classes), more classes than the {count} specialists"
                )
            rows.append(logits.double().softmax(1).cpu())
    probabilities = torch.cat(rows)
    k_means = require("sklearn.cluster").KMeans(count, n_init=10, random_state=seed)
    clusters = k_means.fit_predict(probabilities.T.cov().numpy())
    groups = [[i for i, c in enumerate(clusters.tolist()) if c == k] for k in range(count)]
    return groups, probabilities.mean(0)


@dataclass(frozen=True, kw_only=True)
class Specialists(Student):
    """Train a student on a generalist together with specialists.

    The other options are those of `Student` and `Retrain`.

    Args:
        count: number of specialists, at least 2.
        specialist_epochs: passes over the data for each specialist, from the teacher's weights; at least 1.
        specialist_lr: learning rate of the specialists, in (0, 10].

    Raises:
        BadInput: there is no teacher, or there are not more classes than specialists.

    Example:
        >>> import gossamer
        >>> student, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.distill.Specialists(count=2, specialist_epochs=1, epochs=1, lr=0.01)
        >>> trained, edits = method(student, task, teacher=gossamer.data.tiny_network())
        >>> [edit.target for edit in edits]
        ['all weights of specialist 1', 'all weights of specialist 2', 'all weights']
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01, "count": 2, "specialist_epochs": 1}

    count: Annotated[int, Range(2, 1000)] = 3
    specialist_epochs: Annotated[int, Range(1, 10_000)] = 2
    specialist_lr: Annotated[float, Range(0, 10, open_=("low",))] = 0.005

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        generalist = self.teacher(context, inside=True)
        groups, expected = confused(generalist, task, self.count, context.seed)
        specialists = [self.specialist(generalist, group, task, context, k) for k, group in enumerate(groups, 1)]
        shares = [float(expected[group].sum().clamp(1e-6, 1 - 1e-6)) for group in groups]
        shifts = [float(torch.tensor((1 - share) / share).log()) for share in shares]
        team = SpecialistEnsemble(generalist, specialists, groups, shifts)
        return self.learn([self.distillation(team)], copy_network(model), task, context).model

    def specialist(
        self, generalist: nn.Module, group: Sequence[int], task: Task, context: Context, number: int
    ) -> nn.Module:
        """Return a copy of the generalist, trained on a group."""

        def loss(model: Model, batch: Any) -> Tensor:
            inputs, target = inputs_and_target(batch)
            return F.cross_entropy(dustbin(model(*inputs), group), in_group(target, group))

        data = replace(task, train=Enriched(task.train, group), loss=loss)
        changes: dict[str, Any] = {"epochs": self.specialist_epochs, "lr": self.specialist_lr, "keep": "last"}
        network = copy_network(generalist).requires_grad_(True)
        return self.learn([], network, data, context, part=f" of specialist {number}", **changes).model
