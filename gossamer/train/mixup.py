"""Mixed images for training: student and teacher see the same mixture (Beyer et al. 2022, arXiv:2106.05237)."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from gossamer.core.batches import Loader, Model, inputs_and_target
from gossamer.errors import BadInput

if TYPE_CHECKING:
    from gossamer.core.task import Task


class MixedTarget(NamedTuple):
    """The target of a mixed sample: share of `first`, the rest of `second`. share: a scalar, at least a half."""

    first: Any
    second: Any
    share: Tensor


class Mixed:
    """A loader whose batches are mixed with themselves in another order, all samples of a batch by one share.

    mixup, cutmix: of the Beta distribution that shares are drawn from (Zhang et al. 2018, arXiv:1710.09412; Yun et al.
    2019, arXiv:1905.04899), 0 for none; with both, a coin decides for each batch. Draws from torch's global generator,
    which `fit` seeds for each batch.
    """

    def __init__(self, loader: Loader, *, mixup: float, cutmix: float) -> None:
        self.loader, self.mixup, self.cutmix = loader, mixup, cutmix
        if hasattr(loader, "set_epoch"):
            self.set_epoch = loader.set_epoch
        if hasattr(loader, "start"):
            self.start = lambda index: map(self.mix, loader.start(index))

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return map(self.mix, self.loader)

    def mix(self, batch: Any) -> Any:
        """(inputs, Mixture)."""
        inputs, target = inputs_and_target(batch)
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not isinstance(target, Tensor):
            raise BadInput("mixup and cutmix need batches of one tensor of inputs and one of targets")
        x = inputs[0]
        order = torch.randperm(len(x))
        cut = bool(self.cutmix) and (not self.mixup or float(torch.rand(())) < 0.5)
        concentration = torch.tensor(self.cutmix if cut else self.mixup)
        share = torch.distributions.Beta(concentration, concentration).sample()
        share = torch.maximum(share, 1 - share)
        if not cut:
            return (share * x + (1 - share) * x[order],), MixedTarget(target, target[order], share)
        x, share = pasted(x, x[order], share)
        return (x,), MixedTarget(target, target[order], share)


def pasted(x_NCHW: Tensor, other_NCHW: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Images with a rectangle of the others, about 1 - share of their area; and the share that is really theirs."""
    if x_NCHW.dim() != 4:
        raise BadInput(f"cutmix needs images (N, C, H, W), got {tuple(x_NCHW.shape)}")
    height, width = x_NCHW.shape[2:]
    side = float(1 - share) ** 0.5
    h, w = round(side * height), round(side * width)
    top, left = int(torch.randint(height - h + 1, ())), int(torch.randint(width - w + 1, ()))
    x_NCHW = x_NCHW.clone()
    x_NCHW[:, :, top : top + h, left : left + w] = other_NCHW[:, :, top : top + h, left : left + w]
    return x_NCHW, torch.tensor(1 - h * w / (height * width))


def mixed(task: "Task", *, mixup: float = 0.0, cutmix: float = 0.0) -> "Task":
    """The task with mixed training batches, on which its loss is the mean of both targets', by their shares."""
    if not mixup and not cutmix:
        return task

    def loss(model: Model, batch: Any) -> Tensor:
        inputs, target = inputs_and_target(batch)
        if not isinstance(target, MixedTarget):
            return task.loss(model, batch)
        outputs = model(*inputs)

        def known(*again: Any) -> Any:
            return outputs

        one, other = (task.loss(known, (inputs, part)) for part in (target.first, target.second))
        return target.share * one + (1 - target.share) * other

    return replace(task, train=Mixed(task.train, mixup=mixup, cutmix=cutmix), loss=loss)
