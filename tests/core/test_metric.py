"""Metrics: values by hand, resamples against the slow loop, what is refused."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gossamer.core.metric import Evaluation, Metric, PerSample, evaluated, metric_of, repeat_samples
from gossamer.core.metrics import MAE, RMSE, MeanIoU, MultiLabelF1, MultiLabelMAP, Top1, TopK, average_precision
from gossamer.errors import BadInput

SAME = nn.Identity()


def data(metric: Metric, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Outputs and targets that a metric is for."""
    g = torch.Generator().manual_seed(seed)
    if isinstance(metric, MeanIoU):
        target = torch.randint(4, (n, 3, 3), generator=g)
        target[torch.rand(target.shape, generator=g) < 0.2] = 255
        return torch.rand(n, 4, 3, 3, generator=g), target
    if isinstance(metric, MultiLabelF1 | MultiLabelMAP):
        # Few distinct logits, so that there are ties.
        return torch.randint(-3, 4, (n, 5), generator=g).float(), torch.randint(2, (n, 5), generator=g)
    if isinstance(metric, TopK):
        return torch.rand(n, 9, generator=g), torch.randint(9, (n,), generator=g)
    return torch.rand(n, 2, generator=g), torch.rand(n, 2, generator=g)


METRICS: list[Metric] = [
    Top1(), TopK(k=3), MultiLabelF1(), MultiLabelF1(average="micro", threshold=0.7), MultiLabelMAP(), MeanIoU(), MAE(),
    RMSE(unit="m"),
]  # fmt: skip


@pytest.mark.parametrize("metric", METRICS, ids=repr)
def test_many_resamples_at_once_are_the_slow_loop(metric: Metric) -> None:
    """The value of drawn samples themselves, set by set, in a Python loop."""
    evidence = metric.evidence(SAME, [data(metric, 12)])
    counts = torch.randint(0, 3, (20, 12), generator=torch.Generator().manual_seed(1))
    slow = torch.tensor([metric.value(repeat_samples(evidence, row)) for row in counts], dtype=torch.float64)
    torch.testing.assert_close(metric.resampled(evidence, counts), slow)


@pytest.mark.parametrize("metric", METRICS, ids=repr)
def test_batches_make_no_difference_and_the_mean_of_samples_is_the_value_where_there_is_one(metric: Metric) -> None:
    outputs, targets = data(metric, 12)
    whole = metric.evidence(SAME, [(outputs, targets)])
    apart = metric.evidence(SAME, list(zip(outputs.split(5), targets.split(5))))
    assert all(torch.equal(whole[name], apart[name]) for name in whole)
    found = metric.per_sample(whole)
    assert found is None or float(found.double().mean()) == pytest.approx(metric.value(whole))


def test_mean_iou_is_that_of_a_confusion_matrix() -> None:
    logits, labels = data(MeanIoU(), 12)
    table = torch.zeros(4, 4)
    for said, true in zip(logits.argmax(1).flatten().tolist(), labels.flatten().tolist()):
        if true != 255:
            table[true, said] += 1
    ratios = [table[c, c] / (table[c].sum() + table[:, c].sum() - table[c, c]) for c in range(4)]
    assert MeanIoU().score(SAME, [(logits, labels)]) == pytest.approx(float(sum(ratios) / 4))


def test_mean_iou_leaves_out_classes_that_are_nowhere_and_reads_the_first_of_several_outputs() -> None:
    class Several(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": x, "aux": -x}

    logits = torch.zeros(1, 5, 1, 2)
    logits[0, 0] = 1.0
    assert MeanIoU().score(Several(), [(logits, torch.tensor([[[0, 3]]]))]) == pytest.approx(0.25)


def slow_average_precision(scores: list[float], there: list[int]) -> float:
    """Precision at each threshold times the recall that it gains."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        said = [y for s, y in zip(scores, there) if s >= threshold]
        recall = sum(said) / sum(there)
        total += (recall - before) * sum(said) / len(said)
        before = recall
    return total


def test_average_precision_is_the_area_by_the_slow_loop_with_ties() -> None:
    logits, there = data(MultiLabelMAP(), 12)
    for z, y in zip(logits.T, there.T):
        found = average_precision(z, y.double(), torch.ones(1, 12, dtype=torch.float64))
        assert float(found) == pytest.approx(slow_average_precision(z.tolist(), y.tolist()))


def test_map_leaves_out_labels_that_no_sample_has() -> None:
    logits = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    assert MultiLabelMAP().score(SAME, [(logits, torch.tensor([[0, 0], [1, 0]]))]) == pytest.approx(0.5)


def test_f1_by_hand() -> None:
    """Label 0: one hit, one false, one missed; label 1: two hits, one missed; label 2: nowhere."""
    said = torch.tensor([[9.0, 9, -9], [9, 9, -9], [-9, -9, -9]])
    there = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 1, 0]])
    assert MultiLabelF1().score(SAME, [(said, there)]) == pytest.approx((2 / 4 + 4 / 5) / 2)
    assert MultiLabelF1(average="micro").score(SAME, [(said, there)]) == pytest.approx(6 / 9)


def test_regression_errors_by_hand_and_a_column_is_a_vector() -> None:
    outputs, targets = torch.tensor([[1.0], [2.0], [5.0]]), torch.tensor([2.0, 2.0, 1.0])
    assert MAE().score(SAME, [(outputs, targets)]) == pytest.approx(5 / 3)
    assert RMSE().score(SAME, [(outputs, targets)]) == pytest.approx((17 / 3) ** 0.5)


def test_top_k_counts_the_label_among_the_k_largest() -> None:
    logits = torch.tensor([[4.0, 3, 2, 1]]).repeat(4, 1)
    labels = torch.arange(4)
    scores = [TopK(k=k).score(SAME, [(logits, labels)]) for k in (1, 2, 3, 4)]
    assert scores == [0.25, 0.5, 0.75, 1.0] and TopK(k=3).name == "top-3" and Top1().name == "top-1"


@pytest.mark.parametrize(
    ("metric", "output", "target", "message"),
    [
        (TopK(k=5), torch.ones(2, 3), torch.tensor([0, 1]), "the network has 3 outputs; take a smaller k"),
        (Top1(), torch.ones(2, 3), torch.tensor([0, 3]), "labels from 0 to 3 where the network has 3 outputs"),
        (MeanIoU(), torch.ones(2, 3, 2, 2), torch.zeros(2, 4, 4), "scale the outputs to the size of the labels"),
        (MeanIoU(), torch.ones(1, 3, 1, 1), torch.full((1, 1, 1), 7), "labels from 7 to 7"),
        (MultiLabelF1(), torch.ones(2, 3), torch.zeros(2), r"\(N, labels\); they are \(2, 3\) and \(2,\)"),
        (MultiLabelMAP(), torch.ones(2, 3), torch.full((2, 3), 2), "are 0 and 1"),
        (RMSE(), torch.ones(2, 1), torch.ones(2, 3), r"outputs and targets are \(2, 1\) and \(2, 3\)"),
        (MAE(), {"a": "text"}, torch.ones(2), "gives no tensor but a dict"),
    ],
)
def test_what_a_metric_is_not_for_is_refused(metric: Metric, output: Any, target: Tensor, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        metric.score(lambda x: output, [(torch.zeros(2), target)])


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: TopK(k=0), "k = 0 must be at least 1"),
        (lambda: MultiLabelF1(average="weighted"), "average is 'macro' or 'micro'"),  # type: ignore[arg-type]
        (lambda: MultiLabelF1(threshold=1.0), r"threshold is in \(0, 1\)"),
        (lambda: RMSE(units="m"), "unknown RMSE argument 'units'; did you mean 'unit'"),  # type: ignore[call-arg]
        (lambda: metric_of(RMSE(points=0.0)), "points = 0.0 must be greater than 0"),
        (lambda: metric_of(Metric()), "has no name"),
        (lambda: metric_of(RMSE), r"is a class; give a value of it: metric=RMSE\(\)"),
        (lambda: metric_of("top-1"), r"a gossamer.Metric, or a function\(model, loader\), is expected, not 'top-1'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(made: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        made()


class Given(Metric):
    """A metric whose evidence is what it was given."""

    name = "given"

    def __init__(self, found: Any) -> None:
        self.found = found

    def evidence(self, model: Any, loader: Any) -> Any:
        return self.found


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (torch.ones(4), "a dict of tensors whose first dimension is the sample, it gives a tensor"),
        ({}, "a dict of tensors"),
        ({"a": 3.0}, "a dict of tensors"),
        ({"a": torch.ones(4), "b": torch.ones(3)}, r"different numbers of samples: a \(4,\), b \(3,\)"),
        ({"a": torch.ones(3)}, "gives 3 rows for 4 samples"),
        ({"a": torch.tensor(1.0)}, "gives 0 rows for 4 samples"),
    ],
)
def test_evidence_that_is_not_of_every_sample_is_refused(found: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        evaluated(Given(found), SAME, [], 4)


def test_a_function_becomes_a_metric_of_its_name() -> None:
    def mean_brightness(model: Any, loader: Any) -> Tensor:
        return torch.cat([model(x) for x, _ in loader])

    metric = metric_of(mean_brightness)
    assert isinstance(metric, PerSample) and metric.name == "mean brightness"
    assert metric.score(SAME, [(torch.tensor([0.25, 0.75]), None)]) == 0.5
    assert metric_of(lambda model, loader: torch.ones(1)).name == "score" and metric_of(metric) is metric


def test_scores_in_a_unit_may_be_any_number_and_lower_may_be_better() -> None:
    metric = PerSample(function=lambda m, d: torch.tensor([7.0, -2.0]), unit="px", higher_is_better=False, points=0.5)
    assert metric.score(SAME, []) == 2.5
    assert metric.lost(2.0, 3.0) == 2.0 and metric.better(1.0, 2.0) and not metric.better(2.0, 2.0)


def test_values_are_shown_in_their_unit() -> None:
    assert Top1().text(0.932) == "93.20 %" and RMSE(unit="m").text(0.25) == "0.2500 m" and RMSE().text(31.25) == "31.25"
    assert str(Evaluation(Top1(), {"score": torch.tensor([1.0, 0.0])})) == "50.00 %"


def test_errors_are_how_far_a_value_is_from_a_perfect_one() -> None:
    class PSNR(Metric):
        name, unit, points, perfect = "PSNR", "dB", 1.0, float("inf")

    assert Top1().error(0.9) == pytest.approx(0.1) and RMSE().error(0.3) == 0.3 and PSNR().error(30) == float("inf")


def test_a_metric_that_is_neither_a_mean_nor_of_sums_is_asked_set_by_set() -> None:
    class Median(Metric):
        name = "median"

        def value(self, evidence: Mapping[str, Tensor]) -> float:
            return float(evidence["x"].median())

    counts = torch.tensor([[1, 1, 1], [0, 0, 2], [2, 0, 1]])
    assert Median().resampled({"x": torch.tensor([1.0, 5.0, 3.0])}, counts).tolist() == [3.0, 3.0, 1.0]


def test_shapes_of_the_usual_losses_fit_their_metrics() -> None:
    for metric, seed in itertools.product(METRICS, range(2)):
        loss = metric.usual_loss()(SAME, data(metric, 4, seed))
        assert loss.ndim == 0 and float(loss) > 0


def test_an_error_of_the_users_metric_is_told_as_theirs_with_its_line() -> None:
    def broken(model: object, loader: object) -> torch.Tensor:
        return model(torch.rand(2, 7)).argmax(1)  # the network takes three

    with pytest.raises(BadInput, match=rf"the metric broken failed with its own error: RuntimeError.*{__file__}:"):
        evaluated(metric_of(broken), torch.nn.Linear(3, 2), [], None)


class Half(Metric):
    """A metric whose `value` is what it is made with."""

    name = "half"

    def __init__(self, value: Any) -> None:
        self.made = value

    def evidence(self, model: Any, loader: Any) -> dict[str, Tensor]:
        return {"x": torch.cat([x for x, _ in loader])}

    def value(self, evidence: Any) -> Any:
        return self.made() if callable(self.made) else self.made


@pytest.mark.parametrize("value", [0.5, torch.tensor(0.5), torch.tensor([0.5]), np.float32(0.5)])
def test_a_value_may_be_a_number_of_any_kind(value: Any) -> None:
    found = Evaluation(Half(value), {"x": torch.ones(3)})
    assert found.value == 0.5 and type(found.value) is float and str(found) == "50.00 %"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, r"metric 'half': value\(evidence\) must give one number, it gives a NoneType"),
        (torch.ones(2), r"must give one number, it gives a tensor of shape \(2,\)"),
        (lambda: {}["k"], "the metric half failed with its own error: KeyError"),
    ],
)
def test_a_value_that_is_none_is_refused_in_our_words(value: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        _ = Evaluation(Half(value), {"x": torch.ones(3)}).value
