"""Measuring: scores with intervals and comparisons of two networks, latency on each runtime, peak memory."""

from gossamer.core.metric import Evaluation, Metric, PerSample
from gossamer.core.metrics import MAE, RMSE, MeanIoU, MultiLabelF1, MultiLabelMAP, Top1, TopK
from gossamer.core.runner import Runner
from gossamer.detection.agreement import BoxAgreement
from gossamer.detection.landmarks import KeypointRecall, LandmarkError, LandmarkFailures
from gossamer.detection.metrics import CocoAP, VocAP
from gossamer.measure.accuracy import (
    Drop,
    evaluate,
    mcnemar,
    paired_drop,
    score_record,
    whole_samples,
    wilson,
)
from gossamer.measure.agreement import Agreement, has_labels, judged_by
from gossamer.measure.classification import AUC, F1
from gossamer.measure.correlation import Correlation
from gossamer.measure.latency import Latency, latency, steady_latency
from gossamer.measure.memory import peak_memory
from gossamer.measure.sequences import Perplexity, SequenceError, greedy_ctc
from gossamer.measure.torchmetrics import FromTorchmetrics

__all__ = [
    "AUC",
    "F1",
    "MAE",
    "RMSE",
    "Agreement",
    "BoxAgreement",
    "CocoAP",
    "Correlation",
    "Drop",
    "Evaluation",
    "FromTorchmetrics",
    "KeypointRecall",
    "LandmarkError",
    "LandmarkFailures",
    "Latency",
    "MeanIoU",
    "Metric",
    "MultiLabelF1",
    "MultiLabelMAP",
    "PerSample",
    "Perplexity",
    "Runner",
    "SequenceError",
    "Top1",
    "TopK",
    "VocAP",
    "evaluate",
    "greedy_ctc",
    "has_labels",
    "judged_by",
    "latency",
    "mcnemar",
    "paired_drop",
    "peak_memory",
    "score_record",
    "steady_latency",
    "whole_samples",
    "wilson",
]
