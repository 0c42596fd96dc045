"""What helps a training and is no part of the trained network: auxiliary heads, blocks left out at random."""

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gossamer.core.batches import Model
from gossamer.core.placement import place
from gossamer.core.task import Task
from gossamer.errors import BadInput, NoEffect
from gossamer.modules.blocks import find_blocks
from gossamer.train.hyperparameters import Training
from gossamer.train.objective import task_loss


class Heads:
    """A term of `loss_terms`: the sum of weight * loss of what auxiliary heads give (Szegedy et al. 2015,
    arXiv:1409.4842, section 5, with weight 0.3).

    Heads are modules that the network runs while training and whose outputs need not leave it. weights: by name or
    pattern; of what a pattern fits, the outermost modules count.
    """

    task_weight = 1.0

    def __init__(self, model: nn.Module, weights: Mapping[str, float], loss: Callable[[Model, Any], Tensor]) -> None:
        self.loss, self.weights, self.outputs = loss, heads_of(model, weights), dict[str, Any]()
        self.hooks = [model.register_forward_pre_hook(self._forget), model.register_forward_hook(self._reach)]
        for name in self.weights:
            self.hooks.append(model.get_submodule(name).register_forward_hook(partial(self._take, name)))

    def __call__(self, inputs: tuple[Any, ...], outputs: Any, target: Any) -> Tensor:
        """A scalar."""
        total = torch.zeros(())
        for name, weight in self.weights.items():
            if name not in self.outputs:
                raise BadInput(
                    f"training: the auxiliary head {name!r} did not run; name one that runs in training mode"
                )
            given = self.outputs.pop(name)
            term = weight * self.loss(lambda *_, given=given: given, (inputs, target))
            total = term + total.to(term.device)
        return total

    def remove(self) -> None:
        """Take the hooks off."""
        for hook in self.hooks:
            hook.remove()

    def _forget(self, module: nn.Module, inputs: Any) -> None:
        self.outputs.clear()

    def _take(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if module.training:
            self.outputs[name] = output

    def _reach(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        # Several processes average the gradients of the parameters that they find behind the outputs.
        if not self.outputs or not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return None
        nothing = torch.stack([out.sum() for out in self.outputs.values()]).sum() * 0.0
        return tree_map_only(Tensor, lambda x: x + nothing if x.is_floating_point() else x, output)


def heads_of(model: nn.Module, weights: Mapping[str, float]) -> dict[str, float]:
    """The outermost modules that the patterns fit, with their weights."""
    names = [name for name, _ in model.named_modules() if name]
    found: dict[str, float] = {}
    for pattern, weight in weights.items():
        hits = fnmatch.filter(names, pattern)
        if not hits:
            raise NoEffect(f"training: auxiliary = {pattern!r} is no module of the network: {names[:20]}")
        found |= {name: weight for name in hits if not any(name.startswith(f"{other}.") for other in hits)}
    return found


def leave_out(probability: float, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """A forward hook of a residual block: its input with this probability, else its input and so much more of what it
    adds that the mean is its output."""
    if not module.training:
        return None
    x: Tensor = inputs[0]
    return x if float(torch.rand(())) < probability else x + (output - x) / (1 - probability)


def _leave_out_named(
    probability: float, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor
) -> Tensor | None:
    return leave_out(probability, module, (*inputs, *named.values()), output)


@contextmanager
def blocks_left_out(model: nn.Module, example_inputs: tuple[Any, ...], drop_path: float) -> Iterator[None]:
    """Within, block l of the L residual blocks is left out of a training step with probability drop_path * l / L
    (Huang et al. 2016, arXiv:1603.09382, section 3).

    A network with a `drop_path` of its own gets this one, and keeps it. Raises NoEffect where there is neither.
    """
    if isinstance(getattr(model, "drop_path", None), float):
        model.drop_path = drop_path  # type: ignore[assignment]
        yield
        return
    blocks = find_blocks(model, example_inputs)
    if not blocks:
        raise NoEffect("training: drop_path: the network has neither residual blocks nor a drop_path of its own")
    hooks = [
        model.get_submodule(block.name).register_forward_hook(
            partial(_leave_out_named, drop_path * number / len(blocks)), with_kwargs=True
        )
        for number, block in enumerate(blocks, 1)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def helped(model: nn.Module, task: Task, training: Training) -> Iterator[list[Heads]]:
    """Within, blocks are left out, and heads learn by the terms of `loss_terms` that this gives."""
    with ExitStack() as stack:
        if training.drop_path is not None:
            inputs = place(model, (task.example_inputs, None))
            stack.enter_context(blocks_left_out(model, inputs, training.drop_path))
        if not training.auxiliary:
            yield []
            return
        heads = Heads(model, training.auxiliary, task_loss(task, training.label_smoothing))
        stack.callback(heads.remove)
        yield [heads]
