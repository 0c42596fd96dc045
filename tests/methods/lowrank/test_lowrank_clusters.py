"""Clusters of channels and of filters: what is planted is found, and errors are what the formulas say."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import task, tiny
from torch import Tensor, nn

from gossamer.calibration.inputs import input_rows
from gossamer.core.context import Context
from gossamer.errors import BadInput, NoEffect
from gossamer.methods.lowrank._chain import chain_params, grouped_weight, kernel_of
from gossamer.methods.lowrank._clusters import cluster_order
from gossamer.methods.lowrank._notes import product
from gossamer.methods.lowrank.biclustered import BiclusteredFactors, outer_products
from gossamer.methods.lowrank.monochromatic import MonochromaticFactors
from gossamer.methods.lowrank.nuclear import NuclearNorm, lowered, separable_share
from gossamer.modules.inserted import Reorder

D = torch.float64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def conv(weight: Tensor) -> nn.Conv2d:
    torch.manual_seed(0)
    one = nn.Conv2d(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), padding=1).to(D)
    one.weight.data = weight
    return one


def off(one: nn.Conv2d, chain: nn.Sequential) -> float:
    """Relative squared error of the weights."""
    wanted = grouped_weight(one).flatten(2)
    return float((product(one, list(chain)) - wanted).square().sum() / wanted.square().sum())


@settings(max_examples=15)
@given(st.sampled_from([(12, 3), (8, 2), (6, 6), (5, 1)]), st.integers(1, 3), st.integers(0, 1000))
@pytest.mark.slow
def test_clusters_are_of_equal_size(sizes: tuple[int, int], vectors: int, seed: int) -> None:
    n, clusters = sizes
    order = cluster_order(random(n, vectors, 5, seed=seed), clusters, 1)
    assert sorted(order.tolist()) == list(range(n))


@pytest.mark.slow
def test_planted_clusters_are_found() -> None:
    """Items in planes of their own, mixed up: the best sorting is found nearly always."""
    hits = 0
    for seed in range(12):
        planes = random(3, 2, 9, seed=seed)
        items = torch.cat([random(4, 2, seed=100 + 3 * seed + q) @ planes[q] for q in range(3)])
        mixed = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
        order = cluster_order(items[mixed][:, None], 3, 2)
        hits += {frozenset((mixed[part] // 4).tolist()) for part in order.view(3, 4)} == {
            frozenset({q}) for q in range(3)
        }
    assert hits >= 10


def test_a_planted_biclustering_is_exact_and_channels_come_back_in_order() -> None:
    """Two groups of inputs and of outputs, every block of rank one on both sides, mixed up."""
    blocks = torch.einsum("hgn,hgc,hgt->hngct", random(2, 2, 4), random(2, 2, 4, seed=1), random(2, 2, 9, seed=2))
    whole = blocks.reshape(8, 8, 3, 3)
    mixed = [torch.randperm(8, generator=torch.Generator().manual_seed(s)) for s in (3, 4)]
    one = conv(whole[mixed[0]][:, mixed[1]].contiguous())
    for scheme, rank in ((BiclusteredFactors(), (1, 1)), (BiclusteredFactors(form="outer"), (1,))):
        chain = scheme.build(one, grouped_weight(one), rank, None)
        assert off(one, chain) < 1e-12
        assert any(isinstance(m, Reorder) for m in chain)
        x = random(3, 8, 6, 6, seed=5)
        torch.testing.assert_close(chain(x), one(x), rtol=1e-6, atol=1e-6)
    as_it_lies = BiclusteredFactors(inputs=1, outputs=1).build(one, grouped_weight(one), (1, 1), None)
    assert off(one, as_it_lies) > 0.1


def test_a_chain_without_groups_needs_no_sorting() -> None:
    one = conv(random(6, 4, 3, 3))
    assert not any(
        isinstance(m, Reorder)
        for m in BiclusteredFactors(inputs=1, outputs=1).build(one, grouped_weight(one), (3, 2), None)
    )


@settings(max_examples=15)
@given(st.integers(0, 1000))
@pytest.mark.slow
def test_what_outer_products_leave_never_grows(seed: int) -> None:
    blocks = random(3, 4, 5, 9, seed=seed)
    a, b, t = outer_products(blocks, 7)
    left = [blocks]
    for r in range(7):
        left.append(left[-1] - torch.einsum("bn,bc,bt->bnct", a[:, :, r], b[:, :, r], t[:, :, r]))
    sizes = torch.stack([rest.square().sum((1, 2, 3)) for rest in left])
    assert (sizes[1:] <= sizes[:-1] * (1 + 1e-12)).all()
    first = torch.linalg.svdvals(blocks.flatten(2))[:, 0].square()
    assert (sizes[1] >= sizes[0] - first - 1e-9).all()  # no rank-one tensor has more than the best rank-one matrix


def test_outer_products_find_one_that_is_there_and_stop_at_nothing() -> None:
    wanted = torch.einsum("n,c,t->nct", random(4), random(5, seed=1), random(9, seed=2))[None]
    a, b, t = outer_products(wanted, 2)
    torch.testing.assert_close(torch.einsum("bnr,bcr,btr->bnct", a, b, t), wanted)
    assert all(part.isfinite().all() for part in outer_products(torch.zeros(1, 2, 3, 4, dtype=D), 2))


@torch.no_grad()
@pytest.mark.slow
def test_more_terms_lose_less_and_data_never_makes_it_worse() -> None:
    one, scheme = conv(random(8, 6, 3, 3)), BiclusteredFactors(form="outer", inputs=2, outputs=2)
    x = random(10, 6, 7, 7, seed=3) + 0.5
    rows = input_rows(one, x).transpose(0, 1).flatten(1, 2)
    gram = rows.mT @ rows / len(x)
    errors = []
    for rank in (1, 2, 4, 6):
        plain, fitted = (scheme.build(one, grouped_weight(one), (rank,), metric) for metric in (None, gram))
        errors.append(off(one, plain))
        wrong = [float((chain(x) - one(x)).square().sum()) for chain in (plain, fitted)]
        assert wrong[1] <= wrong[0] * (1 + 1e-9)
    assert all(later < earlier for earlier, later in pairwise(errors))
    [lost] = scheme.spectrum(grouped_weight(one), None, "lost").lost
    assert lost[0] == 1 and (lost.diff() <= 0).all()
    assert float(lost[6]) == pytest.approx(off(one, scheme.build(one, grouped_weight(one), (6,), None)), rel=1e-6)


@torch.no_grad()
def test_planted_colours_are_found() -> None:
    """Twelve filters on three colours, four each, mixed up."""
    colours, planes = random(3, 3), random(3, 4, 5, 5, seed=1)
    whole = torch.einsum("qi,qnyx->qniyx", colours, planes).flatten(0, 1)
    one = conv(whole[torch.randperm(12, generator=torch.Generator().manual_seed(2))].contiguous())
    chain = MonochromaticFactors().build(one, grouped_weight(one), (3,), None)
    x = random(2, 3, 9, 9, seed=4)
    torch.testing.assert_close(chain(x), one(x))
    assert off(one, MonochromaticFactors().build(one, grouped_weight(one), (2,), None)) > 1e-2
    assert [tuple(m.weight.shape) for m in chain if isinstance(m, nn.Conv2d)] == [(3, 3, 1, 1), (12, 1, 5, 5)]


@torch.no_grad()
def test_a_colour_for_every_filter_is_its_first_singular_vector() -> None:
    one = conv(random(6, 3, 3, 3))
    squares = torch.linalg.svdvals(one.weight.flatten(2)).square()
    wanted = float(squares[:, 1:].sum() / squares.sum())
    assert off(one, MonochromaticFactors().build(one, grouped_weight(one), (6,), None)) == pytest.approx(
        wanted, rel=1e-5
    )
    [lost] = MonochromaticFactors().spectrum(grouped_weight(one), None, "lost").lost
    assert float(lost[6]) == pytest.approx(wanted, rel=1e-5)
    assert lost[4] == lost[3] and (lost.diff() <= 0).all()
    rows = input_rows(one, random(9, 3, 5, 5) + 0.5).transpose(0, 1).flatten(1, 2)
    gram = rows.mT @ rows
    errors = []
    for metric in (None, gram):
        change = product(
            one, list(MonochromaticFactors().build(one, grouped_weight(one), (2,), metric))
        ) - grouped_weight(one).flatten(2)
        errors.append(float((change @ gram * change).sum()))
    assert errors[1] < errors[0]


def test_colours_cost_what_the_paper_says() -> None:
    """C' C + N d^2 weights for N C d^2: 96 filters of 7 x 7 on 12 of 3 colours."""
    one = nn.Conv2d(3, 96, 7)
    assert chain_params(MonochromaticFactors().chain(one, (12,)), kernel_of(one)) == 12 * 3 + 96 * 49


@pytest.mark.parametrize(
    ("scheme", "layer", "reason"),
    [
        (BiclusteredFactors(), nn.Conv2d(6, 5, 3), "its 5 outputs are no multiple of 2"),
        (BiclusteredFactors(inputs=4), nn.Conv2d(6, 8, 3), "its 6 inputs are no multiple of 4"),
        (BiclusteredFactors(), nn.Conv2d(4, 4, 3, groups=2), "in groups already"),
        (BiclusteredFactors(), nn.Linear(4, 4), "lowrank.svd"),
        (MonochromaticFactors(), nn.Conv2d(4, 4, 3, groups=4), "in groups already"),
        (MonochromaticFactors(), nn.Conv2d(4, 4, 1), "lowrank.svd"),
    ],
)
def test_what_cannot_be_clustered_is_refused_with_the_reason(scheme: Any, layer: nn.Module, reason: str) -> None:
    assert reason in scheme.refusal(layer)


def test_impossible_numbers_of_colours_and_unknown_forms_are_refused() -> None:
    with pytest.raises(BadInput, match="no tensor has all of these at once"):
        MonochromaticFactors(ranks={"stem": 3})(tiny(), task(), Context())
    with pytest.raises(BadInput, match="noise does not tell"):
        MonochromaticFactors()(tiny(), task(), Context())
    with pytest.raises(BadInput, match=r"unknown lowrank\.biclustered form 'cp'; known: outer, svd"):
        BiclusteredFactors(form="cp")  # type: ignore[arg-type]


def test_norms_stand_behind_layers_with_weights_only_and_change_nothing_at_first() -> None:
    model = tiny().eval()
    [x] = task().example_inputs
    plain = BiclusteredFactors(ranks={"body.0.conv1": (2, 2)})(model, task(), Context()).model
    normed = BiclusteredFactors(ranks={"body.0.conv1": (2, 2)}, norm=True)(model, task(), Context()).model
    kinds = [type(m).__name__ for m in normed.get_submodule("body.0.conv1").children() if not isinstance(m, Reorder)]
    assert kinds == ["Conv2d", "BatchNorm2d", "Conv2d", "BatchNorm2d", "Conv2d"]
    torch.testing.assert_close(normed(x), plain(x), rtol=1e-3, atol=1e-4)


# --- kernels that training makes separable


def test_lowered_singular_values_are_the_proximal_step_of_the_nuclear_norm() -> None:
    weight, threshold = random(3, 2, 5, 3), 0.7
    near = lowered(weight, threshold)
    values = torch.linalg.svdvals(weight)
    torch.testing.assert_close(torch.linalg.svdvals(near), (values - threshold).clamp_min(0))

    def objective(w: Tensor) -> float:
        return float((w - weight).square().sum() / 2 + threshold * torch.linalg.svdvals(w).sum())

    for seed in range(20):
        assert objective(near) < objective(near + 0.01 * random(*weight.shape, seed=seed))
    torch.testing.assert_close(lowered(weight, 0.0), weight)
    assert lowered(weight, 100.0).abs().max() == 0


def test_a_nuclear_norm_makes_kernels_separable() -> None:
    context = Context()
    model = tiny()
    free, held = (NuclearNorm(penalty=p, epochs=2, lr=0.02).apply(model, task(), context) for p in (1e-9, 2.0))
    for name in ("stem.weight", "body.1.conv2.weight"):
        shares = [separable_share(m.get_parameter(name)) for m in (free, held)]
        assert shares[1] > shares[0] + 0.05
    assert {edit.target for edit in context.log.edits} == {n for n, p in model.named_parameters() if p.dim() > 3}
    with pytest.raises(NoEffect, match="two axes"):
        NuclearNorm(layers=("head",)).apply(model, task(), context)
