"""Measuring: latency on each runtime, accuracy with intervals, peak memory."""

from gossamer.core.runner import Runner
from gossamer.measure.accuracy import (
    Drop,
    accuracy,
    mcnemar,
    paired_drop,
    top1_record,
    whole_samples,
    wilson,
)
from gossamer.measure.latency import Latency, latency, steady_latency
from gossamer.measure.memory import peak_memory

__all__ = [
    "Drop",
    "Latency",
    "Runner",
    "accuracy",
    "latency",
    "mcnemar",
    "paired_drop",
    "peak_memory",
    "steady_latency",
    "top1_record",
    "whole_samples",
    "wilson",
]
