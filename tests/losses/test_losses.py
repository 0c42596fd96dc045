"""Losses of teacher and student against slow loops in NumPy, their gradients, and what their papers say of them."""

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import gossamer.losses as losses
from gossamer.errors import BadInput
from gossamer.losses import (
    attention_loss,
    channel_wise_loss,
    contrastive_loss,
    decoupled_kl,
    discrimination,
    dist_loss,
    dkd_loss,
    fsp_loss,
    gaussian_loss,
    gradient_attention_loss,
    hint_loss,
    input_gradient,
    kd_loss,
    keep_probabilities,
    logit_loss,
    multi_label_loss,
    mutual_loss,
    output_loss,
    redundancy,
    rkd_angle_loss,
    rkd_distance_loss,
    select_neurons,
    selection_energy,
    square_hinge_loss,
    standardized,
    statistics_loss,
    total_variation,
)
from gossamer.losses.precision import widened

Array = NDArray[np.float64]
TARGET = torch.tensor([0, 2, 1, 3, 0])


def pair(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A student's and a teacher's tensor, float64."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return student, teacher


def softmax(row: Array) -> Array:
    return np.exp(row) / np.exp(row).sum()


def slow_kl(p: Array, q: Array) -> float:
    return float(sum(a * np.log(a / b) for a, b in zip(p, q)))


def slow_kd(z: Array, v: Array, temperature: float = 3.0) -> float:
    rows = [slow_kl(softmax(b / temperature), softmax(a / temperature)) for a, b in zip(z, v)]
    return temperature**2 * float(np.mean(rows))


def slow_logits(z: Array, v: Array) -> float:
    return float(np.mean([sum((a - b) ** 2 for a, b in zip(*rows)) / 2 for rows in zip(z, v)]))


def slow_multi_label(z: Array, v: Array) -> float:
    total = 0.0
    for a, b in zip(z.ravel() / 3, v.ravel() / 3):
        q, p = 1 / (1 + np.exp(-a)), 1 / (1 + np.exp(-b))
        total += p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    return 9 * total / len(z)


def slow_dkd(z: Array, v: Array) -> float:
    total = 0.0
    for a, b, t in zip(z, v, TARGET.tolist()):
        q, p = softmax(a / 3), softmax(b / 3)
        others = [i for i in range(len(p)) if i != t]
        tckd = slow_kl(np.array([p[t], 1 - p[t]]), np.array([q[t], 1 - q[t]]))
        nckd = slow_kl(p[others] / (1 - p[t]), q[others] / (1 - q[t]))
        total += 9 * (1 * tckd + 8 * nckd)
    return total / len(z)


def slow_dist(z: Array, v: Array) -> float:
    q, p = (np.stack([softmax(row / 3) for row in x]) for x in (z, v))
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, p)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T)])
    return float(9 * (2 * inter + 0.5 * intra))


def slow_standardized(z: Array, v: Array) -> float:
    def standard(x: Array) -> Array:
        return np.stack([(row - row.mean()) / row.std(ddof=1) for row in x])

    return slow_kd(standard(z), standard(v), 2.0)


def slow_mutual(z: Array, v: Array) -> float:
    return (slow_kd(z, v, 1.0) + slow_kd(z, v[::-1], 1.0)) / 2


def slow_hint(s: Array, t: Array) -> float:
    return sum((a - b) ** 2 for a, b in zip(s.ravel(), t.ravel())) / 2 / s.size


def slow_output(s: Array, t: Array) -> float:
    return float(np.mean((s - t) ** 2) / t.var())


def slow_map(x: Array) -> Array:
    maps = []
    for sample in x:
        sums = np.array([sum(abs(c[h, w]) ** 2 for c in sample) for h in range(3) for w in range(3)])
        maps.append(sums / np.sqrt((sums**2).sum()))
    return np.array(maps)


def slow_attention(s: Array, t: Array) -> float:
    return float(((slow_map(s) - slow_map(t)) ** 2).mean())


def slow_gradient_attention(s: Array, t: Array) -> float:
    return float(np.mean([((a - b) ** 2).sum() / 2 for a, b in zip(s, t)]))


def slow_fsp(s: Array, t: Array) -> float:
    def matrix(x: Array, i: int, j: int) -> float:
        return sum(float(x[i, h, w] * x[j, h, w]) for h in range(3) for w in range(3)) / 9

    return sum(
        (matrix(a, i, j) - matrix(b, i, j)) ** 2 for a, b in zip(s, t) for i in range(2) for j in range(2, 5)
    ) / len(s)


def huber(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def slow_distances(s: Array, t: Array) -> float:
    def relative(x: Array) -> dict[tuple[int, int], float]:
        apart = {
            (i, j): float(np.sqrt(((x[i] - x[j]) ** 2).sum())) for i, j in itertools.permutations(range(len(x)), 2)
        }
        mean = sum(apart.values()) / len(apart)
        return {at: d / mean for at, d in apart.items()}

    a, b = relative(s), relative(t)
    return sum(huber(a[at] - b[at]) for at in a) / len(s) ** 2


def slow_angles(s: Array, t: Array) -> float:
    def cosine(x: Array, i: int, j: int, k: int) -> float:
        a, b = x[j] - x[i], x[k] - x[i]
        length = np.sqrt((a**2).sum() * (b**2).sum())
        return float((a * b).sum() / length) if length else 0.0

    places = list(itertools.product(range(len(s)), repeat=3))
    return sum(huber(cosine(s, *at) - cosine(t, *at)) for at in places) / len(places)


def slow_contrastive(s: Array, t: Array) -> float:
    def one_way(a: Array, b: Array) -> float:
        total = 0.0
        for i, x in enumerate(a):
            close = np.array([x @ y / np.sqrt((x @ x) * (y @ y)) / 0.1 for y in b])
            total -= np.log(softmax(close)[i])
        return total / len(a)

    return (one_way(s, t) + one_way(t, s)) / 2


def slow_gaussian(s: Array, t: Array) -> float:
    """Two outputs: -log density up to a constant, averaged over draws of noise 0.3 around the teacher's."""
    total = 0.0
    for (m0, m1, l0, l1), (v0, v1, _, _) in zip(s, t):
        for m, log_variance, v in ((m0, l0, v0), (m1, l1, v1)):
            total += 0.5 * (log_variance + ((v - m) ** 2 + 0.3) / np.exp(log_variance))
    return total / (2 * len(s))


def slow_hinge(s: Array, t: Array) -> float:
    total = 0.0
    for row, label in zip(s, TARGET.tolist()):
        for k, logit in enumerate(row):
            total += max(0.0, 1 - (1 if k == label else -1) * logit) ** 2
    return total / s.size


def slow_statistics(s: Array, t: Array) -> float:
    means, spreads = 0.0, 0.0
    for c in range(s.shape[1]):
        means += float(np.mean(s[:, c]) - np.mean(t[:, c])) ** 2
        spreads += float(np.var(s[:, c]) - np.var(t[:, c])) ** 2
    return float(np.sqrt(means) + np.sqrt(spreads))


def slow_variation(s: Array, t: Array) -> float:
    x = s - t
    down = [(x[n, c, i + 1, j] - x[n, c, i, j]) ** 2 for n, c, i, j in np.ndindex(2, 5, 2, 3)]
    right = [(x[n, c, i, j + 1] - x[n, c, i, j]) ** 2 for n, c, i, j in np.ndindex(2, 5, 3, 2)]
    return float(np.mean(down) + np.mean(right))


def statistics(s: Tensor, t: Tensor) -> Tensor:
    rows = widened(t).transpose(0, 1).flatten(1)
    return statistics_loss(s, rows.mean(1), rows.var(1, unbiased=False))


def slow_channel_wise(s: Array, t: Array) -> float:
    total = 0.0
    for n, c in np.ndindex(s.shape[:2]):
        p, q = (np.exp(x[n, c] / 3) / np.exp(x[n, c] / 3).sum() for x in (t, s))
        total += 9 * float((p * np.log(p / q)).sum())
    return total / (s.shape[0] * s.shape[1])


Loss = Callable[[Tensor, Tensor], Tensor]
LOGITS, MAPS, EMBEDDINGS = (5, 4), (2, 5, 3, 3), (5, 6)
CASES: dict[str, tuple[Loss, Callable[[Array, Array], float], tuple[int, ...]]] = {
    "kd": (lambda z, v: kd_loss(z, v, 3.0), slow_kd, LOGITS),
    "logits": (logit_loss, slow_logits, LOGITS),
    "multi-label": (lambda z, v: multi_label_loss(z, v, 3.0), slow_multi_label, LOGITS),
    "square hinge": (lambda z, v: square_hinge_loss(z, TARGET), slow_hinge, LOGITS),
    "dkd": (lambda z, v: dkd_loss(z, v, TARGET, 3.0), slow_dkd, LOGITS),
    "dist": (lambda z, v: dist_loss(z, v, 3.0, 2.0, 0.5), slow_dist, LOGITS),
    "standardized": (lambda z, v: kd_loss(standardized(z), standardized(v), 2.0), slow_standardized, LOGITS),
    "mutual": (lambda z, v: mutual_loss(z, v, v.flip(0)), slow_mutual, LOGITS),
    "outputs": (output_loss, slow_output, LOGITS),
    "hints": (hint_loss, slow_hint, MAPS),
    "attention": (attention_loss, slow_attention, MAPS),
    "channel-wise": (lambda s, t: channel_wise_loss(s, t, 3.0), slow_channel_wise, MAPS),
    "gradient attention": (gradient_attention_loss, slow_gradient_attention, MAPS),
    "fsp": (lambda s, t: fsp_loss((s[:, :2], s[:, 2:]), (t[:, :2], t[:, 2:])), slow_fsp, MAPS),
    "rkd distance": (rkd_distance_loss, slow_distances, EMBEDDINGS),
    "rkd angle": (rkd_angle_loss, slow_angles, EMBEDDINGS),
    "contrastive": (contrastive_loss, slow_contrastive, EMBEDDINGS),
    "gaussian": (lambda s, t: gaussian_loss(s[:, :2], s[:, 2:], t[:, :2], 0.3), slow_gaussian, LOGITS),
    "statistics": (statistics, slow_statistics, MAPS),
    "variation": (lambda s, t: total_variation(widened(s) - widened(t)), slow_variation, MAPS),
}
each = pytest.mark.parametrize("name", CASES)


def test_every_loss_has_a_slow_double_here() -> None:
    named = {name for loss, _, _ in CASES.values() for name in (loss.__name__, *loss.__code__.co_names)}
    assert {name for name in losses.__all__ if name.endswith("_loss")} <= named


@each
def test_it_is_its_definition(name: str) -> None:
    loss, slow, shape = CASES[name]
    for seed in range(3):
        student, teacher = pair(*shape, seed=seed)
        assert float(loss(student, teacher)) == pytest.approx(slow(student.numpy(), teacher.numpy()), rel=1e-9)


@each
def test_its_gradient_is_that_of_finite_differences(name: str) -> None:
    loss, _, shape = CASES[name]
    student, teacher = pair(*shape, seed=7)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), (student.requires_grad_(),), atol=1e-6)


# One has a mean and a variance of its own, one learns from labels.
@pytest.mark.parametrize("name", sorted(CASES.keys() - {"gaussian", "square hinge"}))
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(name: str) -> None:
    loss, _, shape = CASES[name]
    own, teacher = pair(*shape)
    least = float(loss(teacher, teacher))
    if name not in ("contrastive", "mutual"):  # these also have to tell samples, and networks, apart
        assert least == pytest.approx(0, abs=1e-12)
    assert float(loss(own, teacher)) > least


@each
def test_narrow_floats_are_widened_also_under_autocast(name: str) -> None:
    loss, _, shape = CASES[name]
    student, teacher = (x.bfloat16() for x in pair(*shape))
    with torch.autocast("cpu", torch.bfloat16):
        got = loss(student, teacher)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), loss(student.double(), teacher.double()), rtol=1e-4, atol=1e-6)


def test_the_module_offers_what_it_names() -> None:
    assert all((getattr(losses, name).__doc__ or "").strip() for name in losses.__all__)
    assert losses.__all__ == sorted(losses.__all__)


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    [found] = torch.autograd.grad(loss(at), [at])
    return found


def test_at_high_temperature_soft_targets_regress_centred_logits() -> None:
    z, v = (x - x.mean(1, keepdim=True) for x in pair(*LOGITS))
    torch.testing.assert_close(kd_loss(z, v, 1e4), logit_loss(z, v) / 4, rtol=1e-3, atol=0)
    soft, plain = gradient(lambda x: kd_loss(x, v, 1e4), z), gradient(lambda x: logit_loss(x, v), z)
    torch.testing.assert_close(soft, plain / 4, rtol=1e-2, atol=1e-5)


def test_the_square_of_the_temperature_keeps_the_size_of_the_gradient() -> None:
    z, v = pair(64, 10)
    sizes = [float(gradient(lambda x, t=t: kd_loss(x, v / 2, t), z / 2).norm()) for t in (5.0, 20.0, 100.0)]  # type: ignore[misc]
    assert max(sizes) / min(sizes) < 1.1


def test_regression_of_logits_sees_a_shift_and_soft_targets_do_not() -> None:
    z, v = pair(*LOGITS)
    torch.testing.assert_close(kd_loss(z + 5, v, 2.0), kd_loss(z, v, 2.0))
    assert float(logit_loss(v + 5, v)) == pytest.approx(4 * 25 / 2)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_decoupled_parts_add_up_to_the_whole(scale: float) -> None:
    """KL = TCKD + (1 - p_t) NCKD, also where the teacher is sure."""
    z, v = (scale * x for x in pair(*LOGITS))
    tckd, nckd = decoupled_kl(z, v, TARGET)
    p_target = v.softmax(1).gather(1, TARGET[:, None])[:, 0]
    torch.testing.assert_close((tckd + (1 - p_target) * nckd).mean(), kd_loss(z, v, 1.0))
    assert torch.isfinite(gradient(lambda x: dkd_loss(x, v, TARGET, 1.0), z)).all()


def test_standardized_logits_forget_shift_and_scale() -> None:
    z, _ = pair(*LOGITS)
    torch.testing.assert_close(standardized(3 * z + 2), standardized(z))
    assert torch.isfinite(standardized(torch.ones(2, 3))).all()


def test_dist_sees_relations_only() -> None:
    """Per sample any increasing linear map of the probabilities keeps them; here with two classes, where all are."""
    q, p = (
        torch.tensor([[0.6, 0.4], [0.2, 0.8], [0.5, 0.5001]]).log(),
        torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.4, 0.6]]).log(),
    )
    assert float(dist_loss(q, p, 1.0, 1.0, 0.0)) == pytest.approx(0, abs=1e-4)
    assert float(dist_loss(p, -p, 1.0, 1.0, 0.0)) == pytest.approx(2, abs=1e-4)


def test_attention_is_blind_to_scale_and_to_the_order_of_channels() -> None:
    student, teacher = pair(*MAPS)
    expected = attention_loss(student, teacher)
    torch.testing.assert_close(attention_loss(7 * student, 0.1 * teacher), expected)
    torch.testing.assert_close(attention_loss(student.flip(1), teacher), expected)
    assert float(attention_loss(torch.cat([teacher, teacher], 1), teacher)) == pytest.approx(0, abs=1e-12)


def test_the_distance_of_attention_maps_is_that_of_the_paper() -> None:
    student, teacher = pair(*MAPS)
    total = 0.0
    for s, t in zip(student.numpy(), teacher.numpy()):
        maps = [(x**2).sum(0).ravel() for x in (s, t)]
        q = [m / np.sqrt((m**2).sum()) for m in maps]
        total += float(np.sqrt(((q[0] - q[1]) ** 2).sum())) / 2
    assert float(attention_loss(student, teacher, distance="norm")) == pytest.approx(total / len(student), rel=1e-9)
    own = teacher.clone().requires_grad_()
    attention_loss(own, teacher, distance="norm").backward()  # type: ignore[no-untyped-call]
    assert own.grad is not None and not bool(own.grad.any())  # a norm has no slope at zero: it must not be NaN
    with pytest.raises(BadInput, match="distance"):
        attention_loss(student, teacher, distance="l3")  # type: ignore[arg-type]


def test_the_gradient_of_each_samples_own_loss_comes_out_of_the_mean() -> None:
    x = pair(*LOGITS)[0].requires_grad_()
    torch.testing.assert_close(input_gradient((x**3).sum(1).mean(), x), 3 * x**2)
    [second] = torch.autograd.grad(input_gradient((x**3).sum(1).mean(), x).sum(), [x])
    torch.testing.assert_close(second, 6 * x)


def test_layers_of_an_fsp_matrix_may_differ_in_resolution() -> None:
    first, second = pair(2, 3, 4, 4)
    pooled = torch.nn.functional.max_pool2d(first, 2)
    small = second[:, :, :2, :2]
    torch.testing.assert_close(losses.fsp_matrix(first, small), losses.fsp_matrix(pooled, small))


def test_relations_are_blind_to_rotation_shift_and_scale_and_to_the_width() -> None:
    student, teacher = pair(*EMBEDDINGS)
    rotation = torch.linalg.qr(pair(6, 6, seed=3)[0]).Q
    moved = 5 * student @ rotation + 3
    for loss in (rkd_distance_loss, rkd_angle_loss):
        torch.testing.assert_close(loss(moved, teacher), loss(student, teacher))
        assert float(loss(torch.cat([teacher, torch.zeros(5, 2)], 1), teacher)) == pytest.approx(0, abs=1e-12)


def test_equal_samples_have_finite_gradients() -> None:
    student, teacher = torch.ones(4, 3), pair(4, 3)[1].float()
    for loss in (rkd_distance_loss, rkd_angle_loss, contrastive_loss):
        assert torch.isfinite(gradient(lambda x, loss=loss: loss(x, teacher), student)).all()  # type: ignore[misc]


def test_contrast_is_least_where_every_sample_is_nearest_to_its_own() -> None:
    teacher = torch.eye(5, 6)
    assert float(contrastive_loss(teacher, teacher)) < 0.001 < float(contrastive_loss(teacher.flip(0), teacher))


def faces() -> tuple[Tensor, Tensor]:
    """Neurons 0 to 2 tell classes apart, 3 to 5 repeat them, 6 and 7 say nothing."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(8).repeat(50)
    bits = torch.stack([(labels >> b) % 2 for b in range(3)], 1).float()
    good = bits + 0.1 * torch.randn(400, 3, generator=generator)
    copies = good + 0.02 * torch.randn(400, 3, generator=generator)
    return torch.cat([good, copies, torch.randn(400, 2, generator=generator)], 1), labels


def test_selected_neurons_are_neither_duplicates_nor_noise() -> None:
    features, labels = faces()
    kept = select_neurons(features, labels, 3).tolist()
    assert sorted(k % 3 for k in kept) == [0, 1, 2] and max(kept) < 6


def test_without_the_pairwise_term_the_best_single_neurons_are_kept() -> None:
    features, labels = faces()
    best = discrimination(features, labels).topk(4).indices.sort().values
    assert torch.equal(select_neurons(features, labels, 4, beta=0.0), best)


def test_the_unary_term_is_the_variance_between_over_the_variance_within() -> None:
    features, labels = (x[:40] for x in faces())
    slow = []
    for column in features.double().numpy().T:
        groups = [column[labels.numpy() == k] for k in range(8)]
        between = sum(len(g) * (g.mean() - column.mean()) ** 2 for g in groups)
        slow.append(np.log(between / sum(((g - g.mean()) ** 2).sum() for g in groups)))
    expected = (np.array(slow) - np.mean(slow)) / np.std(slow)
    np.testing.assert_allclose(discrimination(features.double(), labels).numpy(), expected, rtol=1e-9)


def test_of_attributes_each_neuron_counts_by_the_one_that_it_tells_best() -> None:
    features, labels = faces()
    bits = torch.stack([(labels >> b) % 2 for b in range(3)], 1)
    scores = discrimination(features, bits)
    assert sorted(scores.argsort(descending=True)[:6].tolist()) == list(range(6))
    assert sorted(k % 3 for k in select_neurons(features, bits, 3).tolist()) == [0, 1, 2]
    with pytest.raises(BadInput, match="attributes"):
        discrimination(features, bits[None])


def test_the_gaussian_loss_is_least_at_the_mean_and_at_the_variance_of_draws_and_noise() -> None:
    draws = 2 + 3 * torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    at = torch.tensor([0.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([at], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = gaussian_loss(at[0].expand_as(draws), at[1].expand_as(draws), draws, 4.0)
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    assert at[0].item() == pytest.approx(float(draws.mean()), abs=1e-4)
    assert at[1].exp().item() == pytest.approx(float(draws.var(unbiased=False)) + 4, rel=1e-4)


def test_the_pairwise_term_is_the_squared_correlation() -> None:
    x = faces()[0].double()
    expected = np.corrcoef(x.numpy().T) ** 2 - np.eye(8)
    np.testing.assert_allclose(redundancy(x).numpy(), expected, atol=1e-12)


def test_mean_field_ends_where_the_equations_hold_and_the_best_selection_has_the_least_energy() -> None:
    unary, pairwise = torch.tensor([3.0, 2.9, 1.0, -2.0]), torch.zeros(4, 4)
    pairwise[0, 1] = pairwise[1, 0] = 1.0
    q = keep_probabilities(unary, pairwise, 6.0)
    torch.testing.assert_close(q, torch.sigmoid(unary - 6.0 * pairwise @ q), atol=1e-5, rtol=0)
    every = [torch.tensor(y) for y in itertools.product([0.0, 1.0], repeat=4)]
    best = min(every, key=lambda y: float(selection_energy(y, unary, pairwise, 6.0)))
    assert best.tolist() == [1, 0, 1, 0] == (q > 0.5).float().tolist()
    assert float(selection_energy(torch.ones(4), unary, pairwise, 6.0)) == pytest.approx(-4.9 + 6.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kd_loss(torch.zeros(2, 3), torch.zeros(2, 4), 1.0), "logits have shape"),
        (lambda: dkd_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), 1.0), "integer"),
        (lambda: dkd_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2), 1.0), "integer targets"),
        (lambda: attention_loss(torch.zeros(2, 3), torch.zeros(2, 3)), "no positions"),
        (lambda: attention_loss(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5)), "attention maps"),
        (lambda: fsp_loss((torch.zeros(2, 3), torch.zeros(2, 3)), (torch.zeros(2, 3), torch.zeros(2, 3))), "N, C, H"),
        (lambda: rkd_angle_loss(torch.zeros(2, 3), torch.zeros(2, 3)), "at least 3"),
        (lambda: contrastive_loss(torch.zeros(2, 3), torch.zeros(3, 3)), "same samples"),
        (lambda: mutual_loss(torch.zeros(2, 3)), "at least one other"),
        (lambda: select_neurons(torch.zeros(4, 3), torch.arange(4), 4), r"count = 4 must be in \[1, 3\]"),
        (lambda: discrimination(torch.zeros(4, 3), torch.arange(3)), "labels"),
    ],
)
def test_what_cannot_be_compared_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        call()


@pytest.mark.parametrize("name", losses.__all__)
def test_every_public_function_says_what_it_returns_and_has_an_example(name: str) -> None:
    """`tests/house/test_doctests.py` runs the examples."""
    text = inspect.getdoc(getattr(losses, name)) or ""
    assert "Args:" in text and "Example:\n    >>> " in text
    assert "Returns:" in text or name == "langevin_step"  # which works in place
