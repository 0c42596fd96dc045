"""Networks of transformers: from local folders alone, as the configuration says, with their preprocessing; refusals.

The parts that need transformers are skipped where it is not installed.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import zoo_shim
from PIL import Image
from typer.testing import CliRunner

from gossamer.cli import app
from gossamer.cli.loading import Request, load_model
from gossamer.cli.loading_data import preprocessing_for
from gossamer.errors import BadInput, CorruptFile, MissingExtra
from gossamer.models.hugging_face import IMAGES, hugging_face_preprocessing, image_preprocessing
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.runners import open_runner


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with contextlib.suppress(ImportError):  # transformers imports torchvision where it is installed
        zoo_shim.torchvision_models()
    return pytest.importorskip("transformers")


def bert_folder(transformers: Any, folder: Path, **more: Any) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BertConfig(vocab_size=30, max_position_embeddings=20, **sizes, **more)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def vit_folder(transformers: Any, folder: Path) -> Path:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.ViTConfig(image_size=16, patch_size=8, id2label={0: "cat", 1: "dog", 2: "owl"}, **sizes)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    raw = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3}
    (folder / IMAGES).write_text(json.dumps(raw))
    return folder


def test_a_folder_of_a_text_network_is_loaded_with_inputs(transformers: Any, tmp_path: Path) -> None:
    folder = bert_folder(transformers, tmp_path / "bert")
    source = load_model(Request(model=f"hf:{folder}"))
    assert source.name == "bert" and [tuple(x.shape) for x in source.example_inputs] == [(1, 16), (1, 16)]
    kind = transformers.BertForSequenceClassification
    with torch.no_grad():
        expected = kind.from_pretrained(folder).eval()(*source.example_inputs).logits
        assert torch.equal(source.model(*source.example_inputs).logits, expected)


def test_images_are_known_by_the_class_where_no_file_tells_of_them(transformers: Any, tmp_path: Path) -> None:
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    assert load_model(Request(model=f"hf:{tmp_path / 'resnet'}")).example_inputs[0].shape == (1, 3, 224, 224)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/folder", "there is no /no/such/folder/config.json"),
        ("./none", "there is no none/config.json"),
        ("~/nets/bert", r"write the folder out: hf:/home/her/nets/bert"),
    ],
)
def test_a_folder_that_is_none_is_refused_without_asking_the_hub(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/her")
    with pytest.raises(BadInput, match=message):
        preprocessing_for(f"hf:{name}")  # what a folder of images asks first


def test_an_export_without_data_says_how_images_become_inputs(transformers: Any, tmp_path: Path) -> None:
    folder, path = vit_folder(transformers, tmp_path / "vit"), tmp_path / "vit.onnx"
    done = CliRunner().invoke(app, ["export", f"hf:{folder}", "--out", str(path)])
    assert done.exit_code == 0, done.output
    expected = preprocessing_for(f"hf:{folder}")
    assert expected is not None and preprocessing_for(str(path)) == expected


def test_a_text_network_is_exported_with_the_names_and_sizes_of_its_inputs(transformers: Any, tmp_path: Path) -> None:
    """Of any number of tokens, under the names that programs for these networks use."""
    source = load_model(Request(model=f"hf:{bert_folder(transformers, tmp_path / 'bert')}"))
    graph = onnx.load(export_onnx(source.model, source.example_inputs, tmp_path / "net.onnx")).graph
    sizes = [[d.dim_param for d in one.type.tensor_type.shape.dim] for one in graph.input]
    assert [one.name for one in graph.input] == ["input_ids", "attention_mask"]
    assert sizes == [["batch", "tokens"]] * 2
    run = open_runner("onnxruntime", tmp_path / "net.onnx", threads=1)
    ids = torch.arange(14).view(2, 7)
    found, expected = (network(ids, torch.ones_like(ids)).logits for network in (run, source.model))
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=0)


def test_without_its_weights_the_configuration_alone_is_built(transformers: Any, tmp_path: Path) -> None:
    folder = bert_folder(transformers, tmp_path / "bert")
    (folder / "model.safetensors").unlink()
    assert load_model(Request(model=f"hf:{folder}", random=True)).model.num_labels == 2
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_model(Request(model=f"hf:{folder}"))


def test_an_image_network_says_its_preprocessing_and_classes(transformers: Any, tmp_path: Path) -> None:
    from gossamer.models.libraries import class_names

    folder = vit_folder(transformers, tmp_path / "vit")
    assert load_model(Request(model=f"hf:{folder}")).example_inputs[0].shape == (1, 3, 16, 16)
    form = preprocessing_for(f"hf:{folder}")
    assert form is not None and (form.size, form.crop, form.interpolation) == (16, None, "bicubic")
    assert class_names(f"hf:{folder}", 3) == {"cat": 0, "dog": 1, "owl": 2}


@pytest.mark.slow
def test_an_image_network_is_trained_at_the_size_that_its_files_say(
    transformers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gossamer.cli import app

    monkeypatch.chdir(tmp_path)
    vit_folder(transformers, tmp_path / "vit")
    for name in ("cat", "dog", "owl"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            pixels = torch.randint(256, (20, 24, 3), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    with contextlib.suppress(SystemExit):
        app(["train", "hf:./vit", "--data", "photos", "--epochs", "1", "--out", "net.safetensors", "--quiet"])
    assert Path("net.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "said"), [("someone/nothing", "not in the cache and cannot be downloaded"), ("./nowhere", "config.json")]
)
def test_what_is_not_there_is_one_clear_message(transformers: Any, name: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        load_model(Request(model=f"hf:{name}"))


def test_code_of_a_repository_is_not_run(transformers: Any, tmp_path: Path) -> None:
    folder = bert_folder(transformers, tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["Evil"], "auto_map": {"AutoModel": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('run')")
    with pytest.raises(BadInput, match="Evil is not one of transformers"):
        load_model(Request(model=f"hf:{folder}"))


def test_the_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"gossamer\[transformers\]"):
        load_model(Request(model="hf:someone/net"))


CROPPED = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
NUMBERS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2] * 3, "resample": 2}


def test_preprocessing_is_read_as_transformers_means_it() -> None:
    form = image_preprocessing(CROPPED | NUMBERS)
    assert (form.sides, form.crop, form.interpolation) == ((224, 224), 0.875, "bilinear")
    assert form.mean == (0.5, 0.4, 0.3)
    whole = image_preprocessing({"size": {"height": 8, "width": 6}, "do_normalize": False})
    assert (whole.sides, whole.crop, whole.mean) == ((8, 6), None, (0.0, 0.0, 0.0))
    # Numbers of -1 to 1 by a factor of its own: x * 2/255 - 1.
    signed = image_preprocessing({"size": 8, "rescale_factor": 2 / 255, "image_mean": [1.0], "image_std": [1.0]})
    assert signed.mean == pytest.approx((0.5,)) and signed.std == pytest.approx((0.5,))


def test_a_damaged_file_of_preprocessing_is_called_so(tmp_path: Path) -> None:
    (tmp_path / IMAGES).write_text("[]")
    with pytest.raises(CorruptFile, match="how images become inputs"):
        hugging_face_preprocessing(str(tmp_path))
