"""MUNGE: synthetic samples near real ones, by exchanging attributes between neighbours.

Source: Bucila, Caruana & Niculescu-Mizil 2006, doi:10.1145/1150402.1150464, section 3.
"""

from typing import Any

import torch
from torch import Tensor

from gossamer.errors import BadInput

# Rows whose distances to all others are held at a time.
ROWS = 512


def nearest_samples(rows_ND: Tensor, nominal_D: Tensor) -> Tensor:
    """Nearest other row of each row.

    Numeric attributes are scaled to [0, 1] and compared by squared distance; nominal attributes that differ add 1.

    Args:
        rows_ND: samples, shape (N, D), N at least 2.
        nominal_D: bool (D,), True for attributes whose values are names.

    Returns:
        Indices, shape (N,).

    Raises:
        BadInput: fewer than 2 rows.
    """
    if len(rows_ND) < 2:
        raise BadInput(f"munge: {len(rows_ND)} samples have no neighbours; give at least 2")
    low, high = rows_ND.amin(0), rows_ND.amax(0)
    scaled = ((rows_ND - low) / (high - low).clamp_min(torch.finfo(rows_ND.dtype).tiny))[:, ~nominal_D]
    others = rows_ND[:, nominal_D]
    found = []
    for start in range(0, len(rows_ND), ROWS):
        part = slice(start, start + ROWS)
        distances = torch.cdist(scaled[part], scaled).pow(2)
        for column in others.unbind(1):
            distances += column[part, None] != column[None]
        distances[torch.arange(len(distances)), torch.arange(start, start + len(distances))] = torch.inf
        found.append(distances.argmin(1))
    return torch.cat(found)


def munge(
    rows_ND: Tensor, probability: float, spread: float, *, nominal_D: Tensor | None = None, neighbours_N: Any = None
) -> Tensor:
    """Copy rows and exchange attributes between neighbours, one pair after the other.

    Each attribute of a pair is exchanged with the given probability, with noise of standard deviation
    |difference| / spread. The random numbers come from torch's global generator.

    Args:
        rows_ND: samples, shape (N, D), N at least 2.
        probability: that an attribute is exchanged, in [0, 1].
        spread: s > 0; larger values add less noise.
        nominal_D: bool (D,), True for attributes whose values are names, which get no noise; None: none of them.
        neighbours_N: index of each row's neighbour, as `nearest_samples` gives it; None: it is computed.

    Returns:
        New rows, shape (N, D).

    Raises:
        BadInput: fewer than 2 rows.

    Source:
        Bucila, Caruana & Niculescu-Mizil 2006, doi:10.1145/1150402.1150464, section 3. The neighbours are
        those of the original rows; the paper looks for them again after every exchange.

    Example:
        >>> import torch
        >>> from gossamer.losses import munge
        >>> rows = torch.tensor([[0.0, 1.0], [0.1, 5.0], [9.0, 3.0]])
        >>> munge(rows, probability=0.5, spread=5.0).shape
        torch.Size([3, 2])
        >>> torch.equal(munge(rows, probability=0.0, spread=5.0), rows)
        True
    """
    nominal = torch.zeros(rows_ND.shape[1], dtype=torch.bool) if nominal_D is None else nominal_D
    neighbours: Tensor = nearest_samples(rows_ND, nominal) if neighbours_N is None else neighbours_N
    rows = rows_ND.clone()
    for i, j in enumerate(neighbours.tolist()):
        a, b = rows[i].clone(), rows[j].clone()
        noise = torch.randn(2, rows.shape[1], dtype=rows.dtype).masked_fill(nominal, 0) * (a - b).abs() / spread
        chosen = torch.rand(rows.shape[1]) < probability
        rows[i], rows[j] = torch.where(chosen, b + noise[0], a), torch.where(chosen, a + noise[1], b)
    return rows
