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


Pair = tuple[float, float]
KD_INPUTS = {
    f"{who}_module_{key}": value for who in ("student", "teacher") for key, value in (("path", "0"), ("io", "output"))
}
AT_PAIRS = {"pair": {"student": {"path": "0", "io": "output"}, "teacher": {"path": "0", "io": "output"}, "weight": 1}}
FSP_PAIRS = {
    "pair": {
        f"{who}_{end}": {"path": path, "io": "output"}
        for who in ("student", "teacher")
        for end, path in (("first", "0"), ("second", "1"))
    }
}
RKD_INPUTS = {"student_output_path": "0", "teacher_output_path": "0", "reduction": "mean"}


def theirs(loss: nn.Module, student: list[Tensor], teacher: list[Tensor], labels: Tensor | None = None) -> float:
    """A loss of torchdistill. Its classes take what hooks have gathered, by module and kind."""
    gathered = ({str(i): {"output": x} for i, x in enumerate(xs)} for xs in (student, teacher))
    return float(loss(*gathered, labels))


def on_logits(z: Tensor, v: Tensor, labels: Tensor) -> dict[str, Pair]:
    """Losses on logits: torchdistill's number and ours."""
    from torchdistill.losses import mid_level as peer

    hard = nn.functional.cross_entropy(z, labels)
    standard = [losses.standardized(x) for x in (z, v)]
    return {
        "KD": (
            theirs(peer.KDLoss(**KD_INPUTS, temperature=4.0, alpha=0.1), [z], [v], labels),
            float(0.1 * hard + 0.9 * losses.kd_loss(z, v, 4.0)),
        ),
        "KD, standardized logits": (
            theirs(peer.LogitStdKDLoss(**KD_INPUTS, temperature=2.0, alpha=0.1), [z], [v], labels),
            float(0.1 * hard + 0.9 * losses.kd_loss(*standard, 2.0)),
        ),
        "DIST": (
            theirs(peer.DISTLoss(**KD_INPUTS, tau=4.0), [z], [v], labels),
            float(losses.dist_loss(z, v, 4.0, 1.0, 1.0)),
        ),
    }


def on_maps(maps: list[Tensor], other: list[Tensor]) -> dict[str, Pair]:
    """Losses on two feature maps of each network."""
    from torchdistill.losses import mid_level as peer

    return {
        "AT": (
            theirs(peer.ATLoss(at_pairs=AT_PAIRS, mode="code"), [maps[0]], [other[0]]),
            float(losses.attention_loss(maps[0], other[0])),
        ),
        "FSP": (
            theirs(peer.FSPLoss(fsp_pairs=FSP_PAIRS), maps, other),
            float(losses.fsp_loss((maps[0], maps[1]), (other[0], other[1]))),
        ),
    }


def on_embeddings(s: Tensor, t: Tensor) -> dict[str, Pair]:
    """Losses on relations of embeddings."""
    from torchdistill.losses import mid_level as peer

    return {
        "RKD, distances": (
            theirs(peer.RKDLoss(**RKD_INPUTS, dist_factor=1.0, angle_factor=0.0), [s], [t]),
            float(losses.rkd_distance_loss(s, t)),
        ),
        "RKD, angles": (
            theirs(peer.RKDLoss(**RKD_INPUTS, dist_factor=0.0, angle_factor=1.0), [s], [t]),
            float(losses.rkd_angle_loss(s, t)),
        ),
    }


def compared(seed: int) -> dict[str, Any]:
    """Both numbers for each loss, and the relative difference."""
    g = torch.Generator().manual_seed(seed)
    z, v = (3 * torch.randn(BATCH, CLASSES, generator=g) for _ in range(2))
    labels = torch.randint(CLASSES, (BATCH,), generator=g)
    maps = [torch.randn(BATCH, *shape, generator=g).relu() for shape in ((8, 8, 8), (12, 4, 4))]
    other = [torch.randn(BATCH, *shape, generator=g).relu() for shape in ((8, 8, 8), (12, 4, 4))]
    s, t = torch.randn(BATCH, 20, generator=g), torch.randn(BATCH, 20, generator=g)
    pairs = on_logits(z, v, labels) | on_maps(maps, other) | on_embeddings(s, t)
    found: dict[str, Any] = {
        name: {"torchdistill": peer, "gossamer": ours, "difference": abs(peer - ours) / abs(ours)}
        for name, (peer, ours) in pairs.items()
    }
    first_map, second_map = losses.fsp_matrix(*maps), losses.fsp_matrix(*other)
    by_columns = float((first_map - second_map).norm(dim=1).sum() / BATCH)
    found["FSP, norms of columns"] = {
        "torchdistill": pairs["FSP"][0],
        "gossamer": by_columns,
        "difference": abs(pairs["FSP"][0] - by_columns) / by_columns,
    }
    return {**found, "version": importlib.metadata.version("torchdistill"), "why": WHY}
