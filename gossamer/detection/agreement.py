"""Detectors without labels: judged by the boxes that the original finds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from gossamer.core.batches import Loss, Model, inputs_and_target
from gossamer.core.metric import Evidence
from gossamer.core.validation import Range
from gossamer.detection.metrics import CocoAP
from gossamer.detection.suppression import Detections, detections_of
from gossamer.errors import BadInput
from gossamer.losses.outputs import output_loss


def as_they_are(outputs: Any) -> Any:
    """Outputs that are boxes and scores already."""
    return outputs


@dataclass(frozen=True, kw_only=True)
class BoxAgreement(CocoAP):
    """COCO's average precision (or another of its numbers) where the boxes of an original detector are the truth.

    The original's detections with a score above `sure` count as objects. Targets are not looked at, so a folder of
    photographs without labels will do, as long as there is something to find on them. A class of which the original is
    sure nowhere does not count. Cosines of outputs say little about boxes: most places of an image are background.

    Args:
        reference: the original: a module in eval mode, or an exported network.
        decode: from the outputs of a network to what `CocoAP` takes: boxes (N, A, 4) in pixels and scores (N, A,
            classes) as a dict or a tuple, or a list of dicts for each image. For files whose outputs are maps.
        sure: score above which a detection of the original is an object.
        which: as `CocoAP`.
        min_score: as `CocoAP`.
        max_overlap: as `CocoAP`.
        candidates: as `CocoAP`.
        max_detections: as `CocoAP`.

    Raises:
        BadInput: the original is sure of no box at all.

    Example:
        >>> boxes = torch.tensor([[[0.0, 0.0, 8.0, 8.0]]])
        >>> network = lambda x: (boxes, torch.tensor([[[0.9]]]))
        >>> moved = lambda x: (boxes + 1, torch.tensor([[[0.9]]]))
        >>> photos = [torch.zeros(1, 3, 16, 16)]
        >>> metric = BoxAgreement(reference=network, which="AP75")
        >>> metric.score(network, photos), metric.score(moved, photos)
        (1.0, 0.0)
    """

    reference: Model = field(repr=False)
    decode: Callable[[Any], Any] = field(default=as_they_are, repr=False)
    sure: Annotated[float, Range(0, 1)] = 0.3

    def evidence(self, model: Model, loader: Iterable[Any]) -> Evidence:
        return super().evidence(self._decoded(model), self._labelled(loader))

    def usual_loss(self) -> Loss:
        return self._loss

    def _decoded(self, model: Model) -> Model:
        return lambda *inputs: self.decode(model(*inputs))

    def _labelled(self, loader: Iterable[Any]) -> Iterable[Any]:
        """Batches with the original's boxes as targets."""
        objects = 0
        for batch in loader:
            inputs, _ = inputs_and_target(batch)
            with torch.no_grad():
                found = self._boxes_of(self.reference, inputs)
            objects += int((found.labels >= 0).sum())
            yield (*inputs, {"boxes": found.boxes, "labels": found.labels})
        if not objects:
            raise BadInput(
                f"BoxAgreement: the original finds no box with a score above {self.sure:g} in these data; give images "
                "with objects, decode=, or a lower sure="
            )

    def _boxes_of(self, model: Model, inputs: tuple[Any, ...]) -> Detections:
        return detections_of(
            self.decode(model(*inputs)),
            min_score=self.sure,
            max_overlap=self.max_overlap,
            candidates=self.candidates,
            max_detections=self.max_detections,
        )

    def _loss(self, model: Model, batch: Any) -> Tensor:
        """The relative squared error to the outputs of the original, before they are decoded."""
        inputs, _ = inputs_and_target(batch)
        with torch.no_grad():
            expected = self.reference(*inputs)
        return output_loss(model(*inputs), expected)
