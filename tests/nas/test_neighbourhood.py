"""The neighbourhood of a trained network, and the plan that searches it."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from nets import task, tiny

import gossamer
from gossamer.constraints.apply import materialize
from gossamer.errors import BadInput
from gossamer.methods.prune import ChannelPruning
from gossamer.methods.quantize.rate import file_bytes
from gossamer.methods.restructure import BlockRemoval
from gossamer.modules.cost import total_macs
from gossamer.nas import Genes, neighbourhood
from gossamer.nas.neighbourhood import Condition, Within


def test_vectors_name_blocks_and_widths_and_those_of_a_block_that_is_gone_do_not_count() -> None:
    space = neighbourhood(tiny(), task())
    assert space.choices == (2, 2, 2, 4, 4, 4, 4)
    assert space.checked((1, 0, 0, 1, 3, 2, 0)) == (1, 0, 0, 1, 0, 2, 0)  # body.0.conv1 is in the first block
    assert space.words((1, 0, 0, 1, 0, 2, 0)) == "without body.0, stem 6/8, body.1.conv1 4/8"
    assert space.words((0,) * 7) == "all of it"
    drawn = {space.random(Random(seed)) for seed in range(20)}
    assert len(drawn) > 10 and all(space.checked(genes) == genes for genes in drawn)


def test_steps_of_a_recipe_make_the_derived_network() -> None:
    space, data = neighbourhood(tiny(), task()), task()
    genes = space.checked((1, 0, 0, 1, 0, 2, 0))
    found = space.derive(genes, data)
    assert found.proof is not None and found.proof.max_relative < 1e-5
    model, (removal, cut) = tiny(), space.steps(genes)
    assert isinstance(removal, BlockRemoval) and isinstance(cut, ChannelPruning)
    made = cut(removal(model, data).model, data).model
    for one, other in zip(made.parameters(), found.model.parameters(), strict=True):
        assert torch.equal(one, other)
    mean = "body.1.bn1.running_mean"  # estimated again in the derived one
    assert not torch.equal(made.state_dict()[mean], found.model.state_dict()[mean])


def test_the_condition_predicts_multiply_adds_exactly_and_times_by_what_was_measured() -> None:
    space, data = neighbourhood(tiny(), task()), task()
    macs = {
        "stem": 8.0 * 9 * 36,
        **{f"body.{i}.conv{j}": 64.0 * 9 * 36 for i in range(3) for j in (1, 2)},
        "head": 24.0,
    }
    whole = total_macs(space.elastic.model, data.example_inputs)
    condition = Condition(space, macs, whole=2.0, limit=1.0)
    genes = space.checked((1, 0, 0, 1, 0, 2, 0))
    share = total_macs(space.build(genes), data.example_inputs) / whole
    assert condition.predicted(genes) == pytest.approx(2 * share)
    condition.learn(genes, 3 * share)
    assert condition.predicted(genes) == pytest.approx(3 * share)
    assert condition.predicted((0,) * 7) == pytest.approx(3.0) and not condition((0,) * 7)


def test_what_is_drawn_and_mutated_keeps_the_condition() -> None:
    space = neighbourhood(tiny(), task())

    def even(genes: Genes) -> bool:
        return sum(genes) % 2 == 0

    within, rng = Within(space, even, (0,) * 7), Random(0)
    genes = within.random(rng)
    for _ in range(20):
        child = within.mutated(genes, rng)
        assert even(child) and child != genes
        genes = child
    assert Within(space, lambda genes: False, (1,) * 7).random(rng) == (1,) * 7


@pytest.mark.slow
def test_a_job_searches_the_neighbourhood_and_a_killed_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = tiny(), task()
    macs = total_macs(model, data.example_inputs) // 2
    how: dict[str, Any] = {"goal": gossamer.Goal(max_drop=100, macs=macs), "epochs": 1, "lr": 0.01, "search": 0.02}
    found = gossamer.compress(model, data, **how, out=tmp_path, verbose=False)
    methods = [edit.method for edit in found.document.edits]
    assert methods[0] == "distill.once_for_all" and methods[-1] == "distill.recover"
    assert set(methods[2:-1]) <= {"prune.channels", "restructure.blocks"}
    assert total_macs(found.model, data.example_inputs) <= macs and not found.document.missed
    assert any("neighbourhood" in trial.name for trial in found.document.states)
    recipe = gossamer.jobs.recipe.load_recipe(tmp_path / "recipe.yaml")
    assert recipe.steps[0].name() == "distill.once_for_all"

    def again(*args: Any, **options: Any) -> Any:
        raise AssertionError("searched again")

    monkeypatch.setattr("gossamer.nas.planner.NeighbourSearch._tried", again)
    monkeypatch.setattr("gossamer.methods.distill.once_for_all.OnceForAll.apply", again)
    second = gossamer.compress(model, data, **how, out=tmp_path, verbose=False)
    for one, other in zip(second.model.parameters(), found.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_search_without_anything_to_search_is_refused() -> None:
    goal = gossamer.Goal(max_drop=1, macs=1000)
    recipe = gossamer.Recipe(name="r", steps=(ChannelPruning(sparsity=0.5),))
    for options, said in (
        ({"goal": goal, "search": 0}, "search = 0: must be greater than 0 minutes"),
        ({"goal": goal, "search": 1, "train": False}, "planned jobs that train"),
        ({"recipe": recipe, "search": 1}, "planned jobs that train"),
        ({"goal": gossamer.Goal(file_bytes=1000), "search": 1}, "file_bytes: a search looks for a shape"),
        ({"goal": gossamer.Goal(macs=9, time_budget=10), "search": 7}, "time_budget = 10: at most 60 % of it"),
    ):
        with pytest.raises(BadInput, match=said):
            gossamer.compress(tiny(), task(), **options, verbose=False)  # type: ignore[arg-type]


def test_bits_are_a_number_of_each_layer_that_is_there() -> None:
    space = neighbourhood(tiny(), task(), bits=(8, 4, 2))
    assert len(space.choices) == 7 + 8 and space.choices[7:] == (3,) * 8
    assert space.layers[0] == "stem" and space.layers[-1] == "head"
    genes = space.checked((1, 0, 0, 1, 0, 2, 0, 1, 2, 2, 0, 0, 0, 1, 2))
    assert genes[8:10] == (0, 0)  # layers of the first block, which is gone
    bits = space.layer_bits(genes)
    assert "body.0.conv1" not in bits and (bits["stem"], bits["head"]) == (4, 2)
    assert space.words(genes).startswith("without body.0, stem 6/8, body.1.conv1 4/8, stem 4 bits")
    drawn = {space.random(Random(seed)) for seed in range(20)}
    assert len(drawn) > 10 and all(space.checked(one) == one for one in drawn)


def test_a_network_with_bits_has_so_many_values_and_is_what_the_steps_make() -> None:
    space, data = neighbourhood(tiny(), task(), bits=(8, 4, 2), cut=False), task()
    assert space.choices == (3,) * 8
    genes = (1, 2, 0, 2, 0, 2, 1, 2)
    built = materialize(space.build(genes))
    weights = dict(built.named_parameters())
    for layer, bits in space.layer_bits(genes).items():
        rows = weights[f"{layer}.weight"].flatten(1)
        assert max(len(row.unique()) for row in rows) <= 2**bits - 1
    assert len(weights["body.0.conv2.weight"][0].unique()) > 7  # 8 bits are not 4
    [step] = space.steps(genes)
    made = materialize(step(tiny(), data).model)
    for one, other in zip(made.parameters(), built.parameters(), strict=True):
        assert torch.equal(one, other)
    derived = space.derive(genes, data).model
    assert not torch.equal(
        derived.state_dict()["body.1.bn1.running_mean"], built.state_dict()["body.1.bn1.running_mean"]
    )


@pytest.mark.slow
def test_fewer_bits_are_fewer_bytes_of_the_file() -> None:
    space = neighbourhood(tiny(), task(), bits=(8, 4, 2), cut=False)
    sizes = [file_bytes(space.build((number,) * 8), task()) for number in range(3)]
    mixed = file_bytes(space.build((0, 2) * 4), task())
    assert sizes[0] > sizes[1] > sizes[2] and sizes[2] < mixed < sizes[0]


@pytest.mark.parametrize(
    ("bits", "cut"), [((2, 8), True), ((8, 8), True), ((17, 4), True), ((4, 1), True), ((8,), False)]
)
def test_bits_that_cannot_be_are_refused(bits: tuple[int, ...], cut: bool) -> None:
    with pytest.raises(BadInput, match="bits"):
        neighbourhood(tiny(), task(), bits=bits, cut=cut)
