"""One-shot masks: exact counts, budgets, patterns."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from nets import task, tiny
from torch import Tensor, nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from gossamer.constraints.apply import constraints, materialize
from gossamer.constraints.mask import Mask
from gossamer.constraints.weights import effective_weight, weights_of
from gossamer.core.context import Context
from gossamer.errors import BadInput, NoEffect
from gossamer.methods.prune._masks import (
    counts,
    erk_densities,
    joint_masks,
    lamp_scores,
    scoped_masks,
    smallest_mask,
)
from gossamer.methods.prune.magnitude import Magnitude, magnitude_masks, masks_by_layer
from gossamer.methods.prune.n_of_m import NOfM, layer_mask, n_of_m_mask, to_semi_structured

SHAPES = {"a.weight": (6, 4, 3, 3), "b.weight": (10, 24), "c.weight": (3, 10)}


@st.composite
def weights(draw: DrawFn) -> dict[str, Tensor]:
    """Layers with many equal values."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    levels = draw(st.integers(1, 9))
    return {name: torch.randint(-levels, levels + 1, s, generator=generator) / levels for name, s in SHAPES.items()}


def dropped(masks: Mapping[str, Tensor]) -> int:
    return sum(int((~m).sum()) for m in masks.values())


def test_exactly_the_requested_number_is_dropped_also_of_equal_scores() -> None:
    assert smallest_mask(torch.ones(10), 3).tolist() == [False] * 3 + [True] * 7
    assert smallest_mask(torch.tensor([[3.0, 1.0], [2.0, 1.0]]), 3).tolist() == [[True, False], [False, False]]


@settings(max_examples=30)
@given(weights(), st.floats(0.01, 0.99), st.sampled_from(["layer", "global", "lamp", "erk"]))
def test_every_scope_has_exact_counts_and_keeps_the_largest(w: dict[str, Tensor], sparsity: float, scope: str) -> None:
    masks = magnitude_masks(w, sparsity, scope)  # type: ignore[arg-type]
    total = sum(t.numel() for t in w.values())
    assert dropped(masks) == round(sparsity * total)
    if scope == "layer":
        assert all(abs(int((~mask).sum()) - sparsity * mask.numel()) < 1 for mask in masks.values())
    for name, mask in masks.items():
        size = w[name].abs()
        assert not (~mask).any() or not mask.any() or size[~mask].max() <= size[mask].min()


@settings(max_examples=20)
@given(weights(), st.floats(0.1, 0.9), st.sampled_from(["layer", "global"]))
def test_masking_twice_is_masking_once(w: dict[str, Tensor], sparsity: float, scope: str) -> None:
    positive = {name: t + t.sign() * 0.1 + 0.05 for name, t in w.items()}  # nothing is zero before
    masks = magnitude_masks(positive, sparsity, scope)  # type: ignore[arg-type]
    again = magnitude_masks({n: t.where(masks[n], 0) for n, t in positive.items()}, sparsity, scope)  # type: ignore[arg-type]
    assert all(torch.equal(masks[n], again[n]) for n in masks)


def test_a_global_ranking_is_that_of_the_joined_weights() -> None:
    scores = {"a": torch.tensor([5.0, 1.0]), "b": torch.tensor([[2.0], [4.0]])}
    masks = joint_masks(scores, 2)
    assert masks["a"].tolist() == [True, False] and masks["b"].tolist() == [[False], [True]]


def test_lamp_scores_are_the_definition_and_the_largest_has_one() -> None:
    w = torch.tensor([[3.0, -1.0], [2.0, 0.5]])
    flat = w.flatten()
    slow = [float(u**2 / sum(v**2 for v in flat if abs(v) >= abs(u))) for u in flat]
    assert lamp_scores(w).flatten().tolist() == pytest.approx(slow)
    assert lamp_scores(w).max() == 1
    assert lamp_scores(100 * w).flatten().tolist() == pytest.approx(slow)
    assert not lamp_scores(torch.zeros(4)).any()


@settings(max_examples=60)
@given(st.floats(0.001, 0.999))
def test_erk_densities_sum_to_the_budget_and_follow_the_shapes(density: float) -> None:
    found = erk_densities(SHAPES, density)
    sizes = {name: torch.Size(s).numel() for name, s in SHAPES.items()}
    assert sum(found[n] * sizes[n] for n in SHAPES) == pytest.approx(density * sum(sizes.values()))
    assert all(0 < d <= 1 for d in found.values())
    ratio = {n: found[n] / (sum(SHAPES[n]) / sizes[n]) for n in SHAPES if found[n] < 1}
    assert max(ratio.values(), default=1) == pytest.approx(min(ratio.values(), default=1))


def test_erk_of_a_linear_layer_is_the_published_formula() -> None:
    found = erk_densities({"a": (100, 300), "b": (10, 1000)}, 0.01)
    assert found["a"] / found["b"] == pytest.approx((400 / 30000) / (1010 / 10000))


def test_whole_numbers_have_the_rounded_sum() -> None:
    assert counts({"a": 3, "b": 3, "c": 3}, {"a": 0.5, "b": 0.5, "c": 0.5}, 4) in (
        {"a": 2, "b": 1, "c": 1},
        {"a": 1, "b": 1, "c": 2},
    )


def test_sparsities_go_by_name_and_pattern_and_later_ones_win() -> None:
    w = {name: torch.randn(s) for name, s in SHAPES.items()}
    masks = masks_by_layer(w, {"*": 0.5, "b": 0.9})
    assert {n: int((~m).sum()) for n, m in masks.items()} == {"a.weight": 108, "b.weight": 216, "c.weight": 15}
    assert list(masks_by_layer(w, {"c": 0.5})) == ["c.weight"]
    with pytest.raises(NoEffect, match="'d' matches none of the layers"):
        masks_by_layer(w, {"d": 0.5})
    with pytest.raises(BadInput, match=r"'a' = 1\.0 must be in \[0, 1\)"):
        masks_by_layer(w, {"a": 1.0})


def test_the_method_holds_what_it_says_and_notes_every_layer() -> None:
    context = Context()
    held = Magnitude(sparsity=0.75, scope="global", ignore=("head",)).apply(tiny(), task(), context)
    stacks = constraints(held)
    assert "head.weight" not in stacks and len(stacks) == 7
    total = sum(p.numel() for name, p in weights_of(held).items() if name in stacks)
    assert sum(int(effective_weight(held, n).count_nonzero()) for n in stacks) == total - round(0.75 * total)
    assert [edit.target for edit in context.log.edits] == list(stacks)
    assert context.log.edits[0].before == "72 weights that are not zero"
    again = Magnitude(sparsity=0.75, scope="global", ignore=("head",))(held, task(), Context()).model
    assert all(torch.equal(effective_weight(held, n), effective_weight(again, n)) for n in stacks)


def test_masks_of_a_second_pruning_stand_on_those_of_the_first() -> None:
    first = Magnitude(sparsity=0.5)(tiny(), task(), Context()).model
    second = NOfM(ignore=("stem",))(first, task(), Context()).model
    assert len(constraints(second)["head.weight"]) == 2 and len(constraints(second)["stem.weight"]) == 1
    value = effective_weight(second, "head.weight")
    assert not value[effective_weight(first, "head.weight") == 0].any()
    assert ((value.view(-1, 4) != 0).sum(1) <= 2).all()


def test_contradictory_and_empty_options_are_refused() -> None:
    with pytest.raises(BadInput, match="either sparsity or sparsities"):
        Magnitude()
    with pytest.raises(BadInput, match="either sparsity or sparsities"):
        Magnitude(sparsity=0.5, sparsities={"*": 0.5})
    with pytest.raises(NoEffect, match="no weight is dropped"):
        Magnitude(sparsity=0.001, layers=("head",))(tiny(), task(), Context())


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.integers(0, 100))
def test_every_group_keeps_its_n_largest(rows: int, groups: int, n: int, seed: int) -> None:
    m = n + 2
    scores = torch.randint(0, 4, (rows, groups * m), generator=torch.Generator().manual_seed(seed)).float()
    mask = n_of_m_mask(scores, n, m)
    for group, kept in zip(scores.view(-1, m), mask.view(-1, m)):
        assert kept.sum() == n
        assert n == 0 or group[kept].min() >= group[~kept].max()


def test_groups_of_a_convolution_lie_along_its_inputs() -> None:
    weight = torch.randn(6, 8, 3, 3)
    mask = layer_mask(nn.Conv2d(8, 6, 3), weight, 2, 4)
    assert (mask.view(6, 2, 4, 3, 3).sum(2) == 2).all()
    up = nn.ConvTranspose2d(8, 6, 3)
    mask = layer_mask(up, up.weight, 2, 4)
    assert (mask.view(2, 4, 6, 3, 3).sum(1) == 2).all()


def test_layers_whose_inputs_do_not_fit_are_named_with_the_fix() -> None:
    with pytest.raises(BadInput, match=r"stem\.weight: 1 inputs are not a multiple of m=4; list the layer under"):
        NOfM()(tiny(), task(), Context())
    with pytest.raises(BadInput, match=r"6 inputs are not a multiple of m=4; list"):
        layer_mask(nn.Linear(6, 2), torch.randn(2, 6), 2, 4)
    with pytest.raises(BadInput, match=r"8 inputs are not a multiple of m=12; use m=4, or list"):
        layer_mask(nn.Linear(8, 2), torch.randn(2, 8), 2, 12)
    with pytest.raises(BadInput, match="n = 4 must be smaller than m = 4"):
        NOfM(n=4)


def test_sparse_tensor_cores_are_asked_for_where_there_are_none() -> None:
    with pytest.raises(BadInput, match=r"on cpu; sparse tensor cores are in CUDA devices"):
        to_semi_structured(NOfM(ignore=("stem",))(tiny(), task(), Context()).model)


def test_what_is_kept_fits_the_storage_of_sparse_tensor_cores() -> None:
    """PyTorch's own packing for them, which runs anywhere: half of the values, and two bits for the place of each."""
    model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64)).half()
    held = materialize(NOfM()(model, task(), Context()).model)
    for weight in (held.get_parameter("0.weight").detach(), held.get_parameter("2.weight").detach()):
        values, places = sparse_semi_structured_from_dense_cutlass(weight)
        assert values.numel() == weight.numel() / 2 and 8 * places.nbytes == weight.numel()
        assert torch.equal(sparse_semi_structured_to_dense_cutlass(values, places), weight)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_sparse_tensor_cores_compute_the_same() -> None:
    model = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 128)).cuda().half()
    images = torch.randn(64, 128, device="cuda", dtype=torch.half)
    held = NOfM()(model, replace(task(), example_inputs=(images,)), Context()).model
    sparse = to_semi_structured(held)
    torch.testing.assert_close(sparse(images), held(images), rtol=1e-2, atol=1e-2)
    with pytest.raises(NoEffect, match="2 of 4"):
        to_semi_structured(model)


def test_scoped_masks_of_one_layer_do_not_depend_on_the_scope() -> None:
    scores = {"a.weight": torch.rand(4, 5)}
    masks = [scoped_masks(scores, 0.35, scope)["a.weight"] for scope in ("layer", "global", "erk")]  # type: ignore[arg-type]
    assert all(torch.equal(masks[0], other) for other in masks)
    assert isinstance(Mask(masks[0]), nn.Module)
