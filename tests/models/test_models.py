"""The zoo: exact counts, shapes, weights in and out."""

import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gossamer.data import DataSplit, Normalisation, make_task
from gossamer.errors import BadInput, CorruptFile
from gossamer.models import (
    ENTRIES,
    build,
    build_for,
    checkpoints,
    load_weights,
    pretrained,
    save_weights,
)
from gossamer.models.resnet import BasicBlock, PadShortcut
from gossamer.models.vgg import VGG16Small


def count_macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of the convolutions and linear layers for one sample, counted while it runs."""
    total = 0

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        positions = output.numel() // output.shape[1]
        total += weight.numel() * positions

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model.eval()(torch.empty(1, *shape, device="meta"))
    return total


# name, parameters, millions of multiply-adds as printed in the papers' style, classes, side of the image
COUNTS = [
    ("lenet300", 266_610, "0.266", 10, 28),
    ("lenet5", 431_080, "2.293", 10, 28),
    ("mlp_3x2048", 10_027_028, "10.015", 10, 28),
    ("vgg_small", 14_029_716, "617.0", 10, 32),
    ("vgg16_small", 14_991_946, "313.5", 10, 32),
    ("resnet20a", 269_722, "40.6", 10, 32),
    ("resnet32a", 464_154, "68.9", 10, 32),
    ("resnet44a", 658_586, "97.2", 10, 32),
    ("resnet56a", 853_018, "125.5", 10, 32),
    ("resnet110a", 1_727_962, "252.9", 10, 32),
    ("resnet20", 272_474, "40.8", 10, 32),
    ("resnet32", 466_906, "69.1", 10, 32),
    ("resnet44", 661_338, "97.4", 10, 32),
    ("resnet56", 855_770, "125.7", 10, 32),
    ("resnet110", 1_730_714, "253.1", 10, 32),
    ("wrn16_1", 175_066, "26.7", 10, 32),
    ("wrn16_2", 691_674, "101.1", 10, 32),
    ("wrn16_4", 2_748_890, "392.6", 10, 32),
    ("wrn40_1", 563_930, "83.3", 10, 32),
    ("wrn40_2", 2_243_546, "327.6", 10, 32),
    ("mobilenet_v1", 4_231_976, "568.7", 1000, 224),
    ("mobilenet_v1", 4_231_976, "418.1", 1000, 192),
    ("mobilenet_v1", 4_231_976, "290.7", 1000, 160),
    ("mobilenet_v1", 4_231_976, "186.4", 1000, 128),
    ("mobilenet_v1_075", 2_585_560, "325.4", 1000, 224),
    ("mobilenet_v1_050", 1_331_592, "149.5", 1000, 224),
    ("mobilenet_v1_025", 470_072, "41.0", 1000, 224),
]


@pytest.mark.parametrize(("name", "params", "mmacs", "classes", "side"), COUNTS)
@pytest.mark.slow
def test_counts_are_those_of_the_literature(name: str, params: int, mmacs: str, classes: int, side: int) -> None:
    with torch.device("meta"):
        model = build(name, classes=classes, input_size=side)
    decimals = len(mmacs.partition(".")[2])
    assert sum(p.numel() for p in model.parameters()) == params
    assert f"{count_macs(model, (ENTRIES[name].in_channels, side, side)) / 1e6:.{decimals}f}" == mmacs


def test_vgg_pruned_a_has_the_counts_of_li_et_al() -> None:
    widths = (32, 64, 128, 128, 256, 256, 256, 256, 256, 256, 256, 256, 256)
    with torch.device("meta"):
        model = VGG16Small(widths=widths)
    assert sum(p.numel() for p in model.parameters()) == 5_399_690
    assert f"{count_macs(model, (3, 32, 32)) / 1e6:.1f}" == "206.3"


def families() -> list[str]:
    """The first network of each class and smallest size, but for detectors."""
    first: dict[object, str] = {}
    for name, entry in ENTRIES.items():
        if entry.boxes:
            continue
        first.setdefault((getattr(entry.factory, "func", entry.factory), entry.smallest), name)
    return list(first.values())


@pytest.mark.parametrize("name", [name for name in families() if ENTRIES[name].smallest <= 28])
@pytest.mark.slow
def test_every_network_takes_fashion_mnist_digits_and_cifar_images(name: str) -> None:
    for channels, side in ((1, 28), (3, 32)):
        with torch.device("meta"):
            model = build(name, in_channels=channels, classes=7, input_size=side)
            output = model.eval()(torch.empty(2, channels, side, side))
        assert output.shape == (2, 7)


def test_the_pools_of_vgg_that_round_up_change_nothing_at_32_pixels() -> None:
    torch.manual_seed(0)
    model = VGG16Small(widths=(4,) * 13).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    for module in model.modules():
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = False
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_a_residual_block_with_zero_scale_is_the_identity_on_what_a_relu_lets_through() -> None:
    block = BasicBlock(4, 4, 1, option="B").eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 4, 5, 5).relu()
    assert torch.equal(block(x), x)


def test_shortcut_a_takes_every_second_pixel_and_pads_channels_on_both_sides() -> None:
    x = torch.arange(32.0).view(1, 2, 4, 4)
    y = PadShortcut(2, 4, 2)(x)
    assert y.shape == (1, 4, 2, 2)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, [0, 3]].any()


def test_an_unknown_network_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="unknown model 'restnet20'; did you mean 'resnet20'"):
        build("restnet20")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "lenet5", "input_size": 15}, "input_size = 15"),
        ({"name": "vgg16_small", "input_size": 0}, "input_size = 0"),
        ({"name": "resnet20", "in_channels": 0}, "in_channels = 0"),
        ({"name": "resnet20", "classes": 1}, "classes = 1"),
    ],
)
def test_sizes_that_cannot_work_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        build(**arguments)  # type: ignore[arg-type]


@pytest.mark.slow
def test_smallest_sizes_work() -> None:
    for name in families():
        entry = ENTRIES[name]
        with torch.device("meta"):
            model = build(name, input_size=entry.smallest).eval()
            assert model(torch.empty(1, entry.in_channels, entry.smallest, entry.smallest)).shape == (1, 10), name


def test_build_for_takes_channels_size_and_classes_from_the_task() -> None:
    split = DataSplit(images=torch.rand(12, 2, 20, 20), labels=torch.arange(12) % 3)
    normalisation = Normalisation(mean=(0.5, 0.5), std=(1.0, 1.0))
    make = partial(make_task, "toy", validation=3, classes=("a", "b", "c"), normalisation=normalisation)
    task = make(train=split, test=split)
    assert build_for("lenet5", task)(task.example_inputs[0]).shape == (3, 3)
    wide = DataSplit(images=torch.rand(12, 2, 20, 24), labels=split.labels)
    with pytest.raises(BadInput, match="square"):
        build_for("lenet5", make(train=wide, test=wide))


# Weights


def small(classes: int = 10) -> nn.Module:
    torch.manual_seed(classes)
    return build("resnet8", in_channels=1, classes=classes)


def same(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


def test_safetensors_round_trip_is_exact_and_keeps_the_metadata(tmp_path: Path) -> None:
    from safetensors import safe_open

    model, path = small(), tmp_path / "w.safetensors"
    save_weights(model, path, {"top1": "91.2"})
    other = build("resnet8", in_channels=1)
    assert not same(model, other)
    assert same(load_weights(other, path), model)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"top1": "91.2"}
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_half_precision_storage_is_loaded_as_float32(tmp_path: Path) -> None:
    model, path = small(), tmp_path / "w.safetensors"
    save_weights(model, path, {}, half=True)
    other = load_weights(build("resnet8", in_channels=1), path)
    for name, tensor in other.state_dict().items():
        mine = model.state_dict()[name]
        assert tensor.dtype == mine.dtype
        assert torch.equal(tensor, mine.half().float() if mine.is_floating_point() else mine)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_torch_files_of_tensors_are_read_also_out_of_a_checkpoint(tmp_path: Path, wrap: object) -> None:
    model, path = small(), tmp_path / "w.pt"
    torch.save(wrap(model.state_dict()), path)  # type: ignore[operator]
    assert same(load_weights(build("resnet8", in_channels=1), path), model)


def test_weights_that_do_not_fit_name_the_tensor_and_both_shapes_and_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(small(classes=4), path, {})
    model, before = small(), small()
    with pytest.raises(BadInput, match=r"fc.weight has shape \(4, 64\), the model needs \(10, 64\); fc.bias has"):
        load_weights(model, path)
    assert same(model, before)


def test_missing_and_foreign_tensors_are_named_and_a_long_list_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    state = small().state_dict()
    del state["conv1.weight"]
    torch.save(state | {"extra": torch.zeros(1)}, path)
    with pytest.raises(BadInput, match=r"conv1.weight is missing; extra is not in the model; build"):
        load_weights(small(), path)
    torch.save({"extra": torch.zeros(1)}, path)
    with pytest.raises(BadInput, match=r"conv1.weight is missing; .* and \d+ more"):
        load_weights(small(), path)


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod"])
def test_the_name_of_a_training_wrapper_before_every_tensor_is_left_out(tmp_path: Path, wrapper: str) -> None:
    path, trained = tmp_path / "w.pt", small()
    torch.save({f"{wrapper}.{name}": tensor for name, tensor in trained.state_dict().items()}, path)
    assert same(load_weights(small(), path), trained)
    torch.save({f"{wrapper}.{name}": tensor for name, tensor in list(trained.state_dict().items())[1:]}, path)
    with pytest.raises(BadInput, match=f"conv1.weight is missing; {wrapper}.bn1.weight is not in the model"):
        load_weights(small(), path)


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("never"),)


@pytest.mark.parametrize("content", [small(), Bomb(), {"w": Bomb()}], ids=["model", "hostile", "hostile inside"])
def test_pickled_objects_are_refused_with_the_way_out_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, "w.pt")
    with pytest.raises(BadInput, match=r"more than tensors.*torch\.save\(model\.state_dict"):
        load_weights(small(), "w.pt")
    assert not Path("never").exists()


def test_a_file_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(BadInput, match="must hold a state_dict"):
        load_weights(small(), tmp_path / "w.pt")


def test_damaged_weights_raise_gossamers_own_errors_only(tmp_path: Path) -> None:
    model = build("lenet5", input_size=16)
    torch.save({"w": torch.arange(40.0), "b": torch.zeros(3)}, tmp_path / "w.pt")
    save_weights(nn.Linear(3, 2), tmp_path / "w.safetensors", {"a": "b"})
    generator = torch.Generator().manual_seed(0)
    for path in (tmp_path / "w.pt", tmp_path / "w.safetensors"):
        raw = path.read_bytes()
        for place in torch.randint(len(raw), (150,), generator=generator).tolist():
            path.write_bytes(raw[:place] + bytes([raw[place] ^ 0xFF]) + raw[place + 1 :])
            with pytest.raises((CorruptFile, BadInput)):
                load_weights(model, path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights_are_refused(tmp_path: Path, suffix: str, keep: float) -> None:
    model, path = small(), tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save(model.state_dict(), path)
    else:
        save_weights(model, path, {})
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep * len(raw))])
    with pytest.raises((CorruptFile, BadInput), match="w"):
        load_weights(model, path)


def test_plain_pickles_and_unknown_suffixes_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises((CorruptFile, BadInput)):
        load_weights(small(), tmp_path / "w.pt")
    (tmp_path / "w.h5").write_bytes(b"")
    with pytest.raises(BadInput, match=r"must be a .safetensors, .pt or .pth"):
        load_weights(small(), tmp_path / "w.h5")
    with pytest.raises(BadInput, match="no such file"):
        load_weights(small(), tmp_path / "none.pt")


def test_weights_with_nan_are_refused(tmp_path: Path) -> None:
    model = small()
    with torch.no_grad():
        next(model.parameters())[0] = float("nan")
    save_weights(model, tmp_path / "w.safetensors", {})
    with pytest.raises(BadInput, match=r"conv1.weight holds NaN"):
        load_weights(small(), tmp_path / "w.safetensors")


# Shipped checkpoints


def test_every_shipped_checkpoint_loads() -> None:
    for shipped in checkpoints():
        model = pretrained(shipped.name, shipped.data)
        x = torch.zeros(1, shipped.in_channels, shipped.input_size, shipped.input_size)
        assert model(x).shape == (1, shipped.classes)
        assert not model.training


def test_pretrained_builds_what_the_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.models.shipped.FOLDER", tmp_path)
    model = build("lenet5", in_channels=2, classes=4, input_size=20)
    note = {"top1": "93.5", "recipe": "train/lenet5", "in_channels": "2", "classes": "4", "input_size": "20"}
    save_weights(model, tmp_path / "lenet5-fashion-mnist.safetensors", note)
    (found,) = checkpoints()
    assert (found.name, found.data, found.top1, found.recipe) == ("lenet5", "fashion-mnist", 93.5, "train/lenet5")
    loaded = pretrained("lenet5", "fashion-mnist")
    assert same(loaded, model)
    assert not loaded.training
    with pytest.raises(BadInput, match=r"lenet5.*fashion-mnist"):
        pretrained("lenet5", "digits")
    with pytest.raises(BadInput, match=r"did you mean 'lenet5 on fashion-mnist'"):
        pretrained("lenet6", "fashion-mnist")
