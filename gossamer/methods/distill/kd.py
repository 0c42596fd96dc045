"""Knowledge distillation (KD): train a student on the teacher's softened outputs (soft targets).

What it does: trains all weights on the task's own loss and on the teacher's outputs. For classes, and for labels of
which several may be true, these are softened probabilities; for everything else (boxes, embeddings, regressions, also
in tuples or dicts) the outputs relative to their variance.
Cost: one forward pass of the teacher for each batch.
When it fails: a student that is far too small for its teacher learns better from one in between. Teachers that were
trained with label smoothing are of less use. `standardize` helps where the student cannot reach the scale of the
teacher's logits.
Equation: alpha CE(y, z) + (1 - alpha) T^2 KL(softmax(v / T) || softmax(z / T)); standardize: of (z - mean) / deviation.
Source: Hinton et al. 2015, arXiv:1503.02531, section 2; Sun et al. 2024, arXiv:2403.01733, section 3.3.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.core.copies import copy_network
from gossamer.core.task import Task
from gossamer.losses import kd_loss, standardized
from gossamer.methods._base import Settings
from gossamer.methods.distill._student import Student


@dataclass(frozen=True, kw_only=True)
class KD(Student):
    """Train a student on the teacher's softened outputs.

    alpha=1 trains without a teacher. The other options are those of `Student` and `Retrain`.

    Args:
        standardize: divide the logits by their standard deviation over classes. For classes only; lower the temperature
            to about 2.

    Raises:
        BadInput: there is no teacher.

    Example:
        >>> import gossamer
        >>> student, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> method = gossamer.methods.distill.KD(temperature=4.0, alpha=0.1, epochs=1, lr=0.01)
        >>> trained, edits = method(student, task, teacher=gossamer.data.tiny_network())
        >>> edits[-1].target
        'all weights'
    """

    example: ClassVar[Settings] = {"epochs": 1, "lr": 0.01}

    standardize: bool = False

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        terms = []
        if self.alpha < 1 or self.alpha_end not in (None, 1):
            terms.append(self.distillation(self.teacher(context), self.standard if self.standardize else None))
        return self.learn(terms, copy_network(model), task, context).model

    def standard(self, student: Tensor, teacher: Tensor, target: object, temperature: float) -> Tensor:
        """Return `kd_loss` of standardized logits."""
        return kd_loss(standardized(student), standardized(teacher), temperature)
