"""Modules whose tensors train and are saved with a network for as long as it is trained: adapters, peers, samplers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


@contextmanager
def attached(student: nn.Module, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within, the tensors of the modules are parameters of the student: its optimizer trains those that require
    gradients, its checkpoints hold all, and they move with it.

    The tensors, not the modules: a module whose forward goes through its children would run them.
    """
    home = next(student.parameters(), torch.zeros(0))
    names: dict[str, nn.Parameter] = {}
    for i, module in enumerate(modules):
        module.to(device=home.device, dtype=home.dtype)
        for part in module.modules():
            for key, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[key] = nn.Parameter(buffer, requires_grad=False)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            assert isinstance(tensor, nn.Parameter)
            names[f"_lent_{i}_{name.replace('.', '_')}"] = tensor
    for name, parameter in names.items():
        student.register_parameter(name, parameter)
    trained = [p for p in names.values() if p.requires_grad]

    def reach(module: nn.Module, inputs: Any, output: Any) -> Any:
        # Several processes average the gradients of the parameters that they find behind the outputs.
        if not trained or not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return None
        nothing = torch.stack([p.sum() for p in trained]).sum() * 0.0
        return tree_map_only(Tensor, lambda x: x + nothing if x.is_floating_point() else x, output)

    hook = student.register_forward_hook(reach)
    try:
        yield
    finally:
        hook.remove()
        for name in names:
            delattr(student, name)
