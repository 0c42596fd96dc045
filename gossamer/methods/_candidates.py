"""What methods need to propose themselves for single layers to the planner."""

from typing import Any

PLANNED = (0.5, 0.25, 0.125)  # shares of the channels or features that a factor keeps
MULTIPLE = 8  # ranks are multiples of it, as widths are


def planned_ranks(size: int) -> list[int]:
    """Ranks worth a try for a mode of this size, the gentlest first."""
    ranks = [max(MULTIPLE, MULTIPLE * round(share * size / MULTIPLE)) for share in PLANNED]
    return list(dict.fromkeys(rank for rank in ranks if rank < size))


def is_pointwise(layer: Any) -> bool:
    """Whether every weight of a linear layer or convolution joins one input and one output: no kernel to decompose."""
    return bool(layer.weight[0, 0].numel() == 1)
