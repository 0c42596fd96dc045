"""Specialists for groups of classes, with one dustbin class for all others (Hinton et al. 2015, arXiv:1503.02531,
section 5)."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Of the fixed point that is the combined opinion; it is within 1e-6 long before.
ROUNDS = 50


def dustbin(logits: Tensor, group: Sequence[int]) -> Tensor:
    """Logits (N, len(group) + 1): those of the classes of the group, and one for all others together."""
    others = [i for i in range(logits.shape[1]) if i not in group]
    return torch.cat([logits[:, list(group)], logits[:, others].logsumexp(1, keepdim=True)], 1)


def in_group(target: Tensor, group: Sequence[int]) -> Tensor:
    """Numbers of classes within the group, len(group) for all others."""
    found = torch.full_like(target, len(group))
    for number, label in enumerate(group):
        found[target == label] = number
    return found


def combined_opinion(general: Tensor, special: Sequence[Tensor], groups: Sequence[Sequence[int]]) -> Tensor:
    """q = argmin KL(p_general || q) + sum over k of KL(p_k || q), (N, classes). general: probabilities
    (N, classes); special: (N, len(group) + 1).

    A specialist's dustbin is spread over its classes as q is, again and again: expectation maximisation, which goes to
    the one optimum.
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
