"""Train a small network from a large one: the job behind `gossamer distill`."""

from gossamer.distillation.job import distill

__all__ = ["distill"]
