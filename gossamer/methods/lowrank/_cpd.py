"""Canonical polyadic decomposition (CP, CANDECOMP/PARAFAC) with bounded factors.

Three starts, alternating least squares, then damped Gauss-Newton steps on all factors together.
"""

from collections.abc import Iterator, Sequence

import scipy.linalg
import torch
from torch import Tensor

LETTERS = "abcdefg"
# Sweeps and steps end when one improves the objective by less than this share of the energy.
TOLERANCE = 1e-7
# So many sweeps decide between the starts.
SCOUTING = 5
# The sweep from which on steps are tried longer.
FIRST_LONGER = 3
# Gauss-Newton steps solve for all entries of all factors at once, which costs their number cubed. Up to so many they
# find what sweeps miss; for larger tensors sweeps reached lower errors in the same time.
NEWTON_SIZE = 2000
# The share of the energy that counts as nothing.
EXACT = 1e-16
# Products with larger tensors are computed in single precision.
DOUBLE_SIZE = 1 << 18


def rebuild(factors: Sequence[Tensor]) -> Tensor:
    """Return the tensor of factors (size, rank): the sum over r of the outer products of the columns r."""
    letters = LETTERS[: len(factors)]
    return torch.einsum(",".join(f"{a}z" for a in letters) + f"->{letters}", *factors)


def equal_norms(factors: Sequence[Tensor]) -> list[Tensor]:
    """Return the same tensor with columns of equal length in all factors: the sum of their squares is least."""
    lengths = torch.stack([f.norm(dim=0) for f in factors])
    mean = lengths.clamp_min(1e-300).log().mean(0).exp()
    return [f * (mean / length.clamp_min(1e-300)) for f, length in zip(factors, lengths)]


def cp(tensor: Tensor, rank: int, *, penalty: float, sweeps: int, generator: torch.Generator) -> list[Tensor]:
    """Decompose a tensor: make |T - [[factors]]|^2 + mu sum |factor|^2 small, where mu = penalty |T|^(2 - 2 / modes).

    The penalty keeps terms from growing without bound while they cancel each other: tensors of rank above two may be
    approached by such sequences, without a best approximation (de Silva & Lim 2008, arXiv:math/0607647). Of all factors
    with the same error, those with the smallest norms are found, which is what the error-preserving correction of
    Phan et al. 2020 (arXiv:2008.05441) asks for.

    Args:
        tensor: any number of modes from 2 to 7.
        rank: number of terms.
        penalty: in units in which the tensor has energy 1.
        sweeps: largest number of passes of alternating least squares, or of Gauss-Newton steps.
        generator: of the random starts.

    Returns:
        Factors (size, rank) of every mode, float64.
    """
    fit = _Fit(tensor, penalty)
    if fit.energy == 0:
        return [torch.zeros(n, rank, dtype=torch.float64, device=tensor.device) for n in tensor.shape]
    tried = [fit.swept(start, min(SCOUTING, sweeps)) for start in _starts(tensor.double(), rank, generator)]
    if rank * sum(tensor.shape) <= NEWTON_SIZE:
        starts, tried = sorted(tried, key=lambda found: found[0]), []
        for _, factors in starts:
            tried.append(fit.newton(factors, sweeps))
            if tried[-1][0] < EXACT * fit.energy:
                break
        sweeps = 0
    best, factors = min(tried, key=lambda found: found[0])
    return fit.swept(factors, sweeps - SCOUTING, best)[1]


def products(tensor: Tensor, factors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield T times all factors but that of a mode, (size, rank), mode after mode. A factor may be changed in between.

    Two products with the whole tensor serve all modes: the later ones share that with the first factor.
    """
    heavy = tensor if tensor.numel() <= DOUBLE_SIZE else tensor.float()
    rest = factors[-1]
    for f in factors[-2:0:-1]:
        rest = (f[:, None] * rest[None]).flatten(0, 1)
    yield (heavy.flatten(1) @ rest.to(heavy)).to(factors[0])
    shared = (factors[0].to(heavy).T @ heavy.flatten(1)).to(factors[0]).view(-1, *tensor.shape[1:])
    letters = LETTERS[1 : tensor.ndim]
    for mode, a in enumerate(letters, start=1):
        others = [f for m, f in enumerate(factors) if m not in (0, mode)]
        terms = "".join(f",{b}z" for b in letters if b != a)
        yield torch.einsum(f"z{letters}{terms}->{a}z", shared, *others)


class _Fit:
    """One tensor and its objective."""

    def __init__(self, tensor: Tensor, penalty: float) -> None:
        self.tensor = tensor.double()
        self.energy: float = self.tensor.square().sum().item()
        self.mu: float = penalty * self.energy ** (1 - 1 / tensor.ndim)

    def objective(self, factors: Sequence[Tensor], right: Tensor, mode: int = -1) -> float:
        """right: T times all factors but that of the mode."""
        whole = torch.stack([f.T @ f for f in factors]).prod(0).sum()
        size = sum(float(f.square().sum()) for f in factors)
        product = float((right * factors[mode]).sum())
        return self.energy - 2 * product + float(whole) + self.mu * size

    def swept(self, factors: Sequence[Tensor], sweeps: int, before: float = float("inf")) -> tuple[float, list[Tensor]]:
        """Alternating least squares: each factor in turn is the best one for the others as they are. Where more
        terms than channels cancel each other, sweeps go a long way in small steps; so each is tried longer (Harshman
        1970)."""
        factors, now = list(factors), before
        for sweep in range(sweeps):
            start = list(factors)
            for mode, right in enumerate(products(self.tensor, factors)):
                normal = gram_of_others(factors, mode)
                ridge = (self.mu + 1e-12 * float(normal.diagonal().mean())) * torch.eye(len(normal)).to(normal)
                factors[mode] = torch.linalg.solve(normal + ridge, right.T).T
            # The objective before the lengths are evened out: after it is smaller.
            before, now = now, self.objective(factors, right)
            if sweep >= FIRST_LONGER:
                longer = [a + (sweep + 1) ** 0.5 * (b - a) for a, b in zip(start, factors)]
                there = self.objective(longer, next(products(self.tensor, longer)), 0)
                factors, now = (longer, there) if there < now else (factors, now)
            factors = equal_norms(factors)
            if before - now < TOLERANCE * self.energy:
                break
        return now, factors

    def newton(self, factors: Sequence[Tensor], steps: int) -> tuple[float, list[Tensor]]:
        """Gauss-Newton steps on all factors together, damped (Levenberg-Marquardt)."""
        factors, damping = equal_norms(factors), 1e-3
        rights = list(products(self.tensor, factors))
        value = self.objective(factors, rights[-1])
        for _ in range(steps):
            slope = torch.cat(
                [
                    (right - f @ gram_of_others(factors, m) - self.mu * f).flatten()
                    for m, (f, right) in enumerate(zip(factors, rights))
                ]
            )
            normal = normal_matrix(factors)
            ridge = self.mu + damping * normal.diagonal().mean()
            solved = torch.cholesky_solve(
                slope[:, None], torch.linalg.cholesky(normal.diagonal_scatter(normal.diagonal() + ridge))
            )
            parts = torch.split(solved[:, 0], [f.numel() for f in factors])
            tried = [f + part.view_as(f) for f, part in zip(factors, parts)]
            found = list(products(self.tensor, tried))
            now = self.objective(tried, found[-1])
            if not now < value:
                damping *= 4
            else:
                done = value - now < TOLERANCE * value
                damping, factors, rights, value = max(damping / 4, 1e-10), tried, found, now
                if done:
                    break
            if damping > 1e6 or value < EXACT * self.energy:
                break
        return value, equal_norms(factors)


def gram_of_others(factors: Sequence[Tensor], *modes: int) -> Tensor:
    """The elementwise product of the Gram matrices of all factors but these."""
    return torch.stack([f.T @ f for m, f in enumerate(factors) if m not in modes]).prod(0)


def normal_matrix(factors: Sequence[Tensor]) -> Tensor:
    """J^T J of the rebuilt tensor in all entries of all factors, one factor after the other, each row by row."""
    rows = []
    for m, f in enumerate(factors):
        blocks = []
        for n, g in enumerate(factors):
            gram = gram_of_others(factors, m, n)
            if m == n:
                block = torch.einsum("ij,rs->irjs", torch.eye(len(f)).to(f), gram)
            else:
                block = torch.einsum("rs,is,jr->irjs", gram, f, g)
            blocks.append(block.reshape(f.numel(), g.numel()))
        rows.append(torch.cat(blocks, 1))
    return torch.cat(rows)


def _starts(tensor: Tensor, rank: int, generator: torch.Generator) -> Iterator[list[Tensor]]:
    """Where the fit may begin: at random, by slices, and by simultaneous diagonalization where the rank allows it."""
    size = (float(tensor.square().sum()) / rank) ** (0.5 / tensor.ndim)
    yield [
        size * n**-0.5 * torch.randn(n, rank, generator=generator, dtype=torch.float64).to(tensor) for n in tensor.shape
    ]
    yield by_slices(tensor, rank, generator)
    if tensor.ndim > 2 and rank <= min(tensor.shape[:2]):
        yield by_pencil(tensor, rank, generator)


def by_slices(tensor: Tensor, rank: int, generator: torch.Generator) -> list[Tensor]:
    """The leading singular vectors of the slices T[:, :, i, j, ...], in the orthonormal basis of the later modes that
    gathers their energy. With all of them the tensor is exact; the error is the energy of those left out."""
    bases = [torch.linalg.svd(tensor.movedim(m, 0).flatten(1), full_matrices=False).U for m in range(2, tensor.ndim)]
    turned = tensor
    for m, basis in enumerate(bases, start=2):
        turned = (turned.movedim(m, -1) @ basis).movedim(-1, m)
    slices = turned.flatten(2).permute(2, 0, 1)
    u, s, v = torch.linalg.svd(slices, full_matrices=False)
    order = s.flatten().argsort(descending=True, stable=True)[:rank]
    where, column = order // s.shape[1], order % s.shape[1]
    factors = [u[where, :, column].T * s.flatten()[order], v[where, column].T]
    for m, basis in enumerate(bases, start=2):
        later = torch.Size(tensor.shape[m + 1 :]).numel()
        factors.append(basis[:, where // later % basis.shape[1]])
    factors = equal_norms(factors)
    if len(order) < rank:  # more terms than the tensor has: small ones
        more = [1e-3 * float(f.abs().mean()) for f in factors]
        shapes = [(len(f), rank - len(order)) for f in factors]
        tiny = [a * torch.randn(s, generator=generator, dtype=f.dtype).to(f) for a, s, f in zip(more, shapes, factors)]
        factors = [torch.cat([f, t], 1) for f, t in zip(factors, tiny)]
    return factors


def by_pencil(tensor: Tensor, rank: int, generator: torch.Generator) -> list[Tensor]:
    """Two mixes of slices have the first two factors as their common eigenvectors: exact where the tensor has this rank
    and the factors are independent (Leurgans et al. 1993, SIAM J. Matrix Anal. Appl. 14(4), section 3)."""
    left = torch.linalg.svd(tensor.flatten(1), full_matrices=False).U[:, :rank]
    right = torch.linalg.svd(tensor.transpose(0, 1).flatten(1), full_matrices=False).U[:, :rank]
    core = torch.einsum("ab...,ai,bj->ij...", tensor, left, right).flatten(2)
    mixes = core @ torch.randn(core.shape[2], 2, generator=generator, dtype=core.dtype).to(core)
    first, second = mixes.cpu().unbind(2)
    _, vectors = scipy.linalg.eig(
        first.numpy(), second.numpy() + 1e-12 * float(second.norm()) * torch.eye(rank).numpy()
    )
    y = torch.from_numpy(vectors.astype(complex))
    # Of a complex pair one gives its real part and the other its imaginary part.
    y = torch.where(y.imag.sum(0) < 0, -y.imag, y.real).to(core)
    b = right @ torch.linalg.pinv(y).T
    a = left @ (mixes[..., 1] @ y)
    pairs = torch.einsum("ar,br->abr", a, b).flatten(0, 1)
    factors, rest = [a, b], torch.linalg.lstsq(pairs, tensor.flatten(2).flatten(0, 1)).solution
    for m in range(2, tensor.ndim - 1):
        u, s, v = torch.linalg.svd(rest.view(rank, tensor.shape[m], -1), full_matrices=False)
        factors.append(u[:, :, 0].T)
        rest = s[:, :1] * v[:, 0]
    return equal_norms([*factors, rest.T])
