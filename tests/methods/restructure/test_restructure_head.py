"""Fire modules, global pooling and strides in the place of trained layers."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import task as task_of_noise
from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.core.task import Task
from gossamer.errors import BadInput
from gossamer.methods.restructure._rewrite import Unfit
from gossamer.methods.restructure.fire import fire
from gossamer.methods.restructure.global_pool import GlobalAveragePooling
from gossamer.methods.restructure.pool import StrideToPooling
from gossamer.methods.restructure.pool import convolution_and_pool as with_pool
from gossamer.methods.restructure.stride import PoolingToStride
from gossamer.modules.inserted import Fire


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def toy(*shape: int) -> Task:
    data = list(random(3, *shape, seed=7))
    return Task(name="toy", train=[], validation=[], test=[], calibration=data, example_inputs=(data[0],))


# --- Fire


@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": 2, "stride": 2, "dilation": 2}])
def test_what_is_a_fire_module_without_activations_is_found_again(options: dict[str, Any]) -> None:
    squeeze, expand = random(2, 4), random(6, 2, 3, 3, seed=1)
    for n in (0, 2, 5):  # made by 1x1
        expand[n] *= torch.tensor([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    layer = nn.Conv2d(4, 6, 3, dtype=torch.float64, **options)
    with torch.no_grad():
        layer.weight.copy_(torch.einsum("nshw,sc->nchw", expand, squeeze))
    block = fire(layer, squeeze=2 / 6, spatial=0.5)
    assert isinstance(block.module, Fire)
    assert block.last["expand1"].tolist() == [0, 2, 5] and block.last["expand3"].tolist() == [1, 3, 4]  # type: ignore[union-attr]
    x = random(2, 4, 8, 9, seed=3)
    torch.testing.assert_close(block.module(x), layer(x), rtol=1e-10, atol=1e-10)


def test_kernels_that_1x1_do_not_fit_beside_are_refused() -> None:
    for layer in (nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 4, padding=2), nn.Conv2d(4, 6, 3, padding=2)):
        with pytest.raises(Unfit, match="padding is not half of its kernel"):
            fire(layer, 0.25, 0.5)
    with pytest.raises(Unfit, match="one output channel"):
        fire(nn.Conv2d(4, 1, 3, padding=1), 0.25, 0.5)


# --- global pooling


def network(*head: nn.Module, channels: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, channels, 3), nn.ReLU(), nn.Flatten(), *head).double().eval()


def test_a_head_that_looks_at_all_positions_alike_is_pooled_exactly() -> None:
    """And equals the mean of the logits of all positions."""
    model = network(nn.Linear(4 * 9, 5))
    with torch.no_grad():
        model[3].weight.copy_(random(5, 4).repeat_interleave(9, 1))  # type: ignore[index]
    context, x = Context(), random(3, 2, 5, 5, seed=5)
    result = GlobalAveragePooling(steps=3, batches=2).apply(model, toy(8, 2, 5, 5), context)
    torch.testing.assert_close(result(x), model(x), rtol=1e-9, atol=1e-9)
    linear: Any = result[3][3]  # type: ignore[index]
    pixels = model[:2](x).flatten(2).transpose(1, 2)  # type: ignore[index]
    torch.testing.assert_close(linear(pixels).mean(1), model(x), rtol=1e-9, atol=1e-9)
    assert context.log.edits[0].before == "linear 36-5" and context.log.edits[0].after == "linear 4-5"
    assert "0 at initialization" not in context.log.edits[0].note or "fine-tuning" in context.log.edits[0].note


def test_the_whole_head_is_fitted_by_least_squares_and_its_other_layers_go() -> None:
    head = (nn.Linear(36, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 3))
    model, data = network(*head), toy(40, 2, 5, 5)
    result = GlobalAveragePooling(steps=0, batches=3)(model, data, Context()).model
    assert [type(m).__name__ for m in result[4:]] == ["Identity"] * 4  # type: ignore[index]
    with torch.no_grad():
        x = torch.cat(list(data.calibration))
        features = torch.cat([model[:2](x).mean((2, 3)), torch.ones(120, 1)], 1)  # type: ignore[index]
        best = features @ torch.linalg.lstsq(features, model(x)).solution
    torch.testing.assert_close(result(x), best, rtol=1e-2, atol=1e-3)


def test_the_first_layer_alone_where_the_head_is_functional() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc1, self.fc2 = nn.Conv2d(2, 4, 3), nn.Linear(36, 7), nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.conv(x))
            return self.fc2(F.relu(self.fc1(y.flatten(1))))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Functional().double().eval()
    with pytest.raises(BadInput, match=r"'fc1': aten\.relu in the network stands between .* `whole: false`"):
        GlobalAveragePooling(layers=("fc1",), steps=1)(model, toy(8, 2, 5, 5), Context())
    result: Any = GlobalAveragePooling(whole=False, steps=1, batches=2)(model, toy(8, 2, 5, 5), Context()).model
    assert result.fc1[3].weight.shape == (7, 4) and torch.equal(result.fc2.weight, model.fc2.weight)


def test_what_is_not_a_flattened_map_is_refused() -> None:
    task = toy(8, 2, 5, 5)
    permuted = network(nn.Unflatten(1, (4, 9)), Transposed(), nn.Flatten(), nn.Linear(36, 3))
    with pytest.raises(BadInput, match="was permuted"):
        GlobalAveragePooling(layers=("6",))(permuted, task, Context())
    with pytest.raises(BadInput, match="the network's input"):
        GlobalAveragePooling(layers=("1",))(nn.Sequential(nn.Flatten(), nn.Linear(50, 3)).double(), task, Context())
    with pytest.raises(BadInput, match="one position only"):
        GlobalAveragePooling(layers=("3",))(network(nn.Linear(4, 3)), toy(8, 2, 3, 3), Context())
    pooled = nn.Sequential(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 3))
    with pytest.raises(BadInput, match="not a flattened map"):
        GlobalAveragePooling(layers=("4",))(pooled.double().eval(), task, Context())


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


# --- strides


def pooled_network(*, sign: float = 1.0, pool: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.weight *= sign
    layers = (nn.Conv2d(2, 4, 3, padding=1), norm, nn.ReLU(), pool or nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    return nn.Sequential(*layers).double().eval()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_strided_convolution_is_the_least_squares_fit_of_what_the_pool_lets_through(sign: float) -> None:
    model, data, context = pooled_network(sign=sign), toy(30, 2, 6, 6), Context()
    result = PoolingToStride(steps=0, batches=3).apply(model, data, context)
    with torch.no_grad():
        x = torch.cat(list(data.calibration))
        y = model[0](x)  # type: ignore[index]
        wanted = (F.max_pool2d(y, 2) if sign > 0 else -F.max_pool2d(-y, 2)).movedim(1, -1).flatten(0, 2)
        rows = F.unfold(x, 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1)
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
        best = torch.linalg.lstsq(rows, wanted).solution
    conv: Any = result[0]  # type: ignore[index]
    torch.testing.assert_close(conv.weight.flatten(1).T, best[:-1], rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(conv.bias, best[-1], rtol=1e-2, atol=1e-3)
    assert isinstance(result[3], nn.Identity) and result(x).shape == (90, 3)  # type: ignore[index]
    assert context.log.edits[0].before == "3x3 2-4"
    assert (
        context.log.edits[0].after == "3x3 2-4 stride 2; no 3"
        and "2,592 to 648 multiply-adds" in context.log.edits[0].note
    )


def test_a_pool_that_rounds_up_is_like_others_where_there_is_nothing_to_round() -> None:
    model, data = pooled_network(pool=nn.MaxPool2d(2, ceil_mode=True)), toy(30, 2, 6, 6)
    result = PoolingToStride(steps=0, batches=3)(model, data, Context()).model
    torch.testing.assert_close(
        result(data.calibration[0]),
        PoolingToStride(steps=0, batches=3)(pooled_network(), data, Context()).model(data.calibration[0]),
    )  # type: ignore[index]


def test_pools_that_a_stride_cannot_stand_for_are_refused() -> None:
    for pool, size, why in (
        (nn.MaxPool2d(3, 2, 1), 6, "overlaps, pads"),
        (nn.MaxPool2d(2), 7, "7x7 are no multiple of the 2x2"),
        (nn.MaxPool2d(2, ceil_mode=True), 5, "5x5 are no multiple of the 2x2"),
        (nn.AvgPool2d(2), 6, "not a max-pool"),
    ):
        with pytest.raises(BadInput, match=why):
            PoolingToStride(layers=("0",))(pooled_network(pool=pool), toy(2, 2, size, size), Context())


# --- strides to pools


@settings(max_examples=25)
@given(st.integers(4, 11), st.integers(4, 11), st.sampled_from([(3, 2, 1), (3, 2, 0), (5, 3, 2), (2, 2, 0), (3, 3, 1)]))
def test_a_pool_gives_what_the_stride_gave_or_more(height: int, width: int, geometry: tuple[int, int, int]) -> None:
    """The strided positions are the first of each window, whatever the size of the map."""
    kernel, stride, padding = geometry
    if min(height, width) + 2 * padding < kernel:
        return
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, kernel, stride, padding).double()
    x = torch.randn(2, 2, height, width, dtype=torch.float64)
    after, before = with_pool(layer).module(x), layer(x)
    assert after.shape == before.shape
    assert (after >= before - 1e-12).all() and (after > before).any()


def test_a_pool_of_equal_neighbours_is_the_stride() -> None:
    layer = nn.Conv2d(1, 2, 2, 2)
    with torch.no_grad():
        layer.weight[:, :, 0, 1] = layer.weight[:, :, 1] = 0
    x = torch.randn(2, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(with_pool(layer).module(x), layer(x))


def test_block_reconstruction_moves_pools_towards_the_strides() -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(1, 4, 3, 2, 1)
    model = nn.Sequential(first, nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 1, 2)).eval()
    context, x = Context(original=model), task_of_noise().example_inputs[0]
    result = StrideToPooling(steps=80, lr=0.02, batches=2).apply(model, task_of_noise(), context)
    assert [type(m) for m in result.get_submodule("0").children()] == [nn.Conv2d, nn.MaxPool2d]
    rough, reconstructed = (
        float((block(x) - first(x)).detach().square().mean())
        for block in (with_pool(first).module, result.get_submodule("0"))
    )
    assert reconstructed < 0.5 * rough
    notes = {edit.target: edit.note for edit in context.log.edits}
    assert "leaves positions out" in notes["3"]
    assert notes["2"] == "it is no convolution with a stride"
    assert (context.log.edits[0].before, context.log.edits[0].after) == ("3x3 1-4 stride 2", "3x3 1-4")
    assert [part.kind for part in context.log.edits[0].swapped.after] == ["3×3", "MaxPool2d"]  # type: ignore[union-attr]
