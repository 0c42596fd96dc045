"""Codebooks: weights that share few values."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from gossamer.constraints.base import Constraint
from gossamer.errors import BadInput


class Codebook(Constraint):
    """Weight sharing: every weight, or every d consecutive weights, is the codebook entry that `indices` names.

    The gradient of an entry is the sum over its users. Entries that are 0 stay 0, so that pruned weights do. The raw
    weight is not used, and gets no gradient.

    Args:
        codebook: (K,), or (K, d) for vectors; it is trained.
        indices: integers in [0, K), any shape: one for each weight or vector in the order of the flattened weight.
        mean: take the mean of the gradients over the users, for learning rates that fit single weights. Sums diverge
            at them, since an entry may have 100,000 users; with means a step moves an entry to the mean of where its
            users would go.
        joint: weights whose codebooks have the same name here share one, which is trained as one.

    Raises:
        BadInput: for a codebook or indices of a wrong shape, dtype or range.

    Example:
        >>> import torch
        >>> Codebook(torch.tensor([-1.0, 1.0]), torch.tensor([0, 1, 1]))(torch.zeros(3)).detach()
        tensor([-1.,  1.,  1.])
    """

    indices: Tensor
    alive: Tensor
    users: Tensor | None

    def __init__(self, codebook: Tensor, indices: Tensor, *, mean: bool = False, joint: str = "") -> None:
        super().__init__()
        self.joint = joint
        if codebook.ndim not in (1, 2) or not len(codebook):
            raise BadInput(f"Codebook: the codebook has shape {list(codebook.shape)}, it must be (K,) or (K, d)")
        if indices.is_floating_point() or indices.dtype == torch.bool:
            raise BadInput(f"Codebook: indices are {indices.dtype}, they must be integers")
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < len(codebook):
            raise BadInput(
                f"Codebook: indices are in [{int(indices.min())}, {int(indices.max())}], "
                f"they must be in [0, {len(codebook)}), the size of the codebook"
            )
        self.codebook = nn.Parameter(codebook.detach().clone())
        self.register_buffer("indices", indices.detach().int())
        self.register_buffer("alive", codebook.detach() != 0)
        self.register_buffer("users", users_of(self.indices, len(codebook)) if mean else None)

    def forward(self, weight: Tensor) -> Tensor:
        return take_entries(self.codebook.where(self.alive, 0.0), self.indices.flatten(), self.users).view(weight.shape)


def joint_codebook(codebook: Tensor, indices: Mapping[str, Tensor], *, mean: bool) -> dict[str, Codebook]:
    """One codebook for all weights of these names. Arguments as of `Codebook`."""
    result = {name: Codebook(codebook, one, mean=mean, joint=next(iter(indices))) for name, one in indices.items()}
    if mean:
        users = users_of(torch.cat([one.flatten() for one in indices.values()]), len(codebook))
        for constraint in result.values():
            constraint.users = users
    return result


def share_codebooks(constraints: Iterable[Constraint]) -> None:
    """Make joint codebooks one parameter again: constraints that were copied one by one have one each."""
    first: dict[str, nn.Parameter] = {}
    for constraint in constraints:
        if isinstance(constraint, Codebook) and constraint.joint:
            constraint.codebook = first.setdefault(constraint.joint, constraint.codebook)


def users_of(indices: Tensor, entries: int) -> Tensor:
    """How often each entry is named, at least 1, shape (entries,), float32."""
    return torch.bincount(indices.flatten(), minlength=entries).clamp(min=1).float()


def take_entries(entries: Tensor, indices: Tensor, users: Tensor | None) -> Tensor:
    """entries[indices]. The gradient of an entry is the sum over its users, or, where `users` counts them, the mean."""
    if users is not None:
        fixed = entries.detach()
        entries = fixed + (entries - fixed) / users.view(-1, *[1] * (entries.ndim - 1))
    # Not entries[indices], whose gradient is three times as slow.
    return entries.index_select(0, indices)
