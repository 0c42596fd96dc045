"""Metrics of the library torchmetrics."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gossamer.core.batches import kind_and_shape
from gossamer.core.metric import BatchMetric, Evidence
from gossamer.core.outputs import first_tensor
from gossamer.core.units import PERCENT
from gossamer.errors import BadInput, first_line

Prepare = Callable[[Any, Any], tuple[Tensor, Tensor]]


class FromTorchmetrics(BatchMetric):
    """A metric of torchmetrics that takes predictions and targets and gives one number.

    Outputs and targets of all samples are kept, and the metric is computed on each resample of them: an interval takes
    as long as 2,000 values.

    Args:
        metric: an object of torchmetrics: `MulticlassF1Score(num_classes=10)`.
        name: in tables and reports; None: that of its class.
        unit: of the value; None: "%" where the metric's range is 0 to 1, else none.
        points: what one point is, in the value's own scale.
        higher_is_better: None: as the metric says; some say nothing, such as `PearsonCorrCoef`.
        prepare: `prepare(output, target)` gives what the metric takes, the first dimension the sample; None: the first
            output and the target as they are.

    Raises:
        BadInput: nobody says whether higher is better, or the metric gives several numbers.

    Example:
        >>> from types import SimpleNamespace
        >>> class Mean:  # what torchmetrics' objects look like
        ...     higher_is_better = True
        ...     reset = lambda self: self.__dict__.clear()
        ...     update = lambda self, given, asked: setattr(self, "x", (given - asked).mean())
        ...     compute = lambda self: self.x
        >>> FromTorchmetrics(Mean()).score(torch.nn.Identity(), [(torch.ones(4), torch.zeros(4))])
        1.0
    """

    def __init__(
        self,
        metric: Any,
        *,
        name: str | None = None,
        unit: str | None = None,
        points: float = 0.01,
        higher_is_better: bool | None = None,
        prepare: Prepare | None = None,
    ) -> None:
        self.metric, self.points, self.prepare = metric, points, prepare
        self.name = type(metric).__name__ if name is None else name
        if isinstance(metric, type):
            raise BadInput(f"FromTorchmetrics takes an object: {metric.__name__}(...), not the class")
        if not all(callable(getattr(metric, part, None)) for part in ("update", "compute", "reset")):
            raise BadInput(f"FromTorchmetrics takes an object of torchmetrics, not {kind_and_shape(metric)}")
        known = getattr(metric, "higher_is_better", None) if higher_is_better is None else higher_is_better
        if known is None:
            raise BadInput(f"{self.name} does not say whether higher is better; say it: higher_is_better=True or False")
        self.higher_is_better = bool(known)
        ends = getattr(metric, "plot_lower_bound", None), getattr(metric, "plot_upper_bound", None)
        self.unit = (PERCENT if ends == (0.0, 1.0) else "") if unit is None else unit

    def batch(self, output: Any, target: Any) -> Evidence:
        given, asked = (first_tensor(output), target) if self.prepare is None else self.prepare(output, target)
        return {"output": given, "target": asked}

    def value(self, evidence: Evidence) -> float:
        self.metric.reset()
        try:
            self.metric.update(evidence["output"], evidence["target"])
            found = self.metric.compute()
        except (ValueError, RuntimeError, TypeError) as error:
            raise BadInput(f"metric {self.name} refuses outputs or targets: {first_line(error)}") from error
        finally:
            self.metric.reset()
        if not isinstance(found, Tensor | float | int) or torch.as_tensor(found).numel() != 1:
            raise BadInput(f"metric {self.name} gives no single number: average it, or derive a gossamer.Metric")
        return float(found)
