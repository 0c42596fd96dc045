"""Best low-rank approximation of a matrix in the metric of a layer's outputs, and least-squares last factors.

In all shapes g is the number of groups, N of outputs, D of inputs. A gram matrix G (g, D, D) is E[x x^T] of the inputs;
without one the metric is the identity, and the error that of the weights.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# Above this size of the smaller side only the leading part of a spectrum is found: this share, or what is asked for.
EXACT_SIZE = 2048
LEADING_SHARE = 4
POWER_STEPS = 4


def energy_of(matrix: Tensor, gram: Tensor | None = None) -> Tensor:
    """Return trace(W G W^T) of every group, (g,): the mean squared output; without G, the sum of squares."""
    return (matrix * (matrix if gram is None else matrix @ gram)).sum((1, 2))


def principal(matrix: Tensor, gram: Tensor | None = None, count: int = 0) -> tuple[Tensor, Tensor]:
    """Return orthonormal directions U (g, N, R) of the outputs, and their energies (g, R), falling; at least `count`
    of them.

    With the first r directions, U_r U_r^T W is the matrix W' of rank r with the least trace((W - W') G (W - W')^T),
    which is the sum of the energies after the first r. U holds the left singular vectors of W G^(1/2). No inverse of G
    is needed, so it may be singular.
    """
    if matrix.shape[1] > matrix.shape[2]:
        q, r = torch.linalg.qr(matrix)
        left, energies = principal(r, gram, count)
        return q @ left, energies
    leading = max(matrix.shape[1] // LEADING_SHARE, count)
    if matrix.shape[1] > EXACT_SIZE and 2 * leading < matrix.shape[1]:
        return _leading(matrix, gram, leading)
    spread = matrix @ (matrix.mT if gram is None else gram @ matrix.mT)
    energies, left = torch.linalg.eigh((spread + spread.mT) / 2)
    return left.flip(2), energies.flip(1).clamp_min(0)


def _leading(matrix: Tensor, gram: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """The same for the leading directions alone, by randomized subspace iteration (Halko et al. 2011, arXiv:0909.4061,
    algorithm 4.4)."""

    whole = matrix @ (matrix.mT if gram is None else gram @ matrix.mT)
    whole = (whole + whole.mT) / 2
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(matrix), matrix.shape[1], count + 16, generator=generator)
    q = torch.linalg.qr(start.to(matrix)).Q
    for _ in range(POWER_STEPS):
        q = torch.linalg.qr(whole @ q).Q
    small = q.mT @ whole @ q
    energies, inner = torch.linalg.eigh((small + small.mT) / 2)
    return (q @ inner.flip(2))[:, :, :count], energies.flip(1)[:, :count].clamp_min(0)


def split_matrix(matrix: Tensor, rank: int, gram: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return A (g, N, rank) and B (g, rank, D): A B is the best approximation of that rank.

    The columns of A are as long as the rows of B. Such factors are as small as they can be, which makes them good to
    train and to quantize.
    """
    left = principal(matrix, gram, rank)[0][:, :, :rank]
    return balance(left, left.mT @ matrix)


def balance(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same product with every column of the first as long as the row of the second that it meets."""
    columns, rows = left.norm(dim=1), right.norm(dim=2)
    used = (columns > 0) & (rows > 0)
    scale = (rows / columns).sqrt().where(used, 1.0)
    return left * scale[:, None], right / scale[:, :, None]


def last_factor(target: Tensor, inner: Tensor, gram: Tensor | None) -> Tensor:
    """Return the best last factor L (g, N, Q) behind a map M (g, Q, D): least trace((W - L M) G (W - L M)^T)."""
    weighted = inner if gram is None else inner @ gram
    normal = weighted @ inner.mT
    return target @ weighted.mT @ torch.linalg.pinv((normal + normal.mT) / 2, hermitian=True)  # type: ignore[no-any-return]


def best_last_factor(target: Tensor, maps: Sequence[Tensor], gram: Tensor) -> tuple[int, Tensor]:
    """Return the number of the map with the least error, each with its best last factor, and that factor."""
    fitted = [last_factor(target, inner, gram) for inner in maps]
    errors = [float(energy_of(target - outer @ inner, gram).sum()) for outer, inner in zip(fitted, maps)]
    best = errors.index(min(errors))
    return best, fitted[best]


def corrected(matrix: Tensor, gram: Tensor, cross: Tensor) -> Tensor:
    """Return W' (g, N, D), which gives from the inputs x of a changed network what W gave from the original's inputs z.

    Least squares with a ridge towards W, for directions that few samples show.

    Args:
        matrix: W, shape (g, N, D).
        gram: E[x x^T], shape (g, D, D).
        cross: E[z x^T], shape (g, D, D).
    """
    size = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    ridge = 1e-3 * size * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    return matrix + torch.linalg.solve(gram + ridge, matrix @ (cross - gram), left=False)  # type: ignore[no-any-return]


def channel_gram(gram: Tensor, channels: int, taps: tuple[int, ...], keep: tuple[int, ...] = ()) -> Tensor:
    """Return E[x x^T] of the inputs at single taps of a kernel, from that of whole windows (g, C taps, C taps).

    It is the mean over the axes of the kernel that are not in `keep`; those in `keep` stay besides the channels.
    """
    view = gram.reshape(len(gram), channels, *taps, channels, *taps)
    letters = "ijklm"[: len(taps)]
    second = "".join(a.upper() if n in keep else a for n, a in enumerate(letters))
    stay = "".join(letters[n] for n in keep)
    result = torch.einsum(f"ga{letters}b{second}->ga{stay}b{stay.upper()}", view)
    size = channels * torch.Size([taps[n] for n in keep]).numel()
    averaged = torch.Size([taps[n] for n in range(len(taps)) if n not in keep]).numel()
    return result.reshape(len(gram), size, size) / averaged


def by_inputs(weight: Tensor) -> Tensor:
    """Return (g, O, I, taps ...) as (g, O taps, I)."""
    return weight.flatten(3).transpose(2, 3).flatten(1, 2)


def by_columns(weight: Tensor) -> Tensor:
    """Return (g, O, I, k, l ...) as (g, O l ..., I k)."""
    return weight.flatten(4).permute(0, 1, 4, 2, 3).flatten(3).flatten(1, 2)


def over_taps(mix: Tensor, taps: int) -> Tensor:
    """Return the matrix (g, R taps, I taps) that applies a mix of channels (g, R, I) to every tap of a window."""
    same = torch.eye(taps, dtype=mix.dtype, device=mix.device)
    return torch.einsum("gri,st->grsit", mix, same).flatten(3, 4).flatten(1, 2)
