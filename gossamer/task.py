"""Whether a network, the user's data, loss and metric go together, before work begins."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gossamer.core.batches import batch_count, inputs_and_target, kind_and_shape
from gossamer.core.copies import check_network
from gossamer.core.named_inputs import refuse_other_order
from gossamer.core.placement import place_whole
from gossamer.core.task import Task, evaluation, loss_of, one_number, refuse_outputs
from gossamer.errors import BadInput, GossamerError, own_error


@torch.no_grad()
def check(task: Task, model: nn.Module) -> None:
    """Run network, loss and metric on the first batches, so that what does not fit shows before the work begins.

    Of the test set only the length is asked for. Raises BadInput with the error of what failed.
    """
    name = task.name
    for split in ("train", "validation", "test", "calibration"):
        if split != "test" or task.test is not None:
            batch_count(getattr(task, split), f"the {split} data of {name}")
    check_network(model)
    refuse_other_order(task.input_names, model)
    with torch.random.fork_rng(devices=[]):
        shapes = [tuple(getattr(x, "shape", ())) for x in task.example_inputs]
        what = f"the network does not accept the inputs of {name} (shapes {shapes})"
        refuse_outputs(_attempt(what, lambda: model(*task.example_inputs)), task, "the network")
        batch = _first_batch(task, "train", model)
        _check_loss(task, model, batch)
        held_out = _first_batch(task, "validation", model)
        _check_metric(task, model, held_out)
        if not _same(held_out, _first_batch(task, "validation", model)):
            raise BadInput(
                f"the validation data of {name} is another one each time: networks are compared sample by sample; "
                "turn its shuffling and its random augmentation off"
            )
        seen = _first_batch(task, "calibration", model)
        _attempt(f"the calibration data of {name}", lambda: model(*inputs_and_target(seen)[0]))


def _check_loss(task: Task, model: nn.Module, batch: Any) -> None:
    """Refuse a loss that no training can follow."""
    if isinstance(task.loss, nn.Module):
        kind = type(task.loss).__name__
        raise BadInput(
            f"the loss of {task.name} is called with the model and a batch, which {kind} does not take: "
            f"give lambda model, batch: {kind}()(model(batch[0]), batch[1])"
        )
    with torch.enable_grad():
        loss = _attempt(f"the loss of {task.name}", lambda: loss_of(task, model, batch))
    if not one_number(loss):
        raise BadInput(f"the loss of {task.name} must be a tensor with one number, it is {kind_and_shape(loss)}")
    if not loss.isfinite():
        raise BadInput(f"the loss of {task.name} is {loss.item()} on the first batch of the training data")
    if not loss.requires_grad and any(p.requires_grad for p in model.parameters()):
        raise BadInput(
            f"the loss of {task.name} does not depend on the weights: leave out detach(), item() and no_grad"
        )


def _check_metric(task: Task, model: nn.Module, batch: Any) -> None:
    """Refuse a metric that says something else of the same outputs: no two networks could be compared by it."""
    what = f"the metric of {task.name}"

    def measured() -> tuple[Any, float]:
        found = evaluation(task, model, [batch])
        return dict(found.evidence), found.value

    first, second = _attempt(what, measured), _attempt(what, measured)
    inputs = inputs_and_target(batch)[0]
    if not _same(first, second) and _same(model(*inputs), model(*inputs)):
        raise BadInput(
            f"{what} gives {second[1]:g} after {first[1]:g} for the same outputs: it must draw no random numbers and "
            "keep nothing from one call to the next"
        )


def _attempt(what: str, run: Callable[[], Any]) -> Any:
    try:
        return run()
    except GossamerError as error:
        raise BadInput(f"{what}: {error}") from error
    except Exception as error:
        raise BadInput(f"{what}: {own_error(error)}") from error


def _first_batch(task: Task, name: str, model: nn.Module) -> Any:
    """The first batch of a loader, where the model is."""

    def placed() -> Any:
        batch = place_whole(model, next(iter(getattr(task, name))))
        if any(isinstance(x, Tensor) and x.isnan().any() for x in tree_leaves(batch)):
            raise BadInput("the first batch holds NaN")
        return batch

    return _attempt(f"the {name} data of {task.name}", placed)


def _same(one: Any, other: Any) -> bool:
    found, again = tree_leaves(one), tree_leaves(other)
    return len(found) == len(again) and all(_equal(a, b) for a, b in zip(found, again, strict=True))


def _equal(one: Any, other: Any) -> bool:
    """NaN is equal to NaN."""
    if isinstance(one, Tensor):
        return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
    return bool(one == other or (one != one and other != other))
