"""Recipes: parsed whole before anything runs, written and read back equal."""

from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.errors import BadInput
from gossamer.jobs.recipe import Recipe, load_recipe, parse, shipped
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.methods.prune.channels import ChannelPruning
from gossamer.methods.restructure.blocks import BlockRemoval
from gossamer.train import Training

GOOD = """
name: half
seed: 3
steps:
  - restructure.blocks: {names: [stage1.1]}
  - prune.channels: {widths: {conv1: 8}}
  - distill.recover: {epochs: 2, lr: 0.05}
int8: false
claims: {test_top1: 92.5}
"""


def test_a_recipe_is_read_as_methods() -> None:
    recipe = parse(GOOD)
    assert recipe.steps == (
        BlockRemoval(names=("stage1.1",)),
        ChannelPruning(widths={"conv1": 8}),
        RecoveryDistillation(epochs=2, lr=0.05),
    )
    assert (recipe.name, recipe.seed, recipe.int8, recipe.claims) == ("half", 3, False, {"test_top1": 92.5})


@settings(deadline=None)
@given(
    names=st.lists(st.text("abc.1", min_size=1), min_size=1, max_size=3),
    widths=st.dictionaries(st.text("xyz.2", min_size=1), st.integers(1, 512), min_size=1, max_size=3),
    epochs=st.integers(1, 99),
    alpha=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
@pytest.mark.slow
def test_yaml_round_trip(names: list[str], widths: dict[str, int], epochs: int, alpha: float, seed: int) -> None:
    steps = (
        BlockRemoval(names=tuple(names)),
        ChannelPruning(widths=widths),
        RecoveryDistillation(epochs=epochs, alpha=alpha),
    )
    recipe = Recipe(name="r", seed=seed, steps=steps, training=Training(epochs=epochs))
    assert parse(recipe.to_yaml()) == recipe


def test_every_option_is_written_so_that_a_later_default_does_not_change_an_old_recipe() -> None:
    raw = yaml.safe_load(Recipe(name="r", steps=(RecoveryDistillation(),)).to_yaml())
    assert set(raw["steps"][0]["distill.recover"]) == {f.name for f in fields(RecoveryDistillation)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("distill.recover", "distill.recovr"), ["step 3", "distill.recovr", "did you mean 'distill.recover'"]),
        (("lr: 0.05", "lrr: 0.05"), ["step 3", "lrr", "did you mean 'lr'"]),
        (("epochs: 2", "epochs: 0"), ["step 3", "epochs = 0", "[1, 10000]"]),
        (("epochs: 2", "epochs: two"), ["step 3", "epochs", "integer", "'two'"]),
        (("{names: [stage1.1]}", "{names: []}"), ["step 1", "names is empty"]),
        (("{names: [stage1.1]}", "{}"), ["step 1", "names"]),
        (("seed: 3", "sead: 3"), ["sead", "did you mean 'seed'"]),
        (("steps:", "steps: ["), ["not valid YAML"]),
        (("seed: 3", "seed: abc"), ["recipe: seed must be a whole number, got 'abc'"]),
        (("seed: 3", "seed: 1.5"), ["seed must be a whole number, got 1.5"]),
        (("seed: 3", "seed: true"), ["seed must be a whole number, got True"]),
        (("seed: 3", "seed: -1"), ["seed = -1 must be in [0, 4294967295]"]),
        (("seed: 3", "seed: 1" + 30 * "0"), ["recipe: seed", "64 bits"]),
        (("seed: 3", "seed: 1" + 5000 * "0"), ["not valid YAML", "digits"]),
        (("seed: 3", "seed: 2026-01-01"), ["recipe: seed", "is a date; write it in estimates"]),
        (("seed: 3", "seed: 3\nseed: 4"), ["not valid YAML", "'seed' occurs twice"]),
        (("seed: 3", "augment: maybe"), ["augment must be true or false, got 'maybe'"]),
        (("int8: false", "int8: 8"), ["int8 must be true or false, got 8"]),
        (("int8: false", "model: [a]"), ["model must be text, got ['a']"]),
        (("int8: false", "? [1, 2]\n: 3"), ["not valid YAML", "unhashable"]),
        (("int8: false", "1: 3"), ["the key 1 must be text"]),
        (("int8: false", "training: {epochs: .nan}"), ["training: epochs", "must be finite"]),
        (("claims: {test_top1: 92.5}", "claims: 3"), ["claims must be a mapping from names to values, got 3"]),
        (("int8: false", "training: []"), ["training: options must be a mapping, got []"]),
        (("lr: 0.05", "lr: .inf"), ["recipe: steps: distill.recover: lr", "must be finite"]),
        (("lr: 0.05", "lr: -1"), ["step 3 (distill.recover): distill.recover: lr = -1.0 must be in"]),
        (("lr: 0.05", "lr: [1]"), ["step 3 (distill.recover): lr: must be a valid number, got [1]"]),
        (("lr: 0.05", "lr: &a 1\n    alpha: *a"), ["not valid YAML"]),
        (("test_top1: 92.5", "a: &a [x, x], b: *a"), ["line 9: aliases (*a) are not read"]),
        (("test_top1: 92.5", "a: " + 5000 * "["), ["line 9: nested more than 16 deep"]),
        (("test_top1: 92.5", "a: !!python/object/apply:os.getcwd []"), ["not valid YAML", "python/object"]),
        (("name: half", "name: " + 200_000 * "x"), ["characters; at most 131,072 are read"]),
    ],
)
def test_a_wrong_recipe_is_refused_with_place_and_rule(change: tuple[str, str], words: list[str]) -> None:
    with pytest.raises(BadInput) as error:
        parse(GOOD.replace(*change))
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value) and "Value error" not in str(error.value) and ": :" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"name: half\nsteps: \xff\xfe", "line 2: not UTF-8"), (None, "is no file"), (b"\0", "not valid YAML")],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_message(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=words):
        load_recipe(path)


def test_what_occurs_twice_is_written_out() -> None:
    shared = {"a": [1, 2]}
    recipe = Recipe(name="r", claims={"one": shared, "two": shared})
    assert parse(recipe.to_yaml()) == recipe


def test_an_order_that_cannot_work_is_refused_with_the_reason() -> None:
    steps = (ChannelPruning(widths={"conv1": 8}), RecoveryDistillation(), BlockRemoval(names=("a",)))
    with pytest.raises(
        BadInput, match=r"restructure\.blocks cannot come after prune\.channels.*put restructure\.blocks first"
    ):
        Recipe(name="r", steps=steps)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_recipes_load(name: str) -> None:
    recipe = load_recipe(Path(name))
    assert recipe.name == name
    assert recipe.training or recipe.steps


def test_a_missing_recipe_names_the_nearest_shipped_one() -> None:
    with pytest.raises(BadInput, match="train-lenet5-fashion-mnist"):
        load_recipe(Path("train-lenet5-fashion-mnst"))


def test_a_recipe_that_is_changed_loses_its_claims() -> None:
    recipe = load_recipe(shipped()["deep-compression-lenet5"])
    assert recipe.claims and asdict(recipe)["claims"] == recipe.claims
    for kept in (replace(recipe, name="mine"), replace(recipe, seed=3), parse(recipe.to_yaml())):
        assert kept.claims == recipe.claims
    for changed in (
        {"steps": recipe.steps[:2]},
        {"data": "digits"},
        {"augment": True},
        {"int8": True},
        {"model": None},
    ):
        assert replace(recipe, **changed).claims == {}  # type: ignore[arg-type]
    assert replace(recipe, int8=True, claims={"test_top1": 90.0}).claims == {"test_top1": 90.0}


def test_a_long_name_does_not_fill_the_message() -> None:
    with pytest.raises(BadInput, match="unknown method") as error:
        parse(f"name: r\nsteps: [{{{'a' * 1000}: {{}}}}]")
    assert len(str(error.value)) < 600
