"""Specialists: networks for groups of classes, with one dustbin class for all other classes.

Source: Hinton et al. 2015, arXiv:1503.02531, section 5.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# Of the fixed point that is the combined opinion; it is within 1e-6 long before.
ROUNDS = 50


def dustbin(logits: Tensor, group: Sequence[int]) -> Tensor:
    """Logits of a specialist from those of all classes: its group, then one dustbin for all other classes.

    Args:
        logits: shape (N, classes).
        group: numbers of the classes of the group.

    Returns:
        Shape (N, len(group) + 1). The last one is the log-sum-exp of the other classes' logits, so that
        the softmax gives the sum of their probabilities.

    Source:
        Hinton et al. 2015, arXiv:1503.02531, section 5.

    Example:
        >>> import torch
        >>> from gossamer.losses import dustbin
        >>> dustbin(torch.zeros(1, 4), group=[0, 2]).softmax(1)
        tensor([[0.2500, 0.2500, 0.5000]])
    """
    others = [i for i in range(logits.shape[1]) if i not in group]
    return torch.cat([logits[:, list(group)], logits[:, others].logsumexp(1, keepdim=True)], 1)


def in_group(target: Tensor, group: Sequence[int]) -> Tensor:
    """Class numbers as places in a group.

    Args:
        target: class numbers, integers of any shape.
        group: numbers of the classes of the group.

    Returns:
        The place of each class in the group, len(group) for all others; the shape of the target.
    """
    found = torch.full_like(target, len(group))
    for number, label in enumerate(group):
        found[target == label] = number
    return found


def combined_opinion(general: Tensor, special: Sequence[Tensor], groups: Sequence[Sequence[int]]) -> Tensor:
    """Combined prediction of a generalist and of specialists: the distribution that is nearest to all of theirs.

    q = argmin KL(p_general || q) + sum over k of KL(p_k || q), where q of the dustbin of k is that of all
    classes outside of its group. It is found by expectation maximization, whose optimum is unique: a
    specialist's dustbin is divided among its classes in the proportions of q, again and again.

    Args:
        general: probabilities of the generalist, shape (N, classes).
        special: probabilities of each specialist, shape (N, len(group) + 1), the dustbin last.
        groups: numbers of the classes of each specialist.

    Returns:
        Probabilities q, shape (N, classes).

    Source:
        Hinton et al. 2015, arXiv:1503.02531, section 5, equation 5.

    Example:
        >>> import torch
        >>> from gossamer.losses import combined_opinion
        >>> general = torch.tensor([[0.4, 0.4, 0.2]])
        >>> special = torch.tensor([[0.7, 0.1, 0.2]])  # of classes 0 and 1, and the dustbin
        >>> combined_opinion(general, [special], [[0, 1]])
        tensor([[0.5500, 0.2500, 0.2000]])
    """
    q = general
    for _ in range(ROUNDS):
        total = general.clone()
        for p, group in zip(special, groups):
            inside = torch.zeros(q.shape[1], dtype=torch.bool, device=q.device)
            inside[list(group)] = True
            rest = q.masked_fill(inside, 0)
            total += p[:, -1:] * rest / rest.sum(1, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)
            total[:, list(group)] += p[:, :-1]
        q = total / (1 + len(groups))
    return q
