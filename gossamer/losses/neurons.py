"""Neuron selection: choose the neurons of a teacher's top layer that a student should learn.

A neuron is wanted for what it tells about the classes (`discrimination`) and unwanted for what others tell already
(`redundancy`). The energy of a selection y in {0, 1}^K is E(y) = -sum u_i y_i + beta sum over i < j of r_ij y_i y_j;
its mean-field approximation gives the probability that each neuron is kept. The paper leaves u and r to what is
known of the data; here they are the two functions above.

Source: Luo et al. 2016, doi:10.1609/aaai.v30i1.10452.
"""

import torch
from torch import Tensor

from gossamer.errors import BadInput
from gossamer.losses.precision import wide

COOLING = (1.0, 0.5, 0.25, 0.125)


@wide
def discrimination(features: Tensor, labels: Tensor) -> Tensor:
    """How well each neuron tells classes apart: log of the variance between classes over the variance within.

    Args:
        features: outputs of the neurons, shape (N, K).
        labels: integers, shape (N,), or (N, attributes). Of several attributes the one that a neuron tells best counts.

    Returns:
        Shape (K,), standardized over the neurons to mean 0 and standard deviation 1.

    Raises:
        BadInput: the shapes do not match.

    Source:
        Luo et al. 2016, doi:10.1609/aaai.v30i1.10452, section 3.

    Example:
        >>> import torch
        >>> from gossamer.losses import discrimination
        >>> features = torch.tensor([[0.0, 1.0], [0.1, 5.0], [1.0, 1.0], [1.1, 5.0]])
        >>> discrimination(features, torch.tensor([0, 0, 1, 1]))  # only the first neuron tells the class
        tensor([ 1., -1.])
    """
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
    """Squared correlation of every two neurons.

    Args:
        features: outputs of the neurons, shape (N, K).

    Returns:
        Shape (K, K), values in [0, 1]; 0 on the diagonal and for constant neurons.

    Source:
        Luo et al. 2016, doi:10.1609/aaai.v30i1.10452, section 3.

    Example:
        >>> import torch
        >>> from gossamer.losses import redundancy
        >>> x = torch.arange(4.0)
        >>> redundancy(torch.stack([x, -2 * x], 1)).round()
        tensor([[0., 1.],
                [1., 0.]])
    """
    centred = features - features.mean(0)
    unit = centred / centred.norm(dim=0).clamp_min(torch.finfo(features.dtype).tiny)
    squares = (unit.T @ unit).pow(2)
    off_diagonal: Tensor = squares - squares.diag().diag()
    return off_diagonal


@wide
def selection_energy(kept: Tensor, unary: Tensor, pairwise: Tensor, beta: float) -> Tensor:
    """Energy of a selection of neurons: -sum u_i y_i + beta sum over i < j of r_ij y_i y_j. Lower is better.

    Args:
        kept: y, bool or the probabilities of being kept, shape (K,).
        unary: u, `discrimination`, shape (K,).
        pairwise: r, `redundancy`, shape (K, K).
        beta: weight of the redundancy, at least 0.

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> from gossamer.losses import selection_energy
        >>> u, r = torch.tensor([1.0, 1.0]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> float(selection_energy(torch.tensor([True, True]), u, r, beta=4.0))
        2.0
        >>> float(selection_energy(torch.tensor([True, False]), u, r, beta=4.0))
        -1.0
    """
    y = kept.to(unary.dtype)
    return -(unary * y).sum() + beta * (y @ pairwise @ y) / 2


@wide
def keep_probabilities(
    unary: Tensor, pairwise: Tensor, beta: float, sweeps: int = 50, start: Tensor | None = None
) -> Tensor:
    """Mean-field probabilities that each neuron is kept: q_i = sigmoid(u_i - beta sum_j r_ij q_j).

    The neurons are updated one after the other, the most wanted first. Of two equal neurons the first is then in the
    selection before the second is considered; updates of all at once could not tell them apart.

    Args:
        unary: u, shape (K,).
        pairwise: r, shape (K, K), 0 on the diagonal.
        beta: weight of the redundancy, at least 0.
        sweeps: largest number of passes over all neurons.
        start: probabilities to start from, shape (K,); None starts at zero.

    Returns:
        Shape (K,), values in [0, 1].

    Example:
        >>> import torch
        >>> from gossamer.losses import keep_probabilities
        >>> r = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> keep_probabilities(torch.tensor([4.0, 3.9]), r, beta=8.0).round()  # two neurons that say the same
        tensor([1., 0.])
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
    """Select the neurons to learn: a given number of them, informative and not redundant.

    The energy is divided by a temperature that falls from 1. At temperature 1 two equal neurons of middling worth share
    their probability; at lower temperatures one of them is dropped. Where the mean field keeps fewer than `count`,
    neurons are added one by one, each time the one that raises the energy least.

    Args:
        features: outputs of the neurons, shape (N, K).
        labels: integers, shape (N,) or (N, attributes).
        count: number of neurons to select, from 1 to K.
        beta: weight of the redundancy; 0 takes those with the largest `discrimination`.

    Returns:
        Indices of the neurons, ascending, shape (count,).

    Raises:
        BadInput: count is outside of its range, or the shapes do not match.

    Source:
        Luo et al. 2016, doi:10.1609/aaai.v30i1.10452, section 3.

    Example:
        >>> import torch
        >>> from gossamer.losses import select_neurons
        >>> labels = torch.arange(8) % 2
        >>> noise = torch.linspace(0, 1, 8)
        >>> features = torch.stack([noise, labels + 0.01 * noise, 3 * labels + 0.03 * noise], 1)
        >>> select_neurons(features, labels, count=1)  # the last two say the same; the first of them is enough
        tensor([1])
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
