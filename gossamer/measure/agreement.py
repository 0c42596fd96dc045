"""How far a network says what another one says: the metric where there are no labels."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gossamer.core.batches import Loss, Model, inputs_and_target
from gossamer.core.copies import copy_network
from gossamer.core.metric import Evidence, MeanMetric
from gossamer.core.outputs import first_tensor, tensors
from gossamer.core.task import Task
from gossamer.core.validation import KnownArguments, check_fields
from gossamer.errors import BadInput

REMEMBERED = 2**27  # bytes of what a reference said


@dataclass(frozen=True, kw_only=True)
class Agreement(KnownArguments, MeanMetric):
    """The share of samples for which a network says what `reference` says. Targets are not looked at.

    Args:
        reference: the original network: a module in eval mode, or an exported one.
        kind: "top-1": the same largest output, of several places of a sample (pixels, tokens) the share of those;
            "cosine": the cosine of all outputs of a sample, as they stand one after the other. States of recurrent
            layers have their samples in the second dimension; an output without samples counts for all of its batch.
        name: in tables and reports; None: "agreement" or "cosine".

    What a module says of a batch is remembered (up to 128 MB), so that many networks are judged at the cost of one
    run of the reference.

    Example:
        >>> double = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.eye_(double.weight)
        >>> Agreement(reference=double).score(torch.nn.Identity(), [torch.rand(4, 2)])
        1.0
    """

    reference: Model = field(repr=False)
    kind: Literal["top-1", "cosine"] = "top-1"
    name: str = ""
    _said: "dict[bytes, list[Tensor]]" = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_fields(self, "Agreement")
        if not self.name:
            object.__setattr__(self, "name", "agreement" if self.kind == "top-1" else "cosine")

    def evidence(self, model: Model, loader: Iterable[Any]) -> Evidence:
        found = list[Tensor]()
        for batch in loader:
            inputs, _ = inputs_and_target(batch)
            scores = self._scores(model(*inputs), self._expected(inputs), _samples(inputs))
            found.append(scores.detach().cpu())
        return {"score": torch.cat(found)}

    def _expected(self, inputs: tuple[Any, ...]) -> list[Tensor]:
        """What the reference says, from memory where it was asked before."""
        key = self._key(inputs)
        if key in self._said:
            return self._said[key]
        with torch.no_grad():
            outputs = list(tensors(self.reference(*inputs)))
        held = sum(x.nbytes for one in self._said.values() for x in one)
        if key and held + sum(x.nbytes for x in outputs) <= REMEMBERED:
            self._said[key] = [x.detach().clone() for x in outputs]
        return outputs

    def _key(self, inputs: tuple[Any, ...]) -> bytes:
        """Of inputs and of the weights that the reference has now; b"" where it is no module, and may change unseen."""
        given = list(tensors(inputs))
        if not isinstance(self.reference, nn.Module) or not given:
            return b""
        whole = hashlib.blake2b(repr([(tuple(x.shape), x.dtype) for x in given]).encode())
        state = [*self.reference.parameters(), *self.reference.buffers()]
        whole.update(repr([(x.data_ptr(), x._version) for x in state] + [self.reference.training]).encode())
        for x in given:
            whole.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return whole.digest()

    def _scores(self, given: Any, expected: Any, samples: int | None) -> Tensor:
        """One number a sample."""
        if self.kind == "top-1":
            one, other = first_tensor(given), first_tensor(expected)
            _same_shape([one], [other])
            dim = 1 if one.ndim != 3 else 2  # tokens stand last, classes of pixels first
            same = one.argmax(dim).cpu() == other.argmax(dim).cpu()
            return same.float().reshape(len(one), -1).mean(1)
        said, right = list(tensors(given)), list(tensors(expected))
        _same_shape(said, right)
        one, other = (torch.cat([_rows(x.float().cpu(), samples) for x in each], 1) for each in (said, right))
        return torch.nn.functional.cosine_similarity(one, other, dim=1)

    def usual_loss(self) -> Loss:
        return self._loss

    def _loss(self, model: Model, batch: Any) -> Tensor:
        """Cross entropy to what the reference says most, or one minus the cosine."""
        inputs, _ = inputs_and_target(batch)
        with torch.no_grad():
            expected = self.reference(*inputs)
        given = model(*inputs)
        if self.kind == "cosine":
            return 1 - self._scores(given, expected, _samples(inputs)).mean()
        one, other = first_tensor(given), first_tensor(expected)
        classes = one.movedim(2, 1) if one.ndim == 3 else one
        return torch.nn.functional.cross_entropy(classes, (other.movedim(2, 1) if other.ndim == 3 else other).argmax(1))


def _samples(inputs: tuple[Any, ...]) -> int | None:
    """How many there are: the first dimension of the first tensor; None where no input says it."""
    return next((len(x) for x in tensors(inputs) if x.ndim), None)


def _rows(output: Tensor, samples: int | None) -> Tensor:
    """All numbers of an output by sample, shape (N, numbers)."""
    if samples is None or (output.ndim and len(output) == samples):
        return output.reshape(len(output), -1)
    if output.ndim > 1 and output.shape[1] == samples:
        return output.transpose(0, 1).reshape(samples, -1)
    return output.reshape(1, -1).expand(samples, -1)


def judged_by(task: Task, reference: nn.Module) -> Task:
    """The task with what a network says in the place of labels.

    Args:
        task: whose targets are not looked at.
        reference: the original network; a copy of it is kept.

    Returns:
        The task, with `Agreement` as metric and its loss: of networks that give classes that of the largest output,
        of others the cosine, as of those that give vectors of length one.

    Example:
        >>> from gossamer.data import tiny_network, tiny_task
        >>> judged_by(tiny_task(), tiny_network()).metric.name
        'agreement'
    """
    reference = copy_network(reference).requires_grad_(False).eval()
    with torch.no_grad():
        outputs = list(tensors(reference(*task.example_inputs)))
    classes = len(outputs) == 1 and outputs[0].ndim >= 2 and outputs[0].shape[1] > 1 and not _unit(outputs[0])
    metric = Agreement(reference=reference, kind="top-1" if classes else "cosine")
    return replace(task, metric=metric, loss=metric.usual_loss())


def _unit(outputs: Tensor) -> bool:
    """Whether they are vectors of length one, which no logits and no probabilities are."""
    flat = outputs.float()
    length = flat.norm(dim=1)
    return bool((flat < 0).any()) and torch.allclose(length, torch.ones_like(length), atol=1e-3)


def has_labels(task: Task) -> bool:
    """Whether validation batches have targets.

    Args:
        task: whose first validation batch is looked at.

    Returns:
        False where batches are inputs alone.

    Example:
        >>> import gossamer
        >>> has_labels(gossamer.data.tiny_task())
        True
    """
    return inputs_and_target(next(iter(task.validation)))[1] is not None


def _same_shape(given: list[Tensor], expected: list[Tensor]) -> None:
    shapes = [[tuple(x.shape) for x in each] for each in (given, expected)]
    if shapes[0] != shapes[1]:
        raise BadInput(f"agreement: outputs have shape {shapes[0]}, those of the reference {shapes[1]}")
