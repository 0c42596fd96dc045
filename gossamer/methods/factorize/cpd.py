"""Canonical polyadic decomposition with bounded factors: alternating least squares under a penalty on their norms."""

from collections.abc import Sequence

import torch
from torch import Tensor

LETTERS = "abcdefg"
# Sweeps end when one improves the objective by less than this share of the energy.
TOLERANCE = 1e-7


def rebuild(factors: Sequence[Tensor]) -> Tensor:
    """The tensor: sum over r of the outer products of the columns r."""
    letters = LETTERS[: len(factors)]
    return torch.einsum(",".join(f"{a}z" for a in letters) + f"->{letters}", *factors)


def even(factors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensor with the columns r of all factors equally long, which makes the sum of their squares least."""
    lengths = torch.stack([f.norm(dim=0) for f in factors])
    mean = lengths.clamp_min(1e-300).log().mean(0).exp()
    return [f * (mean / length.clamp_min(1e-300)) for f, length in zip(factors, lengths)]


def cp(tensor: Tensor, rank: int, *, penalty: float, sweeps: int, generator: torch.Generator) -> list[Tensor]:
    """Factors (size, rank) of every mode that make |T - [[..]]|^2 + mu sum |factor|^2 small, float64.

    mu = penalty |T|^(2 - 2 / modes). The penalty keeps terms from growing without bound while they cancel each other:
    tensors of rank above two may be approached by such sequences, without a best approximation (de Silva & Lim 2008,
    arXiv:math/0607647). The start is random, of the size of the tensor.
    """
    energy = float(tensor.square().sum())
    mu = penalty * energy ** (1 - 1 / tensor.ndim)
    letters = LETTERS[: tensor.ndim]
    start = (energy**0.5 / rank**0.5) ** (1 / tensor.ndim)
    factors = [
        start * n**-0.5 * torch.randn(n, rank, generator=generator, dtype=torch.float64).to(tensor)
        for n in tensor.shape
    ]
    before = float("inf")
    for _ in range(sweeps):
        for mode, a in enumerate(letters):
            others = [f for m, f in enumerate(factors) if m != mode]
            terms = ",".join(f"{b}z" for b in letters if b != a)
            right = torch.einsum(f"{letters},{terms}->{a}z", tensor, *others)
            normal = torch.stack([f.T @ f for f in others]).prod(0)
            ridge = (mu + 1e-12 * float(normal.diagonal().mean())) * torch.eye(rank).to(normal)
            factors[mode] = torch.linalg.solve(normal + ridge, right.T).T
        whole = normal * (factors[-1].T @ factors[-1])
        error = energy - 2 * float((right * factors[-1]).sum()) + float(whole.sum())
        factors = even(factors)
        now = error + mu * sum(float(f.square().sum()) for f in factors)
        if before - now < TOLERANCE * energy:
            break
        before = now
    return factors
