"""No shape that is considered changes what the network gives: structure, shapes, dtypes, for other sizes as well."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nets import learned, stripes, tiny
from torch import Tensor, nn

from gossamer import Context, Goal, Task
from gossamer.errors import BadInput
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.methods.prune.channels import ChannelPruning
from gossamer.methods.restructure.resolution import ResolutionMultiplier
from gossamer.search.axes import SearchAxis
from gossamer.search.checkpoint_store import CheckpointStore
from gossamer.search.cost_model import CostModel
from gossamer.search.output_invariant import OutputInvariant
from gossamer.search.plan import Planner

X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Maps(nn.Module):
    """A map as large as its image, as of a U-Net."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down, self.up = nn.Conv2d(1, 8, 3, 2, 1), nn.ConvTranspose2d(8, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x).relu())  # type: ignore[no-any-return]


def segments() -> Task:
    batches = [(X, torch.zeros(3, 8, 8, dtype=torch.long))]
    return Task(name="s", train=batches, validation=batches, test=batches, calibration=[X], example_inputs=(X,))


@pytest.mark.slow
def test_smaller_maps_are_no_candidate_and_the_history_says_why(tmp_path: Path) -> None:
    model = Maps().eval()
    cost_model = CostModel(model, segments(), Goal(params=1), CheckpointStore(None, ""), tmp_path, int8=False)
    plan = Planner(
        model,
        segments(),
        Context(),
        CheckpointStore(None, ""),
        cost_model,
        RecoveryDistillation(epochs=1),
        reference=90.0,
    )
    assert (
        plan._measured(SearchAxis("smaller images", (1.0,), lambda _: (ResolutionMultiplier(share=0.75),)), 1.0) is None
    )
    assert plan._measured(SearchAxis("width", (1.0,), lambda _: (ChannelPruning(sparsity=0.5),)), 1.0) is not None
    [row] = plan.trials.rows()
    assert "smaller images" in row.target
    assert "(2, 2, 6, 6)" in row.note and "(2, 2, 8, 8)" in row.note


def test_a_network_with_one_answer_for_images_of_any_size_may_see_less(tmp_path: Path) -> None:
    data = stripes()
    small = ResolutionMultiplier(share=0.75)(learned(), data, Context()).model
    OutputInvariant(learned(), data.example_inputs).check(small)


class Changed(nn.Module):
    def __init__(self, change: Any) -> None:
        super().__init__()
        self.inner, self.change = tiny(), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.inner(x), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y, x: (y, y), "built as"),
        (lambda y, x: {"y": y}, "built as"),
        (lambda y, x: y.double(), "float64"),
        (lambda y, x: y[:, :2], r"\(2, 2\)"),
        (lambda y, x: y if x.shape[-1] == 8 else y[:, :2], r"\(2, 1, 12, 12\)"),
        (lambda y, x: y[:, : x.shape[-1] * 3 // 8], "inputs of shape"),
    ],
)
def test_what_changes_the_outputs_is_refused(change: Any, message: str) -> None:
    same = OutputInvariant(Changed(lambda y, x: y).eval(), (X,))
    same.check(Changed(lambda y, x: y * 2).eval())
    with pytest.raises(BadInput, match=message):
        same.check(Changed(change).eval())


def test_shapes_that_follow_the_data_are_free() -> None:
    def found(y: Tensor, x: Tensor) -> Tensor:
        return y[(x.flatten(1).amax(1) > 1.5)]

    same = OutputInvariant(Changed(found).eval(), (X,))
    same.check(Changed(lambda y, x: y[:1]).eval())
    with pytest.raises(BadInput):
        same.check(Changed(lambda y, x: y[0]).eval())
