"""Model and data arguments become networks and tasks, or errors that say what to do."""

import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from conftest import USER_CODE
from torch import nn

from gossamer.cli.loading import Request, Source, judged, load_model, ready_to_train
from gossamer.cli.loading_data import load_data
from gossamer.core.metric import Metric
from gossamer.core.progress import Silent
from gossamer.core.task import Task
from gossamer.errors import BadInput, CorruptFile, MissingExtra
from gossamer.measure import judged_by
from gossamer.methods.prune.channels import prune_channels
from gossamer.models import build, save_weights
from gossamer.modules.replay import structure_of
from gossamer.runtime.onnx_export import export_onnx


@pytest.fixture
def task(user: Path) -> Task:
    return load_data("mycode:task")


def test_a_factory_of_the_current_folder_makes_the_network_in_eval_mode(user: Path, task: Task) -> None:
    source = load_model(Request(model="mycode:Net", task=task))
    assert type(source.model).__name__ == "Net" and not source.model.training
    assert source.example_inputs is task.example_inputs


def test_a_ready_module_is_taken_as_it_is(user: Path, task: Task) -> None:
    source = load_model(Request(model="mycode:ready", task=task))
    assert source.model is sys.modules["mycode"].ready


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone(user: Path, task: Task) -> None:
    def weight(seed: int) -> torch.Tensor:
        return next(load_model(Request(model="mycode:Net", task=task, seed=seed)).model.parameters())

    before = torch.random.get_rng_state()
    assert torch.equal(weight(1), weight(1)) and not torch.equal(weight(1), weight(2))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_from_a_file_reach_the_network(user: Path, task: Task, suffix: str) -> None:
    trained = sys.modules["mycode"].Net()
    file = user / f"w{suffix}"
    if suffix == ".pt":
        torch.save(trained.state_dict(), file)
    else:
        save_weights(trained, file, {})
    loaded = load_model(Request(model="mycode:Net", task=task, weights=file, seed=7)).model
    assert all(torch.equal(a, b) for a, b in zip(trained.state_dict().values(), loaded.state_dict().values()))


def test_without_data_the_shape_comes_from_the_user(user: Path) -> None:
    assert load_model(Request(model="mycode:Net", shape=(3, 1, 9, 9))).example_inputs[0].shape == (3, 1, 9, 9)


def test_a_zoo_network_fits_the_data(user: Path, task: Task) -> None:
    source = load_model(Request(model="resnet8", task=task, random=True))
    assert source.model(torch.zeros(1, 1, 8, 8)).shape == (1, 2)


def test_a_file_of_weights_with_a_note_says_its_network_itself(user: Path) -> None:
    net = build("lenet5", in_channels=1, classes=4, input_size=28)
    note = {"model": "lenet5", "in_channels": "1", "classes": "4", "input_size": "28"}
    save_weights(net, user / "a.safetensors", note)
    source = load_model(Request(model="a.safetensors"))
    assert source.name == "lenet5" and source.example_inputs[0].shape == (1, 1, 28, 28)
    assert torch.equal(next(source.model.parameters()), next(net.parameters()))


def test_compressed_weights_say_their_network_and_become_it(user: Path, task: Task) -> None:
    """Of what a file says, no code of the user's is run."""
    whole = load_model(Request(model="resnet8", task=task, random=True))
    small = prune_channels(whole.model, task.example_inputs, sparsity=0.5).model
    changes = structure_of(whole.model, small, task.example_inputs)
    save_weights(small, user / "a.safetensors", whole.note, structure=changes)
    again = load_model(Request(model="a.safetensors", task=task)).model
    assert torch.equal(again(*task.example_inputs), small(*task.example_inputs))

    own = load_model(Request(model="mycode:Net", task=task))
    assert own.note["model"] == "mycode:Net"
    save_weights(own.model, user / "b.safetensors", own.note)
    said = refused(Request(model="b.safetensors", task=task))
    assert "its weights are for mycode:Net; name mycode:Net as MODEL and add --weights b.safetensors" in said
    named = load_model(Request(model="mycode:Net", task=task, weights=user / "b.safetensors")).model
    assert torch.equal(named(*task.example_inputs), own.model(*task.example_inputs))


@pytest.mark.slow
def test_an_onnx_file_is_a_network_and_gets_its_norms_back_where_it_is_trained(user: Path, task: Task) -> None:
    whole = load_model(Request(model="resnet8", task=task, random=True)).model
    export_onnx(whole, task.example_inputs, user / "a.onnx")
    said = list[str]()
    source = load_model(Request(model="a.onnx", task=task))
    before = source.model(*task.example_inputs)
    assert source.name == "a" and torch.allclose(before, whole(*task.example_inputs), atol=1e-5)
    assert load_model(Request(model="a.onnx")).example_inputs[0].shape == (1, *task.example_inputs[0].shape[1:])
    ready_to_train("a.onnx", source, task, said.append)
    assert "9 batch norms are put back" in said[0]
    assert torch.allclose(source.model(*task.example_inputs), before, atol=1e-5)
    assert "leave --weights out" in refused(Request(model="a.onnx", task=task, weights=user / "b.safetensors"))


def refused(request: Request) -> str:
    with pytest.raises(BadInput) as caught:
        load_model(request)
    return str(caught.value)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("resnt20", "did you mean 'resnet20'"),
        ("mycode:net", "did you mean 'Net'"),
        ("mycod:Net", "no module 'mycod'"),
        ("mycode:broken", "its own error: ValueError: the moon is full"),
        ("mycode:number", "returned int; it must return a torch.nn.Module"),
        ("mycode:needs", "must be callable without arguments"),
        ("shattered:Net", "its own error: ZeroDivisionError"),
        ("needy:Net", "its own error: ModuleNotFoundError: No module named 'not_installed_anywhere'"),
        ("missing.safetensors", "missing.safetensors: no such file"),
        ("missing.pt2", "missing.pt2: no such file"),
        ("missing.onnx", "missing.onnx: no such file"),
    ],
)
def test_a_model_that_cannot_be_had_is_refused_with_the_reason(user: Path, task: Task, model: str, said: str) -> None:
    assert said in refused(Request(model=model, task=task))


def test_the_error_of_a_factory_says_where(user: Path, task: Task) -> None:
    line = USER_CODE.splitlines().index('    raise ValueError("the moon is full")') + 1
    assert f"mycode.py:{line}" in refused(Request(model="mycode:broken", task=task))


def test_a_network_without_known_inputs_asks_for_them(user: Path) -> None:
    assert "--input such as" in refused(Request(model="mycode:Net"))


def test_inputs_that_the_network_rejects_are_shown_with_its_own_error(user: Path) -> None:
    said = refused(Request(model="mycode:Net", shape=(1, 3, 8, 8)))
    assert "rejects inputs of shape 1x3x8x8 (from --input): RuntimeError: " in said and "3 channels" in said


def test_fewer_outputs_than_classes_are_refused(user: Path, task: Task) -> None:
    assert refused(Request(model="mycode:one_output", task=task)).endswith(
        "gives 1 outputs, but the data has 2 classes"
    )


def test_a_zoo_network_without_trained_weights_is_refused(user: Path, task: Task) -> None:
    assert "resnet8" in refused(Request(model="resnet8", task=task))
    assert "add --data, --weights or --random" in refused(Request(model="resnet8"))


def test_weights_without_a_note_ask_for_the_network(user: Path) -> None:
    save_weights(nn.Linear(2, 2), user / "a.safetensors", {})
    assert "name the network as MODEL and add --weights a.safetensors" in refused(Request(model="a.safetensors"))


def test_a_damaged_file_of_weights_is_called_so(user: Path) -> None:
    (user / "a.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(CorruptFile, match=r"a\.safetensors"):
        load_model(Request(model="a.safetensors"))


def test_a_missing_library_names_the_extra(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtra, match=r"gossamer\[timm\]"):
        load_model(Request(model="timm:resnet18"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("fashion-mnis", "did you mean 'fashion-mnist'"),
        ("mycode:Net", "returned Net; it must return a gossamer.Task"),
        ("mycode:number", "returned int; it must return a gossamer.Task"),
        ("mycode:tusk", "did you mean 'task'"),
    ],
)
def test_data_that_cannot_be_had_is_refused_with_the_reason(user: Path, data: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_data(data)
    assert said in str(caught.value)


def test_auto_says_which_data_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gossamer import data

    monkeypatch.setattr(data, "default_task", lambda **_: (data.load_task("digits"), "data: digits, embedded"))

    class Heard(Silent):
        said: ClassVar[list[str]] = []

        def say(self, message: str) -> None:
            self.said.append(message)

    assert load_data("auto", progress=Heard()).name == "digits"
    assert Heard.said == ["data: digits, embedded"]


def test_data_without_labels_keep_a_metric_of_their_own() -> None:
    class Largest(Metric):
        name = "largest"

        def evidence(self, model, loader):
            return {"score": torch.cat([model(x).amax(1) for x in loader])}

        def value(self, evidence):
            return float(evidence["score"].mean())

    rows = [torch.rand(4, 3)]
    source = Source(name="mine", model=nn.Linear(3, 2), example_inputs=(rows[0],))
    said: list[str] = []
    own = Task.from_loaders(rows, rows, metric=Largest())
    kept = judged(own, source, said.append)
    assert kept.metric is own.metric and said == ["data has no labels: networks are judged by its metric, largest"]
    assert kept.loss(source.model, rows[0]).ndim == 0  # there is something to train by
    assert judged(Task.from_loaders(rows, rows), source, said.append).metric.name == "agreement"


def test_vectors_of_length_one_are_no_classes() -> None:
    class Unit(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.normalize(x - 0.5, dim=-1)

    rows = [torch.rand(4, 3)]
    assert judged_by(Task.from_loaders(rows, rows), Unit()).metric.name == "cosine"
