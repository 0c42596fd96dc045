"""Binary and ternary weights: signs times scales, under which real weights train."""

import torch
from torch import Tensor, nn

from gossamer.constraints.base import Constraint
from gossamer.core.signs import straight_through, weight_signs
from gossamer.errors import BadInput


def stochastic_sign(x: Tensor) -> Tensor:
    """Return 1 with probability clamp((x + 1) / 2, 0, 1), else -1: x on average, where |x| <= 1.

    Source: Courbariaux et al. 2015, arXiv:1511.00363, equation 2.
    """
    return weight_signs((x + 1) / 2 - torch.rand_like(x).clamp_min(torch.finfo(x.dtype).tiny))


def stochastic_ternary(x: Tensor) -> Tensor:
    """Return sign(x) with probability |x|, else 0: x on average, where |x| <= 1.

    Source: Lin et al. 2015, arXiv:1510.03009, section 4.
    """
    return x.sign() * (torch.rand_like(x) < x.abs()).to(x.dtype)


class Signs(Constraint):
    """scale * sign(weight), one scale for a weight; straight-through gradients.

    Args:
        scale: of the two values, or of the three.
        limit: real weights are kept in [-limit, limit] by the training (`clip_raw_weights`).
        stochastic: while it trains, the value is drawn: its mean is weight / limit.
        ternary: 0 is a value, too. Without randomness, it is that of weights nearer to 0 than to the limit.
        real: outside of the training the value is the real weight, in units of the limit, clipped to [-1, 1].
        keep_zeros: a weight of exactly 0 stays 0, as a mask below wants it; else sign(0) is 1.

    Raises:
        BadInput: for a scale or a limit that is not positive.

    Example:
        >>> Signs(0.5)(torch.tensor([-2.0, 0.0, 0.1]))
        tensor([-0.5000,  0.5000,  0.5000])

    Source:
        Courbariaux et al. 2015, arXiv:1511.00363, equations 1 and 2; Lin et al. 2015, arXiv:1510.03009, section 4.
    """

    def __init__(
        self,
        scale: float,
        *,
        limit: float = 1.0,
        stochastic: bool = False,
        ternary: bool = False,
        real: bool = False,
        keep_zeros: bool = False,
    ) -> None:
        super().__init__()
        if not scale > 0 or not limit > 0:
            raise BadInput(f"Signs: scale = {scale} and limit = {limit} must be positive")
        self.scale, self.limit = scale, limit
        self.stochastic, self.ternary, self.real, self.keep_zeros = stochastic, ternary, real, keep_zeros

    def forward(self, weight: Tensor) -> Tensor:
        return straight_through(self.scale * self._codes(weight.detach()), weight)

    def _codes(self, weight: Tensor) -> Tensor:
        x = weight if self.limit == 1 else weight / self.limit
        random = self.stochastic and self.training
        if self.real and not self.training:
            return x.clamp(-1, 1)
        if self.ternary:
            return stochastic_ternary(x) if random else x.sign() * (x.abs() >= 0.5).to(x.dtype)
        codes = stochastic_sign(x) if random else weight_signs(x)
        return codes * (weight != 0).to(codes.dtype) if self.keep_zeros else codes


class ScaledSigns(Constraint):
    """Mean |w| of each output times sign(w): the binary weights with the least squared error.

    The gradient of a weight is that of its value times 1 / n + scale * [|w| < 1], n the weights of an output.

    Args:
        keep_zeros: a weight of exactly 0 stays 0 and is not counted, as a mask below wants it; else sign(0) is 1.

    Example:
        >>> ScaledSigns()(torch.tensor([[-2.0, 1.0], [0.5, 0.0]]))
        tensor([[-1.5000,  1.5000],
                [ 0.2500,  0.2500]])

    Source:
        Rastegari et al. 2016, arXiv:1603.05279, sections 3.1 and 3.2.
    """

    def __init__(self, *, keep_zeros: bool = False) -> None:
        super().__init__()
        self.keep_zeros = keep_zeros

    def forward(self, weight: Tensor) -> Tensor:
        raw = weight.detach()
        counted = (raw != 0).flatten(1).sum(1).clamp_min(1) if self.keep_zeros else raw[0].numel()
        scales = (raw.abs().flatten(1).sum(1) / counted).view(-1, *[1] * (raw.dim() - 1))
        codes = raw.sign() if self.keep_zeros else weight_signs(raw)
        slope = 1 / raw[0].numel() + scales * (raw.abs() < 1).to(raw.dtype)
        return straight_through(scales * codes, weight, slope)


def ternary_threshold(weight: Tensor, share: float) -> Tensor:
    """Return share * mean |w|: weights up to it become 0.

    Source: Li et al. 2016, arXiv:1605.04711, equation 6 (share 0.7; 0.75 in later versions).
    """
    return share * weight.abs().mean()


class TernaryWeights(Constraint):
    """a sign(w) where |w| > threshold, else 0; straight-through gradients.

    The threshold is 0.7 mean |w|, a the mean |w| of what is above it: the least squared error for that threshold.

    Args:
        share: the threshold in units of mean |w|.

    Example:
        >>> TernaryWeights()(torch.tensor([-2.0, 0.1, 1.0]))
        tensor([-1.5000,  0.0000,  1.5000])

    Source:
        Li et al. 2016, arXiv:1605.04711, equations 3 and 6.
    """

    def __init__(self, share: float = 0.7) -> None:
        super().__init__()
        self.share = share

    def forward(self, weight: Tensor) -> Tensor:
        raw = weight.detach()
        above = (raw.abs() > ternary_threshold(raw, self.share)).to(raw.dtype)
        scale = (raw.abs() * above).sum() / above.sum().clamp_min(1)
        return straight_through(scale * raw.sign() * above, weight)


class TrainedTernary(Constraint):
    """positive where w > t max |w|, -negative where w < -t max |w|, else 0; both values are trained (TTQ).

    A value gets the sum of the gradients of its weights. A real weight gets the gradient of its value times that
    value's size, times 1 where it is 0.

    Args:
        positive: at first, > 0.
        negative: at first, > 0.
        threshold: t, in (0, 1).

    Example:
        >>> TrainedTernary(2.0, 1.0)(torch.tensor([-1.0, 0.01, 0.5])).detach()
        tensor([-1.,  0.,  2.])

    Source:
        Zhu et al. 2016, arXiv:1612.01064, equations 6 to 9.
    """

    def __init__(self, positive: float, negative: float, threshold: float = 0.05) -> None:
        super().__init__()
        self.positive, self.negative = nn.Parameter(torch.tensor(positive)), nn.Parameter(torch.tensor(negative))
        self.threshold = threshold

    def forward(self, weight: Tensor) -> Tensor:
        raw, positive, negative = weight.detach(), self.positive.abs(), self.negative.abs()
        limit = self.threshold * raw.abs().max()
        above, below = (raw > limit).to(raw.dtype), (raw < -limit).to(raw.dtype)
        slope = 1 + above * (positive.detach() - 1) + below * (negative.detach() - 1)
        return straight_through(positive * above - negative * below, weight, slope)


def loss_aware_values(weight: Tensor, curvature: Tensor, bits: int, rounds: int = 8) -> Tensor:
    """Return the values a b that a proximal Newton step leads to: the least sum of d (w - a b)^2.

    Args:
        weight: w, any shape; a layer's real weights.
        curvature: d > 0 of the same shape, the diagonal of the Hessian.
        bits: 1: b is -1 or 1, in closed form. m >= 2: b = c / k, c an integer in [-k, k], k = 2^(m-1) - 1; m = 2 is
            ternary. a and b then take turns, which ends in a local minimum.
        rounds: how many turns.

    Source: Hou et al. 2017, arXiv:1611.01600, proposition 3.1; Hou & Kwok 2018, arXiv:1802.08635, sections 3.2 and 3.3.
    """
    a = (curvature * weight.abs()).sum() / curvature.sum()
    if bits == 1:
        return a * weight_signs(weight)
    k = (1 << (bits - 1)) - 1
    a, b = a * (1 + bits) / 2, torch.zeros_like(weight)
    for _ in range(rounds if float(a) > 0 else 0):
        b = (k * weight / a).round().clamp(-k, k) / k
        a = (curvature * b * weight).sum() / (curvature * b * b).sum().clamp_min(torch.finfo(weight.dtype).tiny)
    return a * b


class LossAware(Constraint):
    """The values a b with the least sum of d (w - a b)^2, a of the whole weight; straight-through gradients.

    d is the curvature of the loss, which the training updates (`update_curvature`). If all are equal, these are the
    values of the least squared error.

    Args:
        shape: of the weight.
        bits: 1: binary; 2: ternary; m: 2^m - 1 values.
        keep_zeros: a weight of exactly 0 stays 0, as a mask below wants it; more than one bit always keeps them.

    Example:
        >>> LossAware((2,))(torch.tensor([-2.0, 1.0]))
        tensor([-1.5000,  1.5000])

    Source:
        Hou et al. 2017, arXiv:1611.01600; Hou & Kwok 2018, arXiv:1802.08635.
    """

    curvature: Tensor

    def __init__(self, shape: tuple[int, ...], *, bits: int = 1, keep_zeros: bool = False) -> None:
        super().__init__()
        self.bits, self.keep_zeros = bits, keep_zeros
        self.register_buffer("curvature", torch.ones(shape))

    def forward(self, weight: Tensor) -> Tensor:
        raw, curvature = weight.detach(), self.curvature
        if self.keep_zeros:
            alive = (raw != 0).to(raw.dtype)
            curvature = (curvature * alive).clamp_min(torch.finfo(raw.dtype).tiny)
            return straight_through(loss_aware_values(raw, curvature, self.bits) * alive, weight)
        return straight_through(loss_aware_values(raw, curvature, self.bits), weight)
