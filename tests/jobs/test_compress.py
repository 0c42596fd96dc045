"""The main job, end to end, on a tiny network that really learns."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from conftest import measured_briefly
from nets import learned, stripes, tiny
from places import importing
from torch import Tensor, nn

import gossamer
from gossamer import BadInput, Context, Goal
from gossamer.constraints.apply import constrain
from gossamer.constraints.grid import Grid
from gossamer.constraints.weights import weights_of
from gossamer.core.batches import Loader
from gossamer.core.folder import lock_folder
from gossamer.core.progress import Silent
from gossamer.core.record import JobDocument
from gossamer.errors import Diverged, FolderBusy
from gossamer.jobs.recipe import Recipe, load_recipe
from gossamer.jobs.size_goal import larger
from gossamer.measure import judged_by
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.methods.prune.channels import ChannelPruning
from gossamer.methods.quantize.rate import RateConstrainedQuantization
from gossamer.methods.restructure.blocks import BlockRemoval
from gossamer.modules.cost import dense_bytes, total_macs
from gossamer.runtime.pt2.file import export_pt2, load_pt2
from gossamer.runtime.threads import torch_threads
from gossamer.search.cost_model import CostEstimate, CostModel

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick")]  # but for the job of the fixture `result`

CHEAP = Recipe(name="cheap", steps=(BlockRemoval(names=("body.1",)), RecoveryDistillation(epochs=1, lr=0.01)))


class Said(Silent):
    """Keeps what a job says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@dataclass(frozen=True)
class Ran:
    """A job, what it said, the network that it was given, and that network's values before."""

    given: nn.Module
    before: dict[str, Tensor]
    said: Said
    made: gossamer.Artifact


@pytest.fixture(scope="module")
def cheap(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The job of the cheap recipe."""
    given, said, folder = learned(), Said(), tmp_path_factory.mktemp("cheap")
    before = {name: value.clone() for name, value in given.state_dict().items()}
    with measured_briefly():
        made = gossamer.compress(given, stripes(), recipe=CHEAP, out=folder, context=Context(progress=said))
    return Ran(given, before, said, made)


SMALLER = Goal(max_drop=5, macs=90_000, params=3_000)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> gossamer.Artifact:
    """A job with a goal that does not depend on how fast this machine is."""
    folder = tmp_path_factory.mktemp("job")
    return gossamer.compress(learned(), stripes(), goal=SMALLER, epochs=2, out=folder)


def test_the_goal_is_met_and_the_network_is_smaller(result: gossamer.Artifact) -> None:
    assert result.met, result.document.missed
    value = {(row.subject, row.what): row.value for row in result.records}
    assert value["result", "macs"] <= 90_000 < value["original", "macs"]
    assert value["result", "params"] < value["original", "params"]
    assert value["result", "params"] == sum(p.numel() for p in result.model.parameters())


def test_every_file_computes_what_the_model_does(result: gossamer.Artifact) -> None:
    images = stripes().test[0][0]  # type: ignore[index]
    expected = result.model(images).detach()
    session = onnxruntime.InferenceSession(result.folder / "model.onnx", providers=["CPUExecutionProvider"])
    [got] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(load_pt2(result.folder / "model.pt2")(images).detach(), expected, rtol=1e-4, atol=1e-4)


def test_the_weights_come_back_into_the_users_class(result: gossamer.Artifact) -> None:
    images = stripes().test[0][0]  # type: ignore[index]
    loaded = gossamer.load(result.folder / "model.gsr", into=tiny()).eval()
    filled = gossamer.load_weights(tiny(), result.folder / "model.safetensors").eval()
    for network in (loaded, filled):
        assert type(network) is type(tiny())
        torch.testing.assert_close(network(images), result.model(images))


def test_the_document_tells_which_network_how_it_learned_and_what_classes_lost(result: gossamer.Artifact) -> None:
    document = result.document
    assert document.task["budget"] == "5 points are 4.8 of 96 validation samples: 5 may be lost"
    assert (document.task["model"], document.task["name"]) == ("Tiny", "stripes")
    assert document.environment["date"].endswith("UTC")
    *rounds, curve = document.curves  # the short trainings of the tournament come first
    assert curve.name.startswith("attempt 1, distill.recover") and len(curve.loss) == 2
    assert all(one.name == curve.name for one in rounds)
    [before, after] = (r for r in document.records if r.what == "score" and r.conditions["split"] == "test")
    rows = document.classes
    assert sum(row.samples for row in rows) == before.n
    for record in (before, after):
        whole = sum(row.samples * row.top1[record.subject] for row in rows) / before.n
        assert whole == pytest.approx(record.value, abs=0.01)
    assert all(state.brief == state.name.startswith("tournament") for state in document.states)


def test_the_document_on_disk_is_the_one_in_hand_and_sizes_are_true(result: gossamer.Artifact) -> None:
    document = JobDocument.parse((result.folder / "records.json").read_text())
    assert document.dump() == result.document.dump()
    assert document.files["model.onnx"] == (result.folder / "model.onnx").stat().st_size
    assert (result.folder / "report.html").stat().st_size > 10_000


def test_every_output_says_what_the_network_has_to_be_fed(result: gossamer.Artifact) -> None:
    known = {
        "size": 6, "channels": 1, "mean": [0.5], "std": [0.25], "crop": 1.0, "interpolation": "bilinear",
        "range": [0.0, 1.0], "background": "white", "width": None, "order": "rgb", "layout": "nchw",
        "classes": ["a", "b", "c"],
    }  # fmt: skip
    records = json.loads((result.folder / "records.json").read_text())
    assert records["task"]["preprocessing"] == known
    assert json.loads((result.folder / "preprocessing.json").read_text()) == known
    assert "preprocessing.json" in records["files"]
    shipped = {path.name for path in (result.folder / "deploy").iterdir()}
    assert {"run.py", "bench_on_device.py", "labels.txt"} <= shipped and any(n.endswith(".onnx") for n in shipped)
    assert "run.mjs" not in shipped  # it gets images of 8 bits, and these go from 0 to 1
    for path in result.folder.glob("*.onnx"):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert json.loads(session.get_modelmeta().custom_metadata_map["gossamer.preprocessing"]) == known


def test_the_recipe_that_comes_out_gives_the_same_network_again(result: gossamer.Artifact, tmp_path: Path) -> None:
    recipe = replace(load_recipe(result.folder / "recipe.yaml"), int8=False)
    again = gossamer.compress(learned(), stripes(), recipe=recipe, out=tmp_path)
    for first, second in zip(result.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(first, second)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> gossamer.Artifact:
    """A job with a goal of size."""
    goal = Goal(max_drop=10, compression_ratio=8)
    with measured_briefly():
        return gossamer.compress(learned(), stripes(), goal=goal, epochs=20, out=tmp_path_factory.mktemp("small"))


def test_a_goal_of_size_is_met_by_the_file_on_disk(small: gossamer.Artifact) -> None:
    assert small.met, small.document.missed
    dense = 4 * sum(t.numel() for t in learned().state_dict().values() if t.is_floating_point())
    size = (small.folder / "model.gsr").stat().st_size
    assert size <= dense / 8
    rows = small.document.stored
    assert sum(row.bytes for row in rows) < size and sum(row.dense_bytes for row in rows) == dense
    images = stripes().test[0][0]  # type: ignore[index]
    network = gossamer.load(small.folder / "model.gsr")
    torch.testing.assert_close(network(images), small.model(images).detach(), rtol=1e-4, atol=1e-4)


def test_a_finished_job_of_size_started_again_trains_nothing(small: gossamer.Artifact) -> None:
    goal, files = Goal(max_drop=10, compression_ratio=8), (small.folder / "model.safetensors").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gossamer.methods._training.fit", None)
        again = gossamer.compress(learned(), stripes(), goal=goal, epochs=20, out=small.folder)
    assert (again.folder / "model.safetensors").read_bytes() == files
    assert again.document.edits == small.document.edits


def test_a_shape_and_a_size_together(tmp_path: Path) -> None:
    goal = Goal(max_drop=20, macs=90_000, compression_ratio=6)
    made = gossamer.compress(learned(), stripes(), goal=goal, epochs=4, out=tmp_path)
    value = {(row.subject, row.what): row.value for row in made.records}
    assert value["result", "macs"] <= 90_000
    assert [edit.method for edit in made.document.edits][-1] == "quantize.rate"
    assert value["original", "compact_bytes"] > 4 * value["result", "compact_bytes"]


def test_without_training_a_network_without_labels_gets_smaller(tmp_path: Path) -> None:
    given, task = learned(), stripes()
    bare = replace(task, **{name: [x for x, _ in getattr(task, name)] for name in ("train", "validation", "test")})
    goal, said = Goal(max_drop=30, macs=round(0.8 * total_macs(given, task.example_inputs))), Said()
    made = gossamer.compress(
        given, judged_by(bare, given), goal=goal, train=False, out=tmp_path, context=Context(progress=said)
    )
    assert made.met and made.document.curves == []
    recipe = load_recipe(tmp_path / "recipe.yaml")
    recoveries = [step for step in recipe.steps if isinstance(step, RecoveryDistillation)]
    assert recoveries == [recipe.steps[-1]] and recoveries[0].steps == 0
    assert any("nothing is trained" in line for line in said.lines)
    assert {row.conditions["metric"] for row in made.records if row.what == "score"} == {"agreement"}


def test_what_would_need_a_training_is_refused_where_there_is_none(tmp_path: Path) -> None:
    for more, message in (
        ({"recipe": CHEAP}, "a recipe says by its steps what is trained"),
        ({"goal": Goal(macs=1000), "epochs": 2, "recipe": None}, "train=False does none"),
        ({"goal": Goal(file_bytes=1000)}, "file_bytes: a network is trained into a file of that size"),
    ):
        options: dict[str, Any] = dict(more)
        with pytest.raises(BadInput, match=message):
            gossamer.compress(learned(), stripes(), train=False, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_model_given_is_left_alone(cheap: Ran) -> None:
    assert all(torch.equal(value, cheap.before[name]) for name, value in cheap.given.state_dict().items())


def test_save_copies_the_files_and_not_the_work(result: gossamer.Artifact, tmp_path: Path) -> None:
    names = {path.name for path in result.save(tmp_path / "copy").iterdir()}
    assert {"model.onnx", "model.pt2", "records.json", "report.html", "recipe.yaml"} <= names
    assert "work" not in names


def test_a_goal_out_of_reach_gives_the_best_inside_the_budget_and_says_by_how_much(tmp_path: Path) -> None:
    missed = gossamer.compress(learned(), stripes(), goal=Goal(max_drop=100, macs=10), epochs=1, lr=0.01, out=tmp_path)
    assert not missed.met
    assert any(line.startswith("macs:") and "asked for at most 10" in line for line in missed.document.missed)


def test_a_size_out_of_reach_gives_the_smallest_file_inside_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file without any weights has more than 500 bytes; and the first size that is tried costs too much."""

    def stand_in(
        method: RateConstrainedQuantization, model: nn.Module, task: gossamer.Task, context: Context
    ) -> nn.Module:
        asked.append(dense_bytes(learned()) / method.compression_ratio)
        step = 0.1 if len(asked) > 1 else 100.0
        return constrain(model, {name: Grid(step, -99, 99) for name in weights_of(model)})

    asked: list[float] = []
    monkeypatch.setattr(RateConstrainedQuantization, "apply", stand_in)
    missed = gossamer.compress(learned(), stripes(), goal=Goal(max_drop=5, file_bytes=500), out=tmp_path)
    size = (tmp_path / "model.gsr").stat().st_size
    assert missed.document.missed == [f"file_bytes: {size:,}, asked for at most 500"]
    states = missed.document.states[1:]
    assert [s.accepted for s in states] == [False, True] and states[1].file_bytes == size
    assert asked[0] > 500 and asked[1] == pytest.approx(4 * asked[0])  # all was lost at first


def test_sizes_at_which_training_explodes_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(
        method: RateConstrainedQuantization, model: nn.Module, task: gossamer.Task, context: Context
    ) -> nn.Module:
        tried.append(method.compression_ratio)
        raise Diverged("the loss rose")

    tried: list[float] = []
    monkeypatch.setattr(RateConstrainedQuantization, "apply", explode)
    missed = gossamer.compress(learned(), stripes(), goal=Goal(compression_ratio=9), epochs=1, out=tmp_path)
    assert tried[0] == pytest.approx(9) and len(tried) > 1
    assert len(missed.document.missed) == 1 and "asked for at least 9" in missed.document.missed[0]


def test_the_next_size_is_larger_by_how_much_was_lost_and_how_often_it_was_tried() -> None:
    assert larger(0, 0.0) == 1.25 < larger(0, 1.0) < larger(2, 1.0) < larger(0, math.inf) == larger(99, 0.0) == 4


def test_every_step_of_a_recipe_is_a_state(cheap: Ran) -> None:
    made, states = cheap.made, cheap.made.document.states
    assert [s.name for s in states] == ["original float32", "after restructure.blocks", "after distill.recover"]
    assert states[1].params == states[2].params < states[0].params
    assert states[2].file_bytes == (made.folder / "model.gsr").stat().st_size
    drop = next(row.value for row in made.records if row.what == "drop" and row.conditions["split"] == "validation")
    assert states[2].drop == pytest.approx(drop) and all(s.accepted for s in states)


def test_a_result_slower_than_planned_is_cut_further_and_the_best_one_is_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped, measured = CostModel.shipped, iter((1.1, 3.0))  # the second comes out worse than the first

    def slower(self: CostModel, *network: Any, planned: float) -> CostEstimate:
        return replace(shipped(self, *network, planned=planned), cost_ratios={"params": next(measured)})

    monkeypatch.setattr(CostModel, "shipped", slower)
    job = gossamer.compress(learned(), stripes(), goal=Goal(max_drop=50, params=2_500), epochs=2, out=tmp_path)
    params = next(r.value for r in job.records if (r.what, r.subject) == ("params", "result"))
    tried = {state.name: state.params for state in job.document.states}
    assert tried["attempt 2"] <= 2_500 / 1.1 and params == tried["attempt 1"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    images = stripes().test[0][0]  # type: ignore[index]
    [got] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), job.model(images).detach(), rtol=1e-4, atol=1e-4)


def test_the_test_set_takes_no_part_in_any_decision(result: gossamer.Artifact, tmp_path: Path) -> None:
    """With the test set replaced by garbage, the network that comes out is the same."""
    garbage = [(torch.randn(16, 1, 6, 6), torch.zeros(16, dtype=torch.int64))] * 2
    other = gossamer.compress(learned(), replace(stripes(), test=garbage), goal=SMALLER, epochs=2, out=tmp_path)
    for one, another in zip(result.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, another)


class Ending(list[object]):
    """Batches that send the process a signal before one of them, counted over all epochs; None: they do not end."""

    at: int | None = None
    given = 0

    def __iter__(self) -> Iterator[object]:
        for batch in super().__iter__():
            Ending.given += 1
            if Ending.given == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def eight_epochs(folder: Path, at: int | None = None) -> bytes:
    """The weights that a job in this folder ends with."""
    Ending.at = at
    steps = (BlockRemoval(names=("body.1",)), RecoveryDistillation(epochs=8, lr=0.01))
    task = replace(stripes(), train=Ending(stripes().train))
    with torch_threads(1):
        gossamer.compress(learned(), task, recipe=Recipe(name="r", steps=steps), out=folder)
    return (folder / "model.safetensors").read_bytes()


def test_killed_and_started_again_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from test_compress import *; eight_epochs(Path(sys.argv[1]), at=60)"
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")], env=importing(Path(__file__).parent), capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.glob("a/work/*/distill-recover.ckpt*")) and not (tmp_path / "a/records.json").exists()
    assert eight_epochs(tmp_path / "a") == eight_epochs(tmp_path / "b")


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="needs a goal or a recipe"):
        gossamer.compress(tiny(), stripes())
    with pytest.raises(BadInput, match=r"does not accept the inputs of stripes \(shapes \[\(4, 1, 6, 6\)\]\)"):
        gossamer.compress(torch.nn.Linear(5, 3), stripes(), recipe=CHEAP, out=tmp_path / "mended")
    assert not list((tmp_path / "mended").iterdir())
    with pytest.raises(BadInput, match=r"unknown block or layer to remove 'body\.9'.*body\."):
        wrong = Recipe(name="w", steps=(BlockRemoval(names=("body.9",)),))
        gossamer.compress(tiny(), stripes(), recipe=wrong)
    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.raises(BadInput, match="is a file"):
        gossamer.compress(tiny(), stripes(), recipe=CHEAP, out=taken)


def test_two_jobs_in_one_folder(tmp_path: Path) -> None:
    with lock_folder(tmp_path), pytest.raises(FolderBusy, match="another job"):
        gossamer.compress(tiny(), stripes(), recipe=CHEAP, out=tmp_path)


def test_a_folder_with_another_job_is_refused(cheap: Ran) -> None:
    with pytest.raises(BadInput, match="holds the work of another job"):
        gossamer.compress(tiny(), stripes(), recipe=CHEAP, out=cheap.made.folder)
    fewer = replace(stripes(), validation=list(stripes().validation)[1:])
    with pytest.raises(BadInput, match="another network, data"):
        gossamer.compress(learned(), fewer, recipe=CHEAP, out=cheap.made.folder)


class OnlyOne:
    """The first batch of a loader, which a job tries; whoever wants more fails."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[object]:
        yield next(iter(self.loader))
        raise AssertionError("more than one batch was taken")


def test_a_finished_job_started_again_trains_nothing(cheap: Ran) -> None:
    first, store = cheap.made, cheap.made.folder / "work" / "journal.json"
    results = set(json.loads(store.read_text())["results"])
    untrainable = replace(stripes(), train=OnlyOne(stripes().train))
    again = gossamer.compress(learned(), untrainable, recipe=CHEAP, out=first.folder)
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))
    assert set(json.loads(store.read_text())["results"]) == results
    assert again.document.dump() == first.document.dump()  # measured once


def test_a_finished_job_gives_its_result_at_once_and_one_that_goes_on_says_so(
    cheap: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, folder = cheap.made, tmp_path / "job"
    shutil.copytree(first.folder, folder)
    assert not any("finished" in line or "going on" in line for line in cheap.said.lines)

    def run() -> tuple[gossamer.Artifact, list[str]]:
        said = Said()
        context = Context(progress=said)
        return gossamer.compress(learned(), stripes(), recipe=CHEAP, out=folder, context=context), said.lines

    with monkeypatch.context() as patch:
        patch.setattr("gossamer.jobs.job.evaluate", None)
        again, said = run()
    assert said == [f"this job is finished; its result is in {folder}"]
    images = stripes().test[0][0]  # type: ignore[index]
    torch.testing.assert_close(again.model(images), first.model(images))
    (folder / "model.onnx").unlink()  # somebody took a file away: it is made again
    said = run()[1]
    assert (folder / "model.onnx").exists() and any("going on where the job was" in line for line in said)


def test_a_loss_that_explodes_ends_in_a_clear_error(tmp_path: Path) -> None:
    calls = count()

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return model(batch[0]).sum() * (1.0 if next(calls) < 4 else float("nan"))  # not yet when it is tried

    with pytest.raises(Diverged):
        gossamer.compress(learned(), replace(stripes(), loss=loss), recipe=CHEAP, out=tmp_path)
    assert next(calls) > 4


def test_a_network_out_of_a_file_is_cut_and_trained(tmp_path: Path) -> None:
    data = stripes()
    frozen = load_pt2(export_pt2(learned(), data.example_inputs, tmp_path / "in.pt2"))
    recipe = Recipe(name="narrow", steps=(ChannelPruning(sparsity=0.5), RecoveryDistillation(epochs=1, lr=0.01)))
    small = gossamer.compress(frozen, data, recipe=recipe, out=tmp_path / "out").model
    assert sum(p.numel() for p in small.parameters()) < 0.4 * sum(p.numel() for p in frozen.parameters())
    again = load_pt2(tmp_path / "out" / "model.pt2")
    images = data.validation[0][0]  # type: ignore[index]
    assert torch.allclose(again(images), small(images), atol=1e-5)


def test_a_full_disk_loses_nothing_and_says_so(tmp_path: Path) -> None:
    """On a file system of half a megabyte."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        with pytest.raises(BadInput, match="disk is full"):
            gossamer.compress(learned(), stripes(), recipe=CHEAP, out=mount / "job", context=Context())
        assert not list(mount.rglob(".*.tmp")) and not (mount / "job" / "records.json").exists()
    finally:
        subprocess.run(["umount", str(mount)], check=True)
