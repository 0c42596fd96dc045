"""What a report says of a taught student besides numbers: whom it agrees with, where it looks, how sure it is."""

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from gossamer.core.batches import inputs_and_target
from gossamer.core.placement import evaluating
from gossamer.core.record import (
    ClassRow,
    Curve,
    Example,
    Record,
    Reliability,
    Teaching,
)
from gossamer.core.task import Task
from gossamer.measure import calibration
from gossamer.train.feature_hooks import FeatureHooks, stages
from gossamer.train.teachers import gives_outputs_only, only_remembers

EXAMPLES = 6
LEAST_SIDE = 4  # pixels of an attention map, where there are layers that have them
# From dark to bright, equally far apart to the eye, also without colours (viridis).
SHADES = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))

Logits = Mapping[str, Tensor]


def gather_outputs(
    networks: Mapping[str, nn.Module], task: Task, method: str, curves: list[Curve]
) -> tuple[Teaching, list[Record]]:
    """All that there is to say of these networks on this task, and the numbers that belong among the records."""
    whole = Teaching(method=method, networks={s: type(model).__name__ for s, model in networks.items()}, curves=curves)
    asked = {s: model for s, model in networks.items() if not only_remembers(model)}
    if not gives_classes(asked["result"], task):
        return whole, []
    logits, labels = gather_diagnostics(asked, task)
    rows, reliability = class_confidence(logits, labels, task.final_split)
    layers, examples = attention_maps({s: model for s, model in asked.items() if not gives_outputs_only(model)}, task)
    found = replace(
        whole,
        networks={s: name for s, name in whole.networks.items() if s in asked},
        agreement=agreement(logits),
        classes=per_class(logits, labels, task.classes),
        reliability=reliability,
        layers=layers,
        examples=examples,
    )
    return found, rows


def gives_classes(model: nn.Module, task: Task) -> bool:
    """Whether the outputs are logits (N, classes) for integer labels (N,)."""
    inputs, target = inputs_and_target(next(iter(task.validation)))
    with evaluating(model), torch.no_grad():
        return calibration.are_classes(model(*inputs), target)


def gather_diagnostics(networks: Mapping[str, nn.Module], task: Task) -> tuple[dict[str, Tensor], Tensor]:
    """Logits of every network for the samples that results are reported on, and their labels."""
    logits, labels = {}, torch.zeros(0)
    for subject, model in networks.items():
        with evaluating(model):
            logits[subject], labels = calibration.logits_and_labels(model, task.final)
    return logits, labels


def agreement(logits: Logits) -> list[list[float]]:
    """Share of samples for which two networks name the same class, percent."""
    said = [z.argmax(1) for z in logits.values()]
    return [[100 * float((a == b).double().mean()) for b in said] for a in said]


def per_class(logits: Logits, labels: Tensor, classes: Sequence[str]) -> list[ClassRow]:
    """Accuracy on the samples of each class that occurs, percent."""
    rows = []
    for number in sorted(set(labels.tolist())):
        here = labels == number
        right = {s: 100 * float((z[here].argmax(1) == number).double().mean()) for s, z in logits.items()}
        name = classes[number] if number < len(classes) else str(number)
        rows.append(ClassRow(name=name, samples=int(here.sum()), top1=right))
    return rows


def class_confidence(logits: Logits, labels: Tensor, split_name: str) -> tuple[list[Record], list[Reliability]]:
    """Calibration error and negative log likelihood of each network, and its reliability diagram."""
    rows, diagrams = [], []
    for subject, z in logits.items():
        bins = calibration.reliability(z, labels)
        conditions = {"split": split_name}
        ece, nll = calibration.calibration_error(z, labels), calibration.negative_log_likelihood(z, labels)
        bins_said = {**conditions, "bins": len(bins)}
        rows.append(Record(subject=subject, what="ece", value=ece, unit="", n=len(labels), conditions=bins_said))
        rows.append(Record(subject=subject, what="nll", value=nll, unit="nats", n=len(labels), conditions=conditions))
        diagrams.append(
            Reliability(
                subject=subject,
                samples=[one.samples for one in bins],
                confidence=[one.confidence for one in bins],
                accuracy=[one.accuracy for one in bins],
            )
        )
    return rows, diagrams


def attention_maps(
    networks: Mapping[str, nn.Module], task: Task, *, count: int = EXAMPLES
) -> tuple[dict[str, str], list[Example]]:
    """Attention maps (mean square over channels) of networks with a layer of one resolution in common, on the first
    test images of different classes; and the layers. Nothing where there are none."""
    inputs, labels = inputs_and_target(next(iter(task.final)))
    if len(inputs) != 1 or inputs[0].dim() != 4 or not isinstance(labels, Tensor):
        return {}, []
    found = {subject: stages(model, task.example_inputs) for subject, model in networks.items()}
    common = set.intersection(*(set(sizes) for sizes in found.values()))
    if not common:
        return {}, []
    size = min((s for s in common if min(s) >= LEAST_SIDE), default=max(common))
    layers = {subject: sizes[size][1] for subject, sizes in found.items()}
    first = [labels.tolist().index(y) for y in sorted(set(labels.tolist()))][:count]
    images = inputs[0][first]
    maps, said = {}, {}
    for subject, model in networks.items():
        hooks = FeatureHooks(model, [layers[subject]], subject)
        try:
            with evaluating(model), torch.no_grad():
                said[subject] = model(images).argmax(1)
            maps[subject] = hooks()[0].float().pow(2).mean(1)
        finally:
            hooks.remove()
    return layers, [
        Example(
            label=_name(task, labels[row]),
            image=picture(images[i]),
            said={subject: _name(task, y[i]) for subject, y in said.items()},
            maps={subject: picture(one[i]) for subject, one in maps.items()},
        )
        for i, row in enumerate(first)
    ]


def _name(task: Task, label: Tensor) -> str:
    return task.classes[int(label)] if int(label) < len(task.classes) else str(int(label))


def picture(x: Tensor) -> str:
    """An image (C, H, W), its values stretched to the full range, or a map (H, W) in shades; a PNG in base64."""
    x = x.detach().float().cpu()
    x = (x - x.min()) / (x.max() - x.min()).clamp_min(1e-12)
    if x.dim() == 2:
        place = x * (len(SHADES) - 1)
        low = place.floor().long().clamp_max(len(SHADES) - 2)
        table = torch.tensor(SHADES, dtype=torch.float32)
        x_HWC = torch.lerp(table[low], table[low + 1], (place - low)[..., None])
    else:
        x = x if len(x) in (1, 3) else x.mean(0, keepdim=True)
        x_HWC = 255 * x.expand(3, -1, -1).permute(1, 2, 0)
    rows = x_HWC.round().to(torch.uint8).contiguous().numpy()
    height, width, _ = rows.shape
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(lines, 9)), _chunk(b"IEND", b""))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
