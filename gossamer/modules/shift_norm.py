"""Batch norms that multiply by powers of two alone, so that a training needs shifts in the place of products."""

from typing import Any

import torch
from torch import Tensor, nn


def nearest_power_of_two(x: Tensor) -> Tensor:
    """Round every number to a power of two of its sign, by its logarithm; zero stays zero.

    Args:
        x: any shape.

    Returns:
        AP2(x) = sign(x) 2^round(log2 |x|).

    Source: Courbariaux et al. 2016, arXiv:1602.02830, section 1.5.

    Example:
        >>> nearest_power_of_two(torch.tensor([0.0, 3.0, -0.3, 1.4]))
        tensor([ 0.0000,  4.0000, -0.2500,  1.0000])
    """
    logarithm = x.abs().clamp_min(torch.finfo(x.dtype).tiny).log2().round()
    return x.sign() * torch.exp2(logarithm)


class _PowerOfTwo(torch.autograd.Function):
    """`nearest_power_of_two` with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return nearest_power_of_two(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


def _shift(x: Tensor, by: Tensor) -> Tensor:
    """x times the power of two that is nearest to `by`: a shift of bits."""
    factor: Tensor = _PowerOfTwo.apply(by)  # type: ignore[no-untyped-call]
    return x * factor


class _ShiftNorm(nn.modules.batchnorm._BatchNorm):
    """c = x - mean; variance = mean(c AP2(c)); y = AP2(weight) (c AP2(1 / sqrt(variance + eps))) + bias."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        if self.training:
            dims = [0, *range(2, x.dim())]
            mean = x.mean(dims)
            centred = x - mean.view(shape)
            variance = _shift(centred, centred).mean(dims)
            self._keep(mean.detach(), variance.detach(), x.numel() // x.shape[1])
        else:
            mean, variance = self.running_mean, self.running_var
            centred = x - mean.view(shape)
        normal = _shift(centred, (variance + self.eps).rsqrt().view(shape))
        return _shift(normal, self.weight.view(shape)) + self.bias.view(shape)

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Update the running statistics as `nn.BatchNorm2d` does."""
        self.num_batches_tracked += 1
        rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), rate)
        self.running_var.lerp_(variance.to(self.running_var) * count / max(1, count - 1), rate)


class ShiftNorm1d(_ShiftNorm, nn.BatchNorm1d):
    """Shift-based batch norm of features (N, C) or sequences (N, C, L).

    Args:
        num_features, eps, momentum: as for `nn.BatchNorm1d`.

    Source: Courbariaux et al. 2016, arXiv:1602.02830, algorithm 3.

    Example:
        >>> norm = ShiftNorm1d(2)
        >>> bool(norm(torch.randn(16, 2)).var(0).log2().abs().max() <= 1.5)  # powers of two are not exact
        True
    """


class ShiftNorm2d(_ShiftNorm, nn.BatchNorm2d):
    """Shift-based batch norm of images (N, C, H, W).

    Args:
        num_features, eps, momentum: as for `nn.BatchNorm2d`.

    Source: Courbariaux et al. 2016, arXiv:1602.02830, algorithm 3.

    Example:
        >>> ShiftNorm2d(3)(torch.randn(2, 3, 4, 4)).shape
        torch.Size([2, 3, 4, 4])
    """


@torch.no_grad()
def plain_norm(norm: ShiftNorm1d | ShiftNorm2d) -> nn.Module:
    """Return the ordinary batch norm that gives the same outputs in eval mode.

    Args:
        norm: trained.

    Example:
        >>> norm, x = ShiftNorm1d(2), torch.randn(16, 2)
        >>> torch.allclose(plain_norm(norm.eval()).eval()(x), norm(x), atol=1e-6)
        True
    """
    kind = nn.BatchNorm2d if isinstance(norm, nn.BatchNorm2d) else nn.BatchNorm1d
    plain = kind(norm.num_features, norm.eps, norm.momentum).to(norm.weight)
    plain.load_state_dict(norm.state_dict())
    deviation = (norm.running_var + norm.eps).sqrt()
    plain.weight.copy_(nearest_power_of_two(norm.weight) * nearest_power_of_two(1 / deviation) * deviation)
    return plain.train(norm.training)


def with_plain_norms(model: nn.Module) -> nn.Module:
    """Put ordinary batch norms in the place of all shift-based ones of a model, which is changed.

    Args:
        model: trained.

    Example:
        >>> type(with_plain_norms(nn.Sequential(ShiftNorm2d(3)))[0]).__name__
        'BatchNorm2d'
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, ShiftNorm1d | ShiftNorm2d):
            model.set_submodule(name, plain_norm(module))
    return model
