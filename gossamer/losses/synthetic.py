"""Made-up samples near real ones (Bucila, Caruana & Niculescu-Mizil 2006, doi:10.1145/1150402.1150464, section 3)."""

from typing import Any

import torch
from torch import Tensor

from gossamer.errors import BadInput

# Rows whose distances to all others are held at a time.
ROWS = 512


def nearest(rows_ND: Tensor, nominal_D: Tensor) -> Tensor:
    """The index of each row's nearest other row, (N,): attributes scaled to [0, 1], nominal ones 1 apart if unequal."""
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
    """A copy of the rows in which attributes were exchanged between neighbours, one pair after the other, with torch's
    global generator.

    nominal_D: bool, which attributes are names rather than numbers; none by default. neighbours_N: of `nearest`.
    """
    nominal = torch.zeros(rows_ND.shape[1], dtype=torch.bool) if nominal_D is None else nominal_D
    neighbours: Tensor = nearest(rows_ND, nominal) if neighbours_N is None else neighbours_N
    rows = rows_ND.clone()
    for i, j in enumerate(neighbours.tolist()):
        a, b = rows[i].clone(), rows[j].clone()
        noise = torch.randn(2, rows.shape[1], dtype=rows.dtype).masked_fill(nominal, 0) * (a - b).abs() / spread
        chosen = torch.rand(rows.shape[1]) < probability
        rows[i], rows[j] = torch.where(chosen, b + noise[0], a), torch.where(chosen, a + noise[1], b)
    return rows
