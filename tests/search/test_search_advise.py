"""Advice: what schemes could save on a network, and cheaper modules for single layers."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nets import tiny
from torch import Tensor, nn

from gossamer import Goal, advise
from gossamer.methods._base import NetworkCandidate
from gossamer.methods.lowrank.channel import ChannelDecomposition
from gossamer.methods.lowrank.svd import SVD
from gossamer.methods.lowrank.tucker import Tucker
from gossamer.methods.restructure.fire import FireModule
from gossamer.methods.restructure.grouped import GroupedConvolution
from gossamer.methods.restructure.separable import DepthwiseSeparable
from gossamer.ptq import isolated_layers
from gossamer.ptq.isolated_layers import Many, isolated_costs
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.runners import open_runner
from gossamer.search.advise import entropy_bits, where
from gossamer.search.network_rewrites import kinds
from gossamer.search.replacements import choices, compared, find_swaps, reasons_to_leave, together

IMAGES = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


class Wide(nn.Module):
    """A stem, a wide convolution, a narrow one, a depthwise one and a large linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.wide = nn.Conv2d(32, 64, 3, padding=1)
        self.narrow = nn.Conv2d(64, 16, 1)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.fc1 = nn.Linear(1024, 128)
        self.fc2 = nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depth(self.narrow(self.wide(self.stem(x).relu()).relu()).relu())
        return self.fc2(self.fc1(x.flatten(1)).relu())  # type: ignore[no-any-return]


def wide() -> nn.Module:
    torch.manual_seed(0)
    return Wide().eval()


def macs(groups: Any, inputs: Any) -> list[list[float]]:
    return isolated_costs(groups, inputs, Goal(macs=1), Path(), int8=False)


COSTS = {"stem": 5.0, "wide": 60.0, "narrow": 5.0, "depth": 1.0, "fc1": 28.0, "fc2": 1.0}


def test_layers_that_cannot_gain_are_left_with_the_reason() -> None:
    reasons = reasons_to_leave(wide(), {**COSTS, "other": 3.0})
    assert reasons.keys() == COSTS.keys()
    assert [name for name, reason in reasons.items() if not reason] == ["wide", "fc1"]
    assert "narrow" in reasons["stem"] and "cheap already" in reasons["depth"]
    little = reasons_to_leave(wide(), {**COSTS, "wide": 5.0, "fc1": 500.0})
    assert "too little to gain: 1.0 %" in little["wide"]


def test_choices_keep_multiples_of_eight() -> None:
    steps = list(choices(nn.Conv2d(64, 32, 3), "a"))
    assert steps[0] == ChannelDecomposition(ranks={"a": 16}, layers=("a",), data="inputs")
    assert Tucker(ranks={"a": (16, 32)}, layers=("a",), data="inputs") in steps
    assert steps[-3:] == [
        FireModule(layers=("a",)),
        GroupedConvolution(layers=("a",), groups=4),
        DepthwiseSeparable(layers=("a",)),
    ]
    assert not any(isinstance(step, GroupedConvolution) for step in choices(nn.Conv2d(62, 32, 3), "a"))
    assert [step.options()["ranks"]["fc"] for step in choices(nn.Linear(300, 100), "fc")] == [48, 24, 16]


def test_what_methods_propose_is_considered_without_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(DepthwiseSeparable):
        @classmethod
        def network_candidates(cls) -> Any:
            return (NetworkCandidate("own", "a way of one's own", cls()),)

    monkeypatch.setattr("gossamer.search.replacements.catalogue", lambda: {"own": Own})
    monkeypatch.setattr("gossamer.search.network_rewrites.catalogue", lambda: {"own": Own})
    assert list(choices(nn.Conv2d(64, 32, 3), "a")) == [Own(layers=("a",))]
    assert kinds() == {"own": [NetworkCandidate("own", "a way of one's own", Own())]}


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv1d(32, 32, 5, 2, 2), torch.randn(1, 32, 16)),
        (nn.Conv3d(32, 32, 3, padding=1), torch.randn(1, 32, 4, 4, 4)),
    ],
)
def test_convolutions_of_one_and_three_dimensions_have_choices_too(layer: nn.Module, x: Tensor) -> None:
    model = nn.Sequential(layer)
    assert reasons_to_leave(model, {"0": 1.0}) == {"0": ""}
    found = find_swaps(model, {"0": 1.0}, compared(model, ["0"], (x,), macs)).swaps["0"]
    kinds = {swap.step.name() for swap in found}
    assert kinds & {"lowrank.channel", "lowrank.tucker"} and kinds & {"restructure.separable", "restructure.grouped"}


def test_swaps_are_those_that_gain_and_none_is_dominated() -> None:
    model = wide()
    table = compared(model, ["wide", "fc1"], IMAGES, macs)
    assert table["fc1"]["-1"] == [128 * 1024, 128 * 1024]
    found = find_swaps(model, COSTS, table)
    for name, swaps in found.swaps.items():
        ratios = [swap.ratio for swap in swaps]
        assert ratios == sorted(ratios, reverse=True) and len(set(ratios)) == len(ratios) and ratios[0] <= 0.9
        assert swaps[0].saved == pytest.approx(COSTS[name] / 100 * (1 - ratios[0]))
    assert found.swaps["fc1"][0].step == SVD(ranks={"fc1": 64}, layers=("fc1",), data="inputs")
    assert found.swaps["fc1"][0].macs == 64 * (1024 + 128)
    times = {"wide": {"-1": [1.0, 9e9], "0": [0.5, 100.0], "1": [0.6, 50.0], "2": [0.4, 20.0]}}
    assert [swap.macs for swap in find_swaps(model, COSTS, times).swaps["wide"]] == [100, 20]  # 50 is slower, and less
    slow = {"wide": {"-1": [1.0, 9e9], "0": [2.0, 100.0], "1": [0.95, 50.0]}}
    assert "nothing tried gains" in find_swaps(model, COSTS, slow).left["wide"]
    assert "no method takes it" in find_swaps(model, COSTS, {"wide": {"-1": [1.0, 1.0]}}).left["wide"]


def test_alike_layers_are_measured_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(32, 32, 3, padding=1) for _ in range(3)), nn.Conv2d(32, 32, 3))
    asked: list[int] = []

    def counting(groups: Any, inputs: Any) -> list[list[float]]:
        asked.append(len(groups))
        return macs(groups, inputs)

    table = compared(model, ["0", "1", "2", "3"], (torch.randn(1, 32, 6, 6),), counting)
    assert asked == [2]
    assert table["0"] == table["1"] == table["2"] != table["3"]


def test_steps_of_one_kind_become_one_and_give_what_they_gave_one_by_one() -> None:
    steps = [
        SVD(ranks={"fc1": 32}, layers=("fc1",)),
        DepthwiseSeparable(layers=("wide",), steps=0),
        SVD(ranks={"narrow": 8}, layers=("narrow",)),
    ]
    merged = together(steps)
    assert merged == (
        DepthwiseSeparable(layers=("wide",), steps=0),
        SVD(ranks={"fc1": 32, "narrow": 8}, layers=("fc1", "narrow")),
    )


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
@pytest.mark.slow
def test_modules_are_timed_alone(runtime: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is run by itself on the inputs of its group, and its time stands where it stands."""
    torch.manual_seed(0)
    light, heavy = nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1))
    groups: list[list[nn.Module]] = [[light, heavy], [nn.Linear(5, 2)]]
    inputs = [torch.randn(8, 3, 16, 16), torch.randn(8, 5)]
    goal = Goal(speedup=2, batch=8, runtime=runtime, threads=1)
    expected, numbers = [[module(x) for module in group] for group, x in zip(groups, inputs)], itertools.count(1)

    def timed(runners: Any, given: Any, **options: Any) -> Any:
        outputs = next(group for group in expected if len(group) == len(runners))
        for runner, output in zip(runners.values(), outputs):
            assert (runner(*given) - output).abs().mean() < (0.2 if int8 else 1e-4) * output.abs().mean()
        return {name: SimpleNamespace(min_ms=float(next(numbers))) for name in runners}

    monkeypatch.setattr(isolated_layers, "latency", timed)
    for int8 in (False, True) if runtime == "onnxruntime" else (False,):
        first = 4 if int8 else 1
        assert isolated_costs(groups, inputs, goal, tmp_path, int8=int8) == [[first, first + 1], [first + 2]]


def test_large_maps_are_timed_in_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes = []

    def a_millisecond_a_sample(runners: Any, inputs: Any, **options: Any) -> Any:
        sizes.append(len(inputs[0]))
        return {name: SimpleNamespace(min_ms=float(len(inputs[0]))) for name in runners}

    monkeypatch.setattr(isolated_layers, "latency", a_millisecond_a_sample)
    monkeypatch.setattr(isolated_layers, "LARGEST", 5 * 96 * 16 * 16)  # of five samples of what the first writes
    groups: list[list[nn.Module]] = [[nn.Conv2d(3, 96, 1)], [nn.Linear(5, 2)]]
    inputs = [torch.randn(2, 3, 16, 16), torch.randn(2, 5)]
    goal = Goal(speedup=2, batch=40, threads=1)
    assert isolated_costs(groups, inputs, goal, tmp_path, int8=False) == [[40], [40]]
    assert sizes == [5, 40]


def test_modules_are_counted_where_time_is_not_asked_for() -> None:
    groups = [[nn.Linear(5, 2), nn.Linear(5, 2, bias=False)]]
    assert isolated_costs(groups, [torch.randn(4, 5)], Goal(params=1), Path(), int8=False) == [[12, 10]]
    assert isolated_costs(groups, [torch.randn(4, 5)], Goal(macs=1), Path(), int8=False) == [[10, 10]]


def test_a_forward_that_takes_any_number_of_inputs_is_exported(tmp_path: Path) -> None:
    model, inputs = Many([[nn.Linear(4, 2)], [nn.Linear(3, 2)]]), (torch.randn(2, 4), torch.randn(2, 3))
    runner = open_runner("onnxruntime", export_onnx(model, inputs, tmp_path / "m.onnx"), threads=1)
    wanted = torch.cat([model(*inputs)[1], model(*inputs)[1]])
    given = runner(*(torch.cat([x, x]) for x in inputs))
    torch.testing.assert_close(given[1], wanted.detach())


def test_advice_counts_what_it_says() -> None:
    rows = {row.scheme: row for row in advise(tiny(), (torch.randn(2, 1, 6, 6),), Goal(macs=1))}
    assert rows["fewer blocks"].times == pytest.approx((72 + 6 * 576 + 24 / 36) / (72 + 4 * 576 + 24 / 36))
    assert rows["fewer blocks"].layers == ("body.1",)
    assert rows["narrower layers"].times == 1.0 and not rows["narrower layers"].helps  # 8 channels, multiples of 8
    assert rows["low rank"].times == 1.0 and "narrow" in rows["low rank"].reason
    half = rows.pop("smaller images")
    assert 3.9 < half.times <= 4 and half.tried == "restructure.resolution: half the height and width"
    assert set(rows) == {"fewer blocks", "narrower layers", "low rank", "cheaper blocks"}


@pytest.mark.slow
def test_advice_on_a_wide_network_ranks_what_helps_and_says_where() -> None:
    rows = advise(wide(), IMAGES, Goal(params=1))
    times = [row.times for row in rows]
    assert times == sorted(times, reverse=True)
    low = next(row for row in rows if row.scheme == "low rank")
    assert low.layers == ("wide", "fc1") and low.times > 3
    [head] = [row for row in rows if row.scheme == "pooled head"]
    assert head.times > 5 and "first layer" in head.tried  # its ReLU is no module, so it cannot go as a whole
    assert "smaller images" not in {row.scheme for row in rows}
    assert "fc1 (linear layer)" in low.reason
    size = {row.scheme: row for row in advise(wide(), IMAGES, Goal(compression_ratio=2))}
    assert size["low rank"].times == pytest.approx(low.times)
    four, eight = (size[f"sharing and coding, {bits} bits"].times for bits in (4, 8))
    assert 4 < eight < 5 and 8 < four < 10  # weights that are spread evenly


@pytest.mark.slow
def test_advice_on_time_measures_the_whole_network() -> None:
    goal = Goal(speedup=1, batch=4, threads=1)
    rows = {row.scheme: row for row in advise(wide(), IMAGES, goal)}
    always = {"int8", "binary layers", "narrower layers", "fewer blocks", "low rank", "cheaper blocks"}
    assert always <= rows.keys() <= always | {"pooled head"}
    assert rows["fewer blocks"].tried == "restructure.blocks: 1 of 1 removable blocks gone"  # a plain convolution
    assert all(row.times > 0 and row.unit == "time" and row.reason for row in rows.values())
    goal = Goal(speedup=1, batch=4, threads=1, runtime="torch")
    on_torch = {row.scheme: row for row in advise(tiny(), (torch.randn(2, 1, 6, 6),), goal)}
    assert "float32" in on_torch["int8"].reason


def test_where_names_the_layer_or_the_kind() -> None:
    assert where(wide(), COSTS, "time") == "60 % of the time is in wide (3x3 convolution)"
    spread = {**COSTS, "wide": 20.0, "stem": 20.0}
    assert where(wide(), spread, "bytes") == "53 % of the bytes is in 3x3 convolutions, 27 % in those of stem"


def test_entropy_of_values() -> None:
    assert entropy_bits(torch.tensor([1.0, 1.0, 2.0, 2.0])) == pytest.approx(4)
    assert entropy_bits(torch.ones(9)) == pytest.approx(0)
