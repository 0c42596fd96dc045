"""Metrics beyond a mean of hits: values by other libraries and by slow loops, and what all of them keep."""

import contextlib
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
import zoo_shim
from scipy import stats
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor, nn

from gossamer.core.metric import Evaluation, Metric, repeat_samples
from gossamer.data import tiny_network
from gossamer.errors import BadInput
from gossamer.measure import (
    AUC,
    F1,
    Agreement,
    Correlation,
    FromTorchmetrics,
    Perplexity,
    SequenceError,
    evaluate,
    greedy_ctc,
    paired_drop,
)
from gossamer.measure.sequences import edit_distances

SAME = nn.Identity()


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labels(classes: int, n: int, seed: int = 1) -> Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("average", ["macro", "weighted", "micro"])
def test_f1_is_that_of_scikit_learn(average: str, dtype: torch.dtype) -> None:
    logits, true = drawn(50, 5, dtype=dtype), labels(4, 50)  # the last class is said and never occurs
    expected = f1_score(true, logits.argmax(1), average=average)
    assert F1(average=average).score(SAME, [(logits[:20], true[:20]), (logits[20:], true[20:])]) == pytest.approx(  # type: ignore[arg-type]
        expected
    )


def test_f1_of_one_class_and_of_one_that_does_not_occur() -> None:
    logits, true = drawn(40, 2), labels(2, 40)
    assert F1(positive=1).score(SAME, [(logits, true)]) == pytest.approx(f1_score(true, logits.argmax(1)))
    assert F1(positive=2).score(SAME, [(torch.eye(3)[:2], torch.tensor([0, 1]))]) == 0
    with pytest.raises(BadInput, match="positive = 2, but the network has 2 classes"):
        F1(positive=2).score(SAME, [(logits, true)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_auc_is_that_of_scikit_learn(dtype: torch.dtype) -> None:
    two, five = labels(2, 60), labels(5, 60)
    tied = drawn(60, dtype=dtype).mul(2).round()
    assert AUC().score(SAME, [(tied, two)]) == pytest.approx(roc_auc_score(two, tied))
    assert AUC().score(SAME, [(tied[:, None], two[:, None])]) == pytest.approx(roc_auc_score(two, tied))
    pair = drawn(60, 2, dtype=dtype)
    assert AUC().score(SAME, [(pair, two)]) == pytest.approx(roc_auc_score(two, pair.softmax(1)[:, 1]))
    logits = drawn(60, 5, dtype=dtype)
    expected = roc_auc_score(five, logits.double().softmax(1), multi_class="ovr")
    assert AUC().score(SAME, [(logits, five)]) == pytest.approx(expected, abs=1e-6)
    several = (drawn(60, 3, seed=5) > 0).long()
    scores = drawn(60, 3, dtype=dtype)
    assert AUC().score(SAME, [(scores, several)]) == pytest.approx(roc_auc_score(several, scores))


def test_perplexity_counts_tokens_of_all_samples_together() -> None:
    logits, target = drawn(2, 4, 6), torch.tensor([[1, 2, 3, 4], [5, 0, -100, -100]])
    shares = logits.softmax(2)
    told = [-math.log(shares[i, t, y]) for i in range(2) for t, y in enumerate(target[i].tolist()) if y >= 0]
    assert Perplexity().score(SAME, [(logits, target)]) == pytest.approx(math.exp(sum(told) / 6))
    later = [-math.log(shares[i, t - 1, y]) for i in range(2) for t, y in enumerate(target[i].tolist()) if t and y >= 0]
    assert Perplexity(shift=True).score(SAME, [(logits, target)]) == pytest.approx(math.exp(sum(later) / len(later)))
    assert math.exp(Perplexity().usual_loss()(SAME, (logits, target))) == pytest.approx(math.exp(sum(told) / 6))


def test_perplexity_refuses_other_shapes_and_labels() -> None:
    with pytest.raises(BadInput, match=r"outputs \(N, T, tokens\) and labels \(N, T\)"):
        Perplexity().score(SAME, [(torch.zeros(2, 6), torch.zeros(2).long())])
    with pytest.raises(BadInput, match="labels from 0 to 6 where the network has 6 tokens"):
        Perplexity().score(SAME, [(torch.zeros(1, 2, 6), torch.tensor([[0, 6]]))])


def edits(one: Any, other: Any) -> int:
    """The definition, one token after the other."""

    @lru_cache(None)
    def rest(i: int, j: int) -> int:
        if i == len(one) or j == len(other):
            return len(one) - i + len(other) - j
        return min(rest(i + 1, j + 1) + (one[i] != other[j]), rest(i + 1, j) + 1, rest(i, j + 1) + 1)

    return rest(0, 0)


def test_edit_distances_are_those_of_the_definition() -> None:
    generator = np.random.default_rng(0)
    pairs = [[tuple(generator.integers(0, 3, generator.integers(0, 8))) for _ in range(40)] for _ in range(2)]
    assert edit_distances(*pairs).tolist() == [edits(a, b) for a, b in zip(*pairs)]
    assert edit_distances([], []).tolist() == []


def test_word_and_character_error_of_strings_and_tokens() -> None:
    said: dict[str, Any] = {"decode": lambda output: ["the cat sat", "yes"]}
    batch = [(torch.zeros(2, 1), ["the cat sat down", "no"])]
    assert SequenceError(**said).score(SAME, batch) == pytest.approx(2 / 5)
    expected = (edits("the cat sat", "the cat sat down") + 3) / (16 + 2)
    assert SequenceError(**said, characters=True, name="character error").score(SAME, batch) == pytest.approx(expected)
    logits = torch.eye(5)[torch.tensor([[3, 4, 1, 3]])]
    assert SequenceError(ends=(1,)).score(SAME, [(logits, torch.tensor([[3, 3, 1, 0]]))]) == 0.5


def test_ctc_takes_repetitions_together_and_drops_blanks() -> None:
    logits = torch.eye(3)[torch.tensor([[0, 1, 1, 0, 1, 2], [2, 2, 2, 2, 2, 2]])]
    assert greedy_ctc()(logits) == [[1, 1, 2], [2]]
    assert greedy_ctc(blank=2)(logits) == [[0, 1, 0, 1], []]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_correlations_are_those_of_scipy(dtype: torch.dtype) -> None:
    given, asked = drawn(30, dtype=dtype).mul(2).round(), drawn(30, seed=2, dtype=dtype).mul(2).round()
    assert Correlation().score(SAME, [(given, asked)]) == pytest.approx(stats.spearmanr(given, asked).statistic)
    expected = stats.pearsonr(given.double(), asked.double()).statistic
    assert Correlation(kind="pearson").score(SAME, [(given[:, None], asked)]) == pytest.approx(expected)


@torch.no_grad()
def test_agreement_needs_no_labels() -> None:
    reference, other = nn.Linear(3, 4), nn.Linear(3, 4)
    inputs = [drawn(10, 3), drawn(5, 3, seed=3)]
    same = torch.cat([reference(x).argmax(1) == other(x).argmax(1) for x in inputs])
    agreement = Agreement(reference=reference)
    assert agreement.score(other, inputs) == pytest.approx(float(same.float().mean()))
    assert agreement.score(reference, [(x, None) for x in inputs]) == 1
    cosine = Agreement(reference=reference, kind="cosine")
    expected = [torch.cosine_similarity(reference(x), other(x)) for x in inputs]
    assert cosine.score(other, inputs) == pytest.approx(float(torch.cat(expected).mean()))
    with pytest.raises(BadInput, match="those of the reference"):
        agreement.score(nn.Linear(3, 5), inputs)


def test_agreement_asks_a_module_once_for_each_batch_and_again_when_its_weights_change() -> None:
    reference, asked = nn.Linear(3, 4), list[int]()
    reference.register_forward_hook(lambda *_: asked.append(1))
    inputs, other = [drawn(10, 3), drawn(5, 3, seed=3)], nn.Linear(3, 4)
    agreement = Agreement(reference=reference, kind="cosine")
    first = agreement.score(other, inputs)
    assert agreement.score(other, [x.clone() for x in inputs]) == first
    assert len(asked) == 2
    with torch.no_grad():
        reference.weight.neg_()
    right = [torch.cosine_similarity(reference(x), other(x)).detach() for x in inputs]
    assert agreement.score(other, inputs) == pytest.approx(float(torch.cat(right).mean()))


def test_agreement_takes_states_by_their_samples() -> None:
    """Of a recurrent network: an output by sample, a state (layers, samples, width), and one without samples."""
    outputs, states, shared = drawn(4, 3), drawn(2, 4, 5), drawn(1, 1, 6)
    changed = states.clone()
    changed[:, 1] = -changed[:, 1]
    metric = Agreement(reference=lambda x: (outputs, states, shared), kind="cosine")
    rows = [
        torch.cat([outputs, s.transpose(0, 1).flatten(1), shared.view(1, 6).expand(4, 6)], 1) for s in (states, changed)
    ]
    right = torch.cosine_similarity(*rows)
    found = metric.evidence(lambda x: (outputs, changed, shared), [torch.zeros(4, 2)])["score"]
    assert found.tolist() == pytest.approx(right.tolist())
    assert right[1] < 0.99 < right[0]


def test_agreement_of_pixels_and_tokens_is_their_share() -> None:
    pixels, tokens = drawn(2, 3, 4, 4), drawn(2, 5, 7)
    for outputs, dim in ((pixels, 1), (tokens, 2)):
        changed = outputs.clone()
        changed[0] = -changed[0]
        same = (changed.argmax(dim) == outputs.argmax(dim)).float().mean()
        constant = Agreement(reference=lambda x, kept=outputs: kept)
        assert constant.score(lambda x, kept=changed: kept, [torch.zeros(2, 1)]) == pytest.approx(float(same))


class Accuracy:
    """A stand-in for an object of torchmetrics, with a range."""

    higher_is_better, plot_lower_bound, plot_upper_bound = True, 0.0, 1.0

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.right, self.n = 0.0, 0

    def update(self, given: Tensor, asked: Tensor) -> None:
        if given.ndim != 2:
            raise ValueError("predictions must be (N, C)")
        self.right, self.n = self.right + float((given.argmax(1) == asked).sum()), self.n + len(asked)

    def compute(self) -> Tensor:
        return torch.tensor(self.right / self.n)


def test_a_metric_of_torchmetrics_is_taken_with_its_range_and_direction() -> None:
    metric = FromTorchmetrics(Accuracy())
    assert (metric.name, metric.unit, metric.higher_is_better) == ("Accuracy", "%", True)
    logits, true = drawn(20, 3), labels(3, 20)
    assert metric.score(SAME, [(logits[:9], true[:9]), (logits[9:], true[9:])]) == pytest.approx(
        float((logits.argmax(1) == true).float().mean())
    )
    with pytest.raises(BadInput, match=r"metric Accuracy refuses outputs or targets: predictions must be \(N, C\)"):
        metric.score(SAME, [(logits[:, 0], true)])


def test_a_metric_of_torchmetrics_that_says_no_direction_or_several_numbers_is_refused() -> None:
    class Undecided(Accuracy):
        higher_is_better = None  # type: ignore[assignment]

    class Several(Accuracy):
        compute = lambda self: torch.zeros(3)  # noqa: E731

    with pytest.raises(BadInput, match="does not say whether higher is better"):
        FromTorchmetrics(Undecided())
    assert not FromTorchmetrics(Undecided(), higher_is_better=False).higher_is_better
    with pytest.raises(BadInput, match=r"takes an object: Accuracy\(\.\.\.\), not the class"):
        FromTorchmetrics(Accuracy)
    with pytest.raises(BadInput, match="gives no single number"):
        FromTorchmetrics(Several()).score(SAME, [(drawn(4, 3), labels(3, 4))])


def test_torchmetrics_itself() -> None:
    with contextlib.suppress(ImportError):
        zoo_shim.torchvision_models()  # torchmetrics imports torchvision where that is installed
    classification = pytest.importorskip("torchmetrics.classification")
    logits, true = drawn(30, 4), labels(4, 30)
    metric = FromTorchmetrics(classification.MulticlassF1Score(num_classes=4))
    assert metric.unit == "%"
    assert metric.score(SAME, [(logits, true)]) == pytest.approx(f1_score(true, logits.argmax(1), average="macro"))


CASES: dict[str, Callable[[], tuple[Metric, Any, Any]]] = {
    "F1": lambda: (F1(), drawn(30, 4), labels(4, 30)),
    "F1 of one": lambda: (F1(positive=3), drawn(30, 4), labels(3, 30)),
    "AUC": lambda: (AUC(), drawn(30, 4).round(), labels(4, 30)),
    "perplexity": lambda: (Perplexity(), drawn(30, 2, 4), labels(4, 60).view(30, 2)),
    "error": lambda: (SequenceError(), drawn(30, 5, 4), labels(4, 120).view(30, 4)),
    "spearman": lambda: (Correlation(), drawn(30).round(), drawn(30, seed=4).round()),
    "pearson": lambda: (Correlation(kind="pearson"), drawn(30), drawn(30, seed=4)),
    "agreement": lambda: (Agreement(reference=lambda x: -x.flip(1)), drawn(30, 3), None),
    "torchmetrics": lambda: (FromTorchmetrics(Accuracy()), drawn(30, 3), labels(3, 30)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_resample_has_the_value_of_its_samples(name: str) -> None:
    metric, outputs, target = CASES[name]()
    evidence = metric.evidence(SAME, [(outputs, target)])
    counts = torch.stack([labels(30, 30, seed=s).bincount(minlength=30) for s in range(4)])
    expected = [metric.value(repeat_samples(evidence, row)) for row in counts]
    assert metric.resampled(evidence, counts).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_batches_do_not_matter_and_a_worse_network_loses_points(name: str) -> None:
    metric, outputs, target = CASES[name]()
    some = [(outputs[a:b], None if target is None else target[a:b]) for a, b in ((0, 11), (11, 30))]
    whole, parted = metric.evidence(SAME, [(outputs, target)]), metric.evidence(SAME, some)
    assert all(torch.equal(whole[key], parted[key]) for key in whole)
    before, after = Evaluation(metric, whole), Evaluation(metric, metric.evidence(lambda x: -x, [(outputs, target)]))
    drop = paired_drop(before, after)
    assert drop.points == pytest.approx(metric.lost(before.value, after.value))
    assert drop.low <= drop.points <= drop.high
    assert paired_drop(before, before).points == 0


def test_a_task_is_judged_by_any_of_them() -> None:
    from gossamer.core.task import Task

    batches = [(torch.rand(8, 1, 8, 8), torch.arange(8) % 3)]
    for metric in (F1(), AUC(), Agreement(reference=tiny_network())):
        found = evaluate(tiny_network(), Task.from_loaders(batches, batches, metric=metric))
        assert 0 <= found.value <= 1 and len(found) == 8
