"""Less is More (sparse neurons by forward-backward splitting): empty neurons of fully connected layers in training.

What it does: after each step of the optimizer, the forward step, the incoming weights and the bias of each neuron of a
linear layer are shrunk by the proximal operator of their norm, the backward step. Neurons whose weights become zero
stay zero and are removed, with proof that outputs do not change.
Cost: one training; a few passes over the weights of the linear layers in each step.
When it fails: networks whose linear layers have no hidden neurons, such as residual networks, have nothing to remove.
Equation: min L + lambda sum_n |(w_n, b_n)|_2; v = w - lr grad L; w_n <- max(0, 1 - lr lambda / |v_n|) v_n.
Source: Zhou, Alvarez & Porikli 2016, Less Is More: Towards Compact CNNs, ECCV, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from gossamer.constraints.weights import weights_of
from gossamer.core.context import Context
from gossamer.core.layer_names import layer_name
from gossamer.core.task import Task
from gossamer.errors import NoEffect
from gossamer.methods._base import Settings
from gossamer.methods.prune._proximal import GroupLasso
from gossamer.methods.prune._sparse import Penalized
from gossamer.modules.element_groups import ElementGroups, channel_groups


@dataclass(frozen=True, kw_only=True)
class LessIsMore(Penalized):
    """Less is More (Zhou, Alvarez & Porikli 2016). Give one target, or the strength.

    Args:
        strength, speedup, macs, params, max_drop, until, layers, ignore: the target; see `SparseTraining`. Only linear
            layers count among `layers`.
        epochs, lr, weight_decay, clip, temperature, alpha: the training; see `Retrain`.

    Raises:
        NoEffect: no selected linear layer has neurons that can be removed.

    Example:
        >>> import gossamer
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> smaller, edits = gossamer.methods.prune.LessIsMore(params=1500, epochs=5, lr=0.01)(model, task)
        >>> smaller.fc1.out_features < 16, smaller.conv1.out_channels
        (True, 8)
    """

    example: ClassVar[Settings] = {"speedup": 1.0005, "epochs": 3, "lr": 0.01}

    def families(self, model: nn.Module, task: Task) -> Sequence[ElementGroups]:
        names = {layer_name(name) for name in weights_of(model, self.layers, self.ignore)}
        linear = sorted(name for name in names if isinstance(model.get_submodule(name), nn.Linear))
        if not linear:
            raise NoEffect(f"{self.name()}: none of the selected layers is linear; prune.ssl takes convolutions, too")
        return (channel_groups(model, task.example_inputs, layers=linear),)

    def apply(self, model: nn.Module, task: Task, context: Context) -> nn.Module:
        return self.sparsify(model, GroupLasso(), task, context, by_size=False)
