"""Measuring: scores with intervals and comparisons of two networks, latency on each runtime, peak memory."""

from gossamer.core.metric import Evaluation, Metric, PerSample
from gossamer.core.metrics import MAE, RMSE, MeanIoU, MultiLabelF1, MultiLabelMAP, Top1, TopK
from gossamer.core.runner import Runner
from gossamer.measure.accuracy import (
    Drop,
    evaluate,
    mcnemar,
    paired_drop,
    score_record,
    whole_samples,
    wilson,
)
from gossamer.measure.latency import Latency, latency, steady_latency
from gossamer.measure.memory import peak_memory

__all__ = [
    "MAE",
    "RMSE",
    "Drop",
    "Evaluation",
    "Latency",
    "MeanIoU",
    "Metric",
    "MultiLabelF1",
    "MultiLabelMAP",
    "PerSample",
    "Runner",
    "Top1",
    "TopK",
    "evaluate",
    "latency",
    "mcnemar",
    "paired_drop",
    "peak_memory",
    "score_record",
    "steady_latency",
    "whole_samples",
    "wilson",
]
