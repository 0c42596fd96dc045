"""Boxes: overlaps, suppression, matching, losses of detectors, and the metrics that judge them.

Boxes are (left, top, right, bottom) in pixels, the right and the lower edge outside of the object's last pixel.
Lists of boxes of different lengths are padded; a label of -1 marks what is padding.
"""

from gossamer.detection.agreement import BoxAgreement
from gossamer.detection.boxes import box_areas, centers_and_sizes, from_centers, intersections, pairwise_iou
from gossamer.detection.evaluation import Truth, coco_outcomes, voc_outcomes
from gossamer.detection.landmarks import KeypointRecall, LandmarkError, LandmarkFailures, landmark_errors, landmark_loss
from gossamer.detection.losses import adaptive_loss, detection_loss, focal_loss, teacher_loss
from gossamer.detection.metrics import CocoAP, VocAP
from gossamer.detection.suppression import Detections, detections_of, kept_by_nms, select_detections

__all__ = [
    "BoxAgreement",
    "CocoAP",
    "Detections",
    "KeypointRecall",
    "LandmarkError",
    "LandmarkFailures",
    "Truth",
    "VocAP",
    "adaptive_loss",
    "box_areas",
    "centers_and_sizes",
    "coco_outcomes",
    "detection_loss",
    "detections_of",
    "focal_loss",
    "from_centers",
    "intersections",
    "kept_by_nms",
    "landmark_errors",
    "landmark_loss",
    "pairwise_iou",
    "select_detections",
    "teacher_loss",
    "voc_outcomes",
]
