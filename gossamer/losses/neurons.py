"""Which neurons of a teacher's top layer are worth learning (Luo et al. 2016, doi:10.1609/aaai.v30i1.10452).

A neuron is wanted for what it says about the classes and unwanted for what others say already. The energy of a
selection y in {0, 1}^K is E(y) = -sum u_i y_i + beta sum over i < j of r_ij y_i y_j, and its mean-field approximation
gives each neuron's probability of being kept. The paper leaves u and r open to what is known of the data; here they
are `discrimination` and `redundancy`.
"""

import torch
from torch import Tensor

from gossamer.errors import BadInput
from gossamer.losses.precision import wide

COOLING = (1.0, 0.5, 0.25, 0.125)


@wide
def discrimination(features: Tensor, labels: Tensor) -> Tensor:
    """log of the variance between classes over the variance within, shape (K,), then with mean 0 and deviation 1 over
    the neurons. features (N, K); labels (N,) integers, or (N, attributes), where each neuron counts by the attribute
    that it tells best."""
    if features.dim() != 2 or labels.dim() not in (1, 2) or labels.shape[:1] != features.shape[:1]:
        raise BadInput(
            "neurons: features must be (N, K) with labels (N,) or (N, attributes), got "
            f"{tuple(features.shape)} and {tuple(labels.shape)}"
        )
    columns = labels.unbind(1) if labels.dim() == 2 else (labels,)
    ratio = torch.stack([_log_ratio(features, column) for column in columns]).amax(0)
    return (ratio - ratio.mean()) / ratio.std(unbiased=False).clamp_min(1e-6)


def _log_ratio(features: Tensor, labels: Tensor) -> Tensor:
    between, within = torch.zeros_like(features[0]), torch.zeros_like(features[0])
    for label in sorted(set(labels.tolist())):
        rows = features[labels == label]
        between += len(rows) * (rows.mean(0) - features.mean(0)).pow(2)
        within += (rows - rows.mean(0)).pow(2).sum(0)
    tiny = torch.finfo(features.dtype).eps * (between + within).mean()
    return ((between + tiny) / (within + tiny)).log()


@wide
def redundancy(features: Tensor) -> Tensor:
    """Squared correlation of every two neurons, shape (K, K), 0 on the diagonal and for constant neurons."""
    centred = features - features.mean(0)
    unit = centred / centred.norm(dim=0).clamp_min(torch.finfo(features.dtype).tiny)
    squares = (unit.T @ unit).pow(2)
    off_diagonal: Tensor = squares - squares.diag().diag()
    return off_diagonal


@wide
def selection_energy(kept: Tensor, unary: Tensor, pairwise: Tensor, beta: float) -> Tensor:
    """E(y), a scalar. kept: y, or the probabilities of it, shape (K,)."""
    y = kept.to(unary.dtype)
    return -(unary * y).sum() + beta * (y @ pairwise @ y) / 2


@wide
def keep_probabilities(
    unary: Tensor, pairwise: Tensor, beta: float, sweeps: int = 50, start: Tensor | None = None
) -> Tensor:
    """Mean field: q_i = sigmoid(u_i - beta sum_j r_ij q_j), shape (K,). start: where to begin, zeros by default.

    One neuron after another, the most wanted first: of two equal ones the first is in before the second is asked, which
    updates of all at once could never tell apart.
    """
    q = torch.zeros_like(unary) if start is None else start.clone()
    order = unary.argsort(descending=True, stable=True).tolist()
    for _ in range(sweeps):
        before = q.clone()
        for i in order:
            q[i] = torch.sigmoid(unary[i] - beta * (pairwise[i] * q).sum())
        if torch.allclose(q, before, rtol=0, atol=1e-6):
            break
    return q


def select_neurons(features: Tensor, labels: Tensor, count: int, beta: float = 4.0) -> Tensor:
    """Indices of the `count` neurons to learn, ascending. With beta = 0: those with the largest `discrimination`.

    The energy is divided by a temperature that falls from 1: at 1 two equal neurons of middling worth share their
    probability, and only further down one of them is dropped. Of fewer than `count` that the mean field keeps, more are
    added one by one, each time the one that raises the energy least.
    """
    if not 1 <= count <= features.shape[1]:
        raise BadInput(f"neurons: count = {count} must be in [1, {features.shape[1]}], the number of neurons")
    unary, pairwise = discrimination(features, labels), redundancy(features)
    q = torch.zeros_like(unary)
    for temperature in COOLING:
        q = keep_probabilities(unary / temperature, pairwise, beta / temperature, start=q)
    kept = torch.zeros_like(unary, dtype=torch.bool)
    first = q.argsort(descending=True, stable=True)[:count]
    kept[first[q[first] > 0.5]] = True
    while int(kept.sum()) < count:
        gain = unary - beta * pairwise[:, kept].sum(1)
        kept[gain.masked_fill(kept, -torch.inf).argmax()] = True
    return kept.nonzero()[:, 0]
