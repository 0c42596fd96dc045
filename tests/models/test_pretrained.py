"""Networks of timm: tags, trained weights for other classes, and their preprocessing in everything that is written."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import zoo_shim
from PIL import Image
from torch import nn

from gossamer.cli.loading import PRETRAINED, Request, load_model
from gossamer.cli.loading_data import PREPROCESSING, Consumer, load_data, preprocessing_for
from gossamer.core.preprocessing import Preprocessing
from gossamer.core.progress import Silent
from gossamer.core.task import description
from gossamer.data import load_task
from gossamer.errors import BadInput, CorruptFile
from gossamer.jobs import exporting
from gossamer.models import save_weights
from gossamer.models.head import keep_outputs
from gossamer.runtime import metadata
from gossamer.runtime.onnx_clean import about
from gossamer.runtime.onnx_export import export_onnx
from gossamer.task import check

try:
    timm = zoo_shim.timm()
except ImportError:
    pytest.skip("timm is not installed", allow_module_level=True)
NAME = "timm:test_resnet.r160_in1k"  # timm's own, for tests
FORM = Preprocessing(
    size=160, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, crop=0.95, interpolation="bilinear", background="white"
)


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def folder(root: Path, *classes: str) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The network that "was downloaded": timm finds its weights in a file."""
    torch.manual_seed(7)
    made = timm.create_model("test_resnet")
    save_weights(made, tmp_path / "cached.safetensors", {})
    create = timm.create_model

    def cached(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
        if pretrained:
            options["pretrained_cfg_overlay"] = {"file": str(tmp_path / "cached.safetensors")}
        return create(name, pretrained=pretrained, **options)

    monkeypatch.setattr(timm, "create_model", cached)
    return made.eval()


def test_a_name_with_a_tag_is_that_network() -> None:
    source = load_model(Request(model=NAME, random=True))
    assert source.name == "test_resnet.r160_in1k" and source.example_inputs[0].shape == (1, 3, 160, 160)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:resnet81", "unknown timm model 'resnet81'; did you mean 'resnet"),
        ("timm:resnet18.a1_in1", "unknown weights of timm:resnet18 'a1_in1'; did you mean 'a1_in1k'"),
    ],
)
def test_a_name_that_timm_has_not_is_refused_with_the_nearest(name: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        load_model(Request(model=name, random=True))


def test_images_are_made_as_in_the_network_s_training(tmp_path: Path) -> None:
    task = load_data(str(folder(tmp_path, "a", "b")), consumer=Consumer(model=NAME))
    assert task.preprocessing == FORM
    assert task.example_inputs[0].shape[1:] == (3, 160, 160)
    assert load_data(str(tmp_path), consumer=Consumer(model="resnet20")).example_inputs[0].shape[1:] == (3, 20, 20)


def test_torchvision_s_transforms_are_taken_over() -> None:
    zoo_shim.torchvision_models()
    found = preprocessing_for("torchvision:mobilenet_v2")
    assert found is not None
    assert (found.size, found.crop, found.interpolation) == (224, 224 / 232, "bilinear")
    assert found.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("names", [("n01440764", "n01443537"), ("Goldfish", "tench")])
def test_outputs_are_mapped_to_the_classes_of_the_data_by_their_names(
    tmp_path: Path, trained: nn.Module, names: tuple[str, str]
) -> None:
    task = load_data(str(folder(tmp_path / "data", *names)), consumer=Consumer(model=NAME))
    progress = Heard()
    source = load_model(Request(model=NAME, task=task), progress)
    with torch.no_grad():
        x = task.example_inputs[0]
        order = [0, 1] if names[0].startswith("n") else [1, 0]
        assert torch.allclose(source.model(x), trained(x)[:, order], atol=1e-5)
    assert progress.said == [f"{NAME}: 2 of 1000 outputs are kept, by the names of the data's classes"]


def test_other_classes_are_refused_with_what_to_do(tmp_path: Path, trained: nn.Module) -> None:
    task = load_data(str(folder(tmp_path / "data", "good", "scratched")), consumer=Consumer(model=NAME))
    with pytest.raises(BadInput, match=r"gives 1000 outputs, but the data has 2 classes; name .* or train a new last"):
        load_model(Request(model=NAME, task=task))
    with pytest.raises(BadInput, match="the network gives 1000 outputs, but the data has 2 classes"):
        check(task, trained)


def test_outputs_of_the_user_s_own_measure_are_nobody_s_business(tmp_path: Path, trained: nn.Module) -> None:
    task = load_task(folder(tmp_path / "data", "good", "scratched"))
    own = replace(task, metric=lambda model, loader: torch.cat([model(x)[:, 0].sigmoid() for x, _ in loader]))
    check(own, trained)


@pytest.mark.parametrize("weights", [PRETRAINED, Path("cached.safetensors")])
def test_a_training_gets_a_new_last_layer_for_other_classes_and_says_so(
    tmp_path: Path, trained: nn.Module, weights: Path
) -> None:
    task = load_data(str(folder(tmp_path / "data", "good", "scratched")), consumer=Consumer(model=NAME))
    progress = Heard()
    file = weights if weights == PRETRAINED else tmp_path / weights
    made = load_model(Request(model=NAME, task=task, weights=file, new_head=True), progress).model
    assert made(task.example_inputs[0]).shape[1] == 2
    own, theirs = made.state_dict(), trained.state_dict()
    assert {name for name in own if not torch.equal(own[name], theirs[name])} == {"fc.weight", "fc.bias"}
    assert progress.said == [f"{NAME}: fc is new, with 2 outputs; all other weights are the trained ones"]
    with pytest.raises(BadInput):
        load_model(Request(model=NAME, task=task, weights=file))


class Branched(nn.Module):
    """Two layers that look like a head; the second decides."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.other = nn.Conv2d(3, 6, 1), nn.Linear(3, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x).mean((2, 3)) + 0 * self.other.weight.sum()


def test_the_layer_that_makes_the_outputs_is_found_and_cut() -> None:
    net, x = Branched(), torch.randn(2, 3, 4, 4)
    whole = net(x)
    keep_outputs(net, [4, 0], (x,))
    assert torch.allclose(net(x), whole[:, [4, 0]]) and net.other.out_features == 6 and net.head.out_channels == 2
    with pytest.raises(BadInput, match="do not come from one last layer"):
        keep_outputs(nn.Sequential(nn.Linear(3, 6), nn.Softmax(1)), [1, 2], (torch.randn(2, 3),))


def test_what_a_network_has_to_be_fed_is_in_the_onnx_file_in_float_and_int8(tmp_path: Path) -> None:
    from gossamer.ptq import qdq

    task = load_task(folder(tmp_path / "data", "cat", "dog"), size=8)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    path = export_onnx(net, task.example_inputs, tmp_path / "a.onnx", about=description(task))
    known = json.loads(about(path))
    assert known == json.loads(json.dumps(description(task)))
    assert known["classes"] == ["cat", "dog"] and known["size"] == 8 and known["mean"] == [0.485, 0.456, 0.406]
    from gossamer.ptq import activation_ranges

    ranges = dict.fromkeys(activation_ranges.float_values(onnx.load(path)), (-1.0, 1.0))
    int8 = qdq.quantize_graph(onnx.load(path), ranges)
    assert next(p.value for p in int8.metadata_props if p.key == metadata.PREPROCESSING) == about(path)
    assert preprocessing_for(str(path)) == task.preprocessing


def test_a_result_folder_and_a_file_of_weights_say_it_and_later_commands_follow(tmp_path: Path) -> None:
    task = load_task(folder(tmp_path / "data", "cat", "dog"), size=10, background="black")
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / exporting.PREPROCESSING).write_text(json.dumps(description(task)))
    note = {PREPROCESSING: json.dumps(description(task))}
    save_weights(nn.Linear(1, 1), tmp_path / "w.safetensors", note)
    for known in ({"model": str(tmp_path / "result")}, {"weights": tmp_path / "w.safetensors"}):
        again = load_data(str(tmp_path / "data"), consumer=Consumer(**known))  # type: ignore[arg-type]
        assert again.preprocessing == task.preprocessing and again.example_inputs[0].shape[2:] == (10, 10)


@pytest.mark.parametrize(
    "text",
    ["no JSON", '{"size": "large", "channels": 3, "mean": [0], "std": [1]}', "[1]", '{"size": 8}', '{"size": [1]}'],
)
def test_a_damaged_note_is_called_so(tmp_path: Path, text: str) -> None:
    (tmp_path / exporting.PREPROCESSING).write_text(text)
    with pytest.raises(CorruptFile, match=exporting.PREPROCESSING):
        preprocessing_for(str(tmp_path))


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"channels": 2},
        {"mean": (0.5,)},
        {"std": (0.5, 0.5, 0.0)},
        {"crop": 0.0},
        {"range": (1.0, 1.0)},
        {"interpolation": "guess"},
        {"mean": (0.5, float("nan"), 0.5)},
    ],
)
def test_a_preprocessing_that_cannot_be_done_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="is no preprocessing"):
        replace(FORM, **wrong)


def test_an_untrained_network_with_a_backbone_is_made_without_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        zoo_shim.torchvision_models()
    except ImportError:
        pytest.skip("needs torchvision")

    def download(*_: Any, **__: Any) -> None:
        raise AssertionError("asked for weights")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    source = load_model(Request(model="torchvision:lraspp_mobilenet_v3_large", random=True, shape=(1, 3, 64, 64)))
    assert next(iter(source.model.parameters())).ndim == 4
