"""The loss classes of torchdistill beside `gossamer.losses` on the same random tensors.

Needs torchdistill in the interpreter (`pip install --no-deps torchdistill`). Where both follow the paper the numbers
are equal; `why` says of the others what torchdistill does otherwise.
"""

import importlib.metadata
from typing import Any

import torch
from torch import Tensor, nn

from gossamer import losses

BATCH, CLASSES = 16, 10
WHY = {
    "FSP": "the paper squares the Frobenius norm of the difference; torchdistill sums the norms of its columns",
    "CRD": "torchdistill has the memory alone (noise-contrastive estimation); gossamer InfoNCE within the batch",
    "DKD": "torchdistill has none",
}


def compared(seed: int) -> dict[str, Any]:
    """Both numbers for each loss, and the relative difference."""
    from torchdistill.losses import mid_level as peer

    g = torch.Generator().manual_seed(seed)
    z, v = (3 * torch.randn(BATCH, CLASSES, generator=g) for _ in range(2))
    y = torch.randint(CLASSES, (BATCH,), generator=g)
    maps = [torch.randn(BATCH, *shape, generator=g).relu() for shape in ((8, 8, 8), (12, 4, 4))]
    other = [torch.randn(BATCH, *shape, generator=g).relu() for shape in ((8, 8, 8), (12, 4, 4))]
    s, t = torch.randn(BATCH, 20, generator=g), torch.randn(BATCH, 20, generator=g)

    def asked(loss: nn.Module, student: list[Tensor], teacher: list[Tensor]) -> float:
        """Their classes take what hooks have gathered, by module and kind."""
        ours, theirs = ({str(i): {"output": x} for i, x in enumerate(xs)} for xs in (student, teacher))
        return float(loss(ours, theirs, y))

    first = {"student_module_path": "0", "student_module_io": "output"}
    first |= {"teacher_module_path": "0", "teacher_module_io": "output"}
    at = {"pair": {"student": {"path": "0", "io": "output"}, "teacher": {"path": "0", "io": "output"}, "weight": 1}}
    ends = {f"{who}_{end}": {"path": path, "io": "output"} for who in ("student", "teacher")
            for end, path in (("first", "0"), ("second", "1"))}  # fmt: skip
    rkd = {"student_output_path": "0", "teacher_output_path": "0", "reduction": "mean"}
    hard = nn.functional.cross_entropy(z, y)
    standard = [losses.standardized(x) for x in (z, v)]
    pairs = {
        "KD": (
            asked(peer.KDLoss(**first, temperature=4.0, alpha=0.1), [z], [v]),
            float(0.1 * hard + 0.9 * losses.kd_loss(z, v, 4.0)),
        ),
        "KD, standardized logits": (
            asked(peer.LogitStdKDLoss(**first, temperature=2.0, alpha=0.1), [z], [v]),
            float(0.1 * hard + 0.9 * losses.kd_loss(*standard, 2.0)),
        ),
        "DIST": (asked(peer.DISTLoss(**first, tau=4.0), [z], [v]), float(losses.dist_loss(z, v, 4.0, 1.0, 1.0))),
        "AT": (
            asked(peer.ATLoss(at_pairs=at, mode="code"), [maps[0]], [other[0]]),
            float(losses.attention_loss(maps[0], other[0])),
        ),
        "FSP": (
            asked(peer.FSPLoss(fsp_pairs={"pair": ends}), maps, other),
            float(losses.fsp_loss((maps[0], maps[1]), (other[0], other[1]))),
        ),
        "RKD, distances": (
            asked(peer.RKDLoss(**rkd, dist_factor=1.0, angle_factor=0.0), [s], [t]),
            float(losses.rkd_distance_loss(s, t)),
        ),
        "RKD, angles": (
            asked(peer.RKDLoss(**rkd, dist_factor=0.0, angle_factor=1.0), [s], [t]),
            float(losses.rkd_angle_loss(s, t)),
        ),
    }
    found: dict[str, Any] = {
        name: {"torchdistill": theirs, "gossamer": ours, "difference": abs(theirs - ours) / abs(ours)}
        for name, (theirs, ours) in pairs.items()
    }
    first_map, second_map = losses.fsp_matrix(*maps), losses.fsp_matrix(*other)
    by_columns = float((first_map - second_map).norm(dim=1).sum() / BATCH)
    found["FSP, norms of columns"] = {
        "torchdistill": pairs["FSP"][0],
        "gossamer": by_columns,
        "difference": abs(pairs["FSP"][0] - by_columns) / by_columns,
    }
    return {**found, "version": importlib.metadata.version("torchdistill"), "why": WHY}
