"""The main job by metrics that are no share of hits: a segmentation, and a regression whose error grows."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer import Goal, Task
from gossamer.core.batches import Model
from gossamer.core.metric import Evidence, Metric
from gossamer.core.metrics import RMSE, MeanIoU
from gossamer.core.record import JobDocument
from gossamer.errors import BadInput
from gossamer.jobs.recipe import Recipe
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.methods.prune.channels import ChannelPruning
from gossamer.report import verdict
from gossamer.report.page import render
from gossamer.report.table import summary_rows

pytestmark = pytest.mark.usefixtures("quick")

CUT = (ChannelPruning(sparsity=0.5), RecoveryDistillation(epochs=2, lr=0.02))


def bright(n: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Noise, and which of its pixels are bright."""
    x = torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return list(zip(x.split(16), (x[:, 0] > 0).long().split(16)))


def sums(n: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Numbers, and twice their sum in millimetres."""
    x = torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return list(zip(x.split(16), (20 * x.mean((1, 2, 3)))[:, None].split(16)))


def segmenter() -> nn.Module:
    """Exact, by two units alike."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model[0].weight[:2, 0, 1, 1] = 1.0  # type: ignore[union-attr]
        model[2].weight[1, :2, 0, 0] = 1.0  # type: ignore[union-attr]
        model[2].bias[0] = 1e-3  # type: ignore[union-attr]
    return model.eval()


def regressor() -> nn.Module:
    """Exact: half of its units add the positive part, half subtract the negative one."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))
    signs = torch.tensor([1.0, -1.0]).repeat(4)
    with torch.no_grad():
        model[1].weight.copy_(20 / 16 * signs[:, None].expand(8, 16))  # type: ignore[union-attr]
        model[1].bias.zero_()  # type: ignore[union-attr]
        model[3].weight.copy_(signs[None] / 4)  # type: ignore[union-attr]
        model[3].bias.zero_()  # type: ignore[union-attr]
    return model.eval()


class Correlated(Metric):
    """A correlation, which outputs that are all alike have none of."""

    name, unit, points = "correlation", "", 0.01

    def evidence(self, model: Model, loader: Iterable[Any]) -> dict[str, Tensor]:
        return {"pairs": torch.cat([torch.cat([model(x) * 0, y], 1) for x, y in loader])}

    def value(self, evidence: Evidence) -> float:
        return float(torch.corrcoef(evidence["pairs"].T)[0, 1])


def test_a_network_without_a_score_is_refused_before_it_is_cut(tmp_path: Path) -> None:
    task = Task.from_loaders(sums(64, 0), sums(32, 1), metric=Correlated(), loss=lambda m, b: (m(b[0]) - b[1]).mean())
    said = "the metric 'correlation' gives nan for {} on the 32 validation samples: drops are counted from it"
    with pytest.raises(BadInput, match=said.format("the original network")):
        gossamer.compress(regressor(), task, recipe=Recipe(name="cut", steps=CUT, int8=False), out=tmp_path / "cut")
    with pytest.raises(BadInput, match=said.format("the teacher")):
        gossamer.distill(regressor(), regressor(), task, out=tmp_path / "taught")


@pytest.mark.slow
def test_a_segmentation_is_judged_by_mean_iou_and_without_test_data_the_report_says_so(tmp_path: Path) -> None:
    task = Task.from_loaders(bright(64, 0), bright(32, 1), metric=MeanIoU(), name="bright")
    model = segmenter()
    goal = Goal(max_drop=60, params=40)
    made = gossamer.compress(model, task, recipe=Recipe(name="cut", steps=CUT, int8=False), goal=goal, out=tmp_path)
    document = JobDocument.parse((tmp_path / "records.json").read_text())
    scores = {r.subject: r for r in document.records if r.what == "score"}
    value = MeanIoU().score(made.model, task.validation)
    assert scores["result"].value == pytest.approx(100 * value, abs=0.5) and scores["result"].unit == "%"
    assert {r.conditions["split"] for r in scores.values()} == {"validation"}
    assert (
        scores["result"].conditions["metric"] == "mean IoU" and "bootstrap" in scores["result"].conditions["interval"]
    )
    [drop] = [r for r in document.records if r.what == "drop"]
    assert drop.value == pytest.approx(scores["original"].value - scores["result"].value)
    assert "2,000 resamples" in drop.conditions["interval"]
    assert summary_rows(document)[0].name == "Mean IoU on validation"
    assert verdict.NO_TEST in verdict.sentence(document) and "points of mean IoU" in verdict.sentence(document)
    page = render(document)
    assert "Mean IoU in percent" in page and verdict.NO_TEST in page and "top-1" not in page.lower()


@pytest.mark.slow
def test_a_regression_is_judged_by_how_much_its_error_grows(tmp_path: Path) -> None:
    metric = RMSE(unit="mm", points=0.1)
    task = Task.from_loaders(sums(64, 0), sums(32, 1), sums(32, 2), metric=metric, name="sums")
    model = regressor()
    steps = (ChannelPruning(sparsity=0.5, reconstruct=False),)
    goal = Goal(max_drop=0.2, params=250)
    made = gossamer.compress(model, task, recipe=Recipe(name="cut", steps=steps, int8=False), goal=goal, out=tmp_path)
    document = made.document
    before, after = (metric.score(net, task.validation) for net in (model, made.model))
    drop = next(r for r in document.records if r.what == "drop" and r.conditions["split"] == "validation")
    assert after > before and drop.value == pytest.approx((after - before) / 0.1, rel=1e-3)
    assert document.missed == [f"max_drop: {drop.value:.2f} points on validation, asked for at most 0.2"]
    row = summary_rows(document)[0]
    assert row.name == "RMSE on test" and row.after is not None and row.after.text.endswith(" mm")
    assert "points lost" in row.change.text and row.verdict == "worse"
    page = render(document)
    assert "RMSE in mm (lower is better)" in page and "points lost on validation" in page
    original = document.states[0]
    assert original.score == pytest.approx(before, rel=1e-4)
