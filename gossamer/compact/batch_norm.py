"""BatchNorm in two vectors instead of four: what it computes in eval mode is one scale and one shift per channel."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gossamer.core.copies import copy_network


@torch.no_grad()
def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Return a copy whose BatchNorms have mean 0 and variance 1 - eps, with the old ones moved into weight and bias.

    Classes and names stay, so the file can still be loaded into the class; what is constant costs nothing in a file.
    For deployment: training starts from other statistics.

    Args:
        model: the network. BatchNorms without weight, bias or running statistics are left as they are.

    Returns:
        The copy. Its outputs in eval mode are equal up to the rounding of float32.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> norm.running_mean.fill_(3.0)
        tensor([3., 3.])
        >>> fold_batch_norm(norm).running_mean
        tensor([0., 0.])
    """
    folded = copy_network(model)
    for module in folded.modules():
        if not isinstance(module, _BatchNorm) or not module.affine or module.running_mean is None:
            continue
        weight, bias, mean, variance = module.weight, module.bias, module.running_mean, module.running_var
        assert variance is not None
        scale = weight.double() / (variance.double() + module.eps).sqrt()
        bias.copy_(bias.double() - mean.double() * scale)
        weight.copy_(scale)
        mean.zero_()
        variance.fill_(1 - module.eps)
        if module.num_batches_tracked is not None:
            module.num_batches_tracked.zero_()
    return folded
