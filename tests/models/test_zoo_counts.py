"""The survey's architectures: exact counts, shapes, and what each is made of."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from patterns import randomized
from torch import Tensor, nn

from gossamer.models import ENTRIES, build
from gossamer.models.densenet import DenseLayer
from gossamer.models.dsod import DSOD, DSODBody
from gossamer.models.flattened import flattened
from gossamer.models.fractalnet import FractalBlock, FractalNet, join_columns
from gossamer.models.googlenet import GoogLeNet
from gossamer.models.nasnet import FactorizedReduction
from gossamer.models.resnet import ResNet
from gossamer.models.shufflenet import shuffle_groups
from gossamer.models.squeezenet import FireBlock
from gossamer.models.stochastic import StochasticBlock, StochasticResNet
from gossamer.modules.cost import total_macs


def count_macs(model: nn.Module, x: Tensor) -> int:
    """Multiply-adds of convolutions and linear layers for one sample, by the formula for each layer's output size.

    The layers themselves don't run, and batch norms neither: on the meta device they are what takes the time.
    """
    total = 0

    def convolve(layer: nn.Conv2d, x_NCHW: Tensor) -> Tensor:
        nonlocal total
        assert not isinstance(layer.padding, str)
        sides = [
            (side + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for side, pad, dilation, kernel, stride in zip(
                x_NCHW.shape[2:], layer.padding, layer.dilation, layer.kernel_size, layer.stride
            )
        ]
        assert x_NCHW.shape[1] == layer.in_channels
        total += layer.weight.numel() * math.prod(sides)
        return x_NCHW.new_empty(x_NCHW.shape[0], layer.out_channels, *sides)

    def multiply(layer: nn.Linear, x_NF: Tensor) -> Tensor:
        nonlocal total
        assert x_NF.shape[1] == layer.in_features
        total += layer.weight.numel()
        return x_NF.new_empty(x_NF.shape[0], layer.out_features)

    for module in model.modules():
        replacement: Callable[[Tensor], Tensor] | None = None
        if isinstance(module, nn.Conv2d):
            replacement = partial(convolve, module)
        elif isinstance(module, nn.Linear):
            replacement = partial(multiply, module)
        elif isinstance(module, nn.BatchNorm2d):
            replacement = _same
        if replacement is not None:
            module.forward = replacement  # type: ignore[method-assign]
    model(x)
    return total


def _same(x_NCHW: Tensor) -> Tensor:
    return x_NCHW


# name, parameters, millions of multiply-adds as in the papers' tables, classes
COUNTS = [
    ("alexnet", 60_965_224, "724.4", 1000),
    ("alexnet_one_tower", 61_100_840, "714.2", 1000),
    ("vgg16", 138_357_544, "15470", 1000),
    ("vgg19", 143_667_240, "19632", 1000),
    ("nin", 966_986, "222.5", 10),
    ("nin_192", 1_455_562, "368.8", 10),
    ("nin_imagenet", 7_595_176, "1100", 1000),
    ("googlenet", 6_998_552, "1583", 1000),
    ("squeezenet1_0", 1_248_424, "819", 1000),
    ("squeezenet1_0_simple", 1_248_424, "819", 1000),
    ("squeezenet1_0_complex", 1_589_672, "1165", 1000),
    ("squeezenet1_1", 1_235_496, "349", 1000),
    ("resnet18", 11_689_512, "1814", 1000),
    ("resnet34", 21_797_672, "3664", 1000),
    ("resnet50", 25_557_032, "4089", 1000),
    ("resnet101", 44_549_160, "7801", 1000),
    ("resnet152", 60_192_808, "11514", 1000),
    ("densenet121", 7_978_856, "2834", 1000),
    ("densenet169", 14_149_480, "3360", 1000),
    ("densenet201", 20_013_928, "4291", 1000),
    ("densenet161", 28_681_000, "7728", 1000),
    ("densenet40_12", 1_019_722, "265", 10),
    ("densenet100_12", 6_979_642, "1770", 10),
    ("densenet100_24", 27_249_082, "6889", 10),
    ("densenet_bc100_12", 769_162, "288", 10),
    ("densenet_bc250_24", 15_324_406, "5419", 10),
    ("densenet_bc190_40", 25_624_430, "9302", 10),
    ("shufflenet_g1", 1_531_936, "143.1", 1000),
    ("shufflenet_g2", 1_733_848, "140.8", 1000),
    ("shufflenet_g3", 1_865_728, "137.5", 1000),
    ("shufflenet_g4", 1_968_344, "134.3", 1000),
    ("shufflenet_g8", 2_434_768, "138.4", 1000),
    ("shufflenet_g3_050", 718_324, "37.6", 1000),
    ("shufflenet_g3_200", 5_450_776, "524.0", 1000),
    ("fractalnet5", 258_660, "4.6", 100),
    ("fractalnet10", 848_820, "19.2", 100),
    ("fractalnet20", 2_127_780, "53.8", 100),
    ("fractalnet40", 4_784_340, "128.6", 100),
    ("fractalnet80", 10_196_100, "283.6", 100),
    ("fractalnet160", 21_118_260, "599.0", 100),
    ("fractalnet20_wide", 33_734_922, "845", 10),
    ("resnet110_stochastic", 1_727_962, "252.9", 10),
    ("nasnet_cifar", 3_328_234, "526", 10),
    ("nasnet_mobile", 5_287_076, "558", 1000),
    ("nasnet_large", 88_743_820, "23801", 1000),
    ("inception_v3", 23_834_568, "5713", 1000),
    ("inception_v3_aux", 27_161_264, "5713", 1000),
]


@pytest.mark.parametrize(("name", "params", "mmacs", "classes"), COUNTS)
@pytest.mark.slow
def test_counts_are_those_of_the_literature(name: str, params: int, mmacs: str, classes: int) -> None:
    entry = ENTRIES[name]
    with torch.device("meta"):
        model = build(name, classes=classes).eval()
    decimals = len(mmacs.partition(".")[2])
    x = torch.empty(1, 3, entry.input_size, entry.input_size, device="meta")
    assert sum(p.numel() for p in model.parameters()) == params
    assert f"{count_macs(model, x) / 1e6:.{decimals}f}" == mmacs


def test_the_heads_of_googlenet_are_counted_while_training() -> None:
    with torch.device("meta"):
        model = build("googlenet_aux", classes=1000)
    assert sum(p.numel() for p in model.parameters()) == 13_378_280
    x = torch.empty(1, 3, 224, 224, device="meta")
    assert f"{count_macs(model.train(), x) / 1e6:.0f}" == "1591"
    assert f"{count_macs(model.eval(), x) / 1e6:.0f}" == "1583"


def test_the_body_of_dsod_and_its_prediction_layers() -> None:
    x = torch.empty(1, 3, 300, 300, device="meta")
    with torch.device("meta"):
        body, whole = DSODBody().eval(), DSOD().eval()
    assert sum(p.numel() for p in body.parameters()) == 11_802_912
    assert sum(p.numel() for p in whole.parameters()) == 14_717_646
    assert [f"{count_macs(model, x) / 1e6:.0f}" for model in (body, whole)] == ["13709", "15079"]
    sides, channels = (38, 19, 10, 5, 3, 1), (800, 512, 512, 256, 256, 256)
    assert [tuple(m.shape) for m in body(x)] == [(1, c, s, s) for c, s in zip(channels, sides)]
    found = whole(x)
    assert found["boxes"].shape == (1, 8732, 4)
    assert found["scores"].shape == (1, 8732, 20)
    assert whole.train()(x.expand(2, -1, -1, -1))["logits"].shape == (2, 8732, 21)


def test_total_macs_agrees_with_the_formula() -> None:
    with torch.device("meta"):
        counted = count_macs(build("shufflenet_g2", input_size=32).eval(), torch.empty(1, 3, 32, 32))
    assert total_macs(build("shufflenet_g2", input_size=32), torch.zeros(1, 3, 32, 32)) == counted


@pytest.mark.parametrize("width", ["_025", "_050", "", "_150", "_200"])
@pytest.mark.parametrize("groups", [1, 2, 3, 4, 8])
@pytest.mark.slow
def test_every_shufflenet_has_groups_that_divide(groups: int, width: str) -> None:
    with torch.device("meta"):
        model = build(f"shufflenet_g{groups}{width}").eval()
        count_macs(model, torch.empty(1, 3, 64, 64))
    assert {m.groups for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)} <= {1, groups}


# What each is made of


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 12])
def test_shuffling_by_the_other_factor_undoes_a_shuffle(groups: int) -> None:
    x = torch.arange(2 * 12 * 2.0).view(2, 12, 1, 2)
    shuffled = shuffle_groups(x, groups)
    assert torch.equal(shuffle_groups(shuffled, 12 // groups), x)
    for group in range(groups):
        for i in range(12 // groups):
            assert torch.equal(shuffled[:, i * groups + group], x[:, group * (12 // groups) + i])


def test_a_dense_layer_passes_its_input_on_and_adds_growth_channels() -> None:
    x = torch.randn(2, 5, 4, 4)
    y = DenseLayer(5, 3, bottleneck=True).eval()(x)
    assert y.shape == (2, 8, 4, 4)
    assert torch.equal(y[:, :5], x)


def test_bypasses_of_squeezenet_go_around_the_fires_that_the_paper_names() -> None:
    for bypass, expected in (("simple", "-I-I-I-I"), ("complex", "CICICICI")):
        with torch.device("meta"):
            model = build(f"squeezenet1_0_{bypass}")
        kinds = {type(None): "-", nn.Identity: "I", nn.Conv2d: "C"}
        assert "".join(kinds[type(m.bypass)] for m in model.modules() if isinstance(m, FireBlock)) == expected
    fire = FireBlock(4, 2, 2, nn.Identity()).eval()
    plain = FireBlock(4, 2, 2)
    plain.load_state_dict(fire.state_dict())
    x = torch.randn(1, 4, 3, 3)
    assert torch.equal(fire(x), plain(x) + x)


def test_auxiliary_heads_run_while_training_only_and_leave_the_logits_alone() -> None:
    torch.manual_seed(0)
    model = GoogLeNet(auxiliary=True, in_channels=1, classes=3, input_size=79)
    caught: list[Tensor] = []
    for head in model.heads.values():
        head.register_forward_hook(lambda _, __, output: caught.append(output))
    x = torch.randn(2, 1, 79, 79)
    assert model(x).shape == (2, 3)
    assert [output.shape for output in caught] == [(2, 3), (2, 3)]
    sum(output.sum() for output in caught).backward()  # type: ignore[union-attr]
    assert model.stem[0].weight.grad is not None  # type: ignore[union-attr]
    assert model.fc.weight.grad is None
    caught.clear()
    plain = GoogLeNet(in_channels=1, classes=3).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("heads")})
    assert torch.equal(model.eval()(x), plain(x))
    assert not caught


def fractal_paths(block: FractalBlock, column: int, index: int, x: Tensor) -> list[Tensor]:
    """What f_C joins at its end, straight from f_(C+1)(z) = [f_C(f_C(z))] join conv(z)."""
    columns: Any = block.columns
    conv = columns[column][index](x)
    if column == len(columns) - 1:
        return [conv]
    middle = torch.stack(fractal_paths(block, column + 1, 2 * index, x)).mean(0)
    return [*fractal_paths(block, column + 1, 2 * index + 1, middle), conv]


def test_a_fractal_block_follows_the_expansion_rule() -> None:
    block = randomized(FractalBlock(2, 3, 4))
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(block(x), torch.stack(fractal_paths(block, 0, 0, x)).mean(0))  # type: ignore[arg-type]
    assert sum(isinstance(m, nn.Conv2d) for m in block.modules()) == 2**4 - 1


def test_a_join_keeps_at_least_one_path_and_drops_as_often_as_it_is_told() -> None:
    torch.manual_seed(0)
    ones = [torch.ones(1)] * 3
    assert all(torch.equal(join_columns(ones, drop), torch.ones(1)) for drop in (0.0, 0.5, 1.0) for _ in range(20))
    powers = [torch.tensor(1.0), torch.tensor(10.0), torch.tensor(100.0)]
    assert {float(join_columns(powers, 1.0)) for _ in range(40)} == {1.0, 10.0, 100.0}
    alone = sum(float(join_columns(powers, 0.15)) == pytest.approx(37.0) for _ in range(1000))
    # all three are kept with probability 0.85**3 = 0.614; five standard deviations are 77
    assert abs(alone - 614) < 77


def test_a_column_works_alone_and_global_drop_path_is_one_of_the_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FractalNet(3, (4, 4), dropout=0.0, in_channels=1)
    model = randomized(model).float()  # type: ignore[assignment]
    x = torch.randn(2, 1, 8, 8)
    columns = [model.column(number)(x) for number in range(3)]
    assert [sum(isinstance(m, nn.Conv2d) for m in model.column(c).modules()) for c in range(3)] == [2, 4, 8]
    assert not any(torch.allclose(columns[a], columns[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    monkeypatch.setattr("gossamer.models.fractalnet.GLOBAL", 1.0)
    # The batch norms stay in eval mode, so that the outputs can be compared.
    model.training = True
    torch.manual_seed(0)
    drawn = [model(x) for _ in range(30)]
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert {next(i for i, c in enumerate(columns) if torch.allclose(c, y)) for y in drawn} == {0, 1, 2}


def test_stochastic_depth_is_the_plain_network_when_all_blocks_survive() -> None:
    plain, model = ResNet(1, option="A"), StochasticResNet(1, last=1.0)
    model.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model.eval()(x), plain.eval()(x))


def test_survival_falls_linearly_and_scales_the_branch() -> None:
    model = StochasticResNet(2)
    blocks = [m for m in model.modules() if isinstance(m, StochasticBlock)]
    assert [b.survival for b in blocks] == pytest.approx([1 - number / 12 for number in range(1, 7)])
    block, x = blocks[1], torch.randn(2, 16, 4, 4)
    block.survival = 0.25
    block.eval()
    branch = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(block(x), F.relu(0.25 * branch + x))
    block.survival = 0.0
    assert torch.equal(block.train()(x), F.relu(x))


def test_flattened_layers_are_the_dense_convolution_with_outer_product_filters() -> None:
    lateral, vertical, horizontal = layers = randomized(flattened(3, 4, 5))
    weight = lateral.weight * vertical.weight * horizontal.weight
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(layers(x), F.conv2d(x, weight, horizontal.bias, padding=2), rtol=1e-12, atol=1e-12)


def test_flattened_weights_are_those_that_the_paper_saves() -> None:
    layers = flattened(96, 128, 5)
    assert sum(p.numel() for p in layers.parameters() if p.ndim > 1) == 13_568


@pytest.mark.parametrize("side", [4, 5])
def test_factorized_reduction_sees_even_and_odd_pixels(side: int) -> None:
    layer = FactorizedReduction(1, 2).eval()
    nn.init.ones_(layer.even.weight)
    nn.init.ones_(layer.odd.weight)
    layer.bn.eps = 0.0
    x = torch.arange(1.0, side**2 + 1).view(1, 1, side, side)
    y = layer(x)
    assert torch.equal(y[:, :1], x[:, :, ::2, ::2])
    odd = x[:, :, 1::2, 1::2]
    assert torch.equal(y[:, 1:, : odd.shape[2], : odd.shape[3]], odd)
    assert not y[:, 1:, odd.shape[2] :].any()
