"""Shortcuts, branches, smaller images, Inception blocks: what is exact, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from nets import task, tiny
from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.errors import BadInput, NoEffect
from gossamer.methods.restructure._rewrite import Unfit
from gossamer.methods.restructure.branches import TrainingBranches
from gossamer.methods.restructure.fold import Folding
from gossamer.methods.restructure.inception import InceptionBlock, inception
from gossamer.methods.restructure.resolution import ResolutionMultiplier
from gossamer.methods.restructure.shortcut import ShortcutConnections
from gossamer.modules.blocks import find_blocks
from gossamer.modules.cost import total_macs
from gossamer.modules.inserted import Branched

G = torch.Generator().manual_seed(0)
X = task().example_inputs[0]


def test_a_shortcut_changes_nothing_until_it_is_trained() -> None:
    model = tiny()
    result: Any = ShortcutConnections(names=("body.1",))(model, task(), Context()).model
    assert torch.equal(result(X), model(X))
    result(X).sum().backward()
    assert result.body[1].gain.shape == (8, 1, 1) and result.body[1].gain.grad.abs().sum() > 0
    with torch.no_grad():
        result.body[1].gain.fill_(1.0)
        seen = torch.randn(2, 8, 4, 4, generator=G)
        torch.testing.assert_close(result.body[1](seen), model.body[1](seen) + seen)  # type: ignore[index, operator]


def test_a_shortcut_needs_equal_shapes_and_is_no_block_to_remove_at_first() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()))
    result: Any = ShortcutConnections(names=("1",))(layers, task(), Context()).model
    assert not find_blocks(result, (X,))  # with its gain at zero its input does not come through
    with pytest.raises(BadInput, match="needs equal shapes"):
        ShortcutConnections(names=("0",))(layers, task(), Context())
    with pytest.raises(BadInput, match="names is empty"):
        ShortcutConnections(names=())


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("train", [False, True])
def test_branches_change_nothing_until_they_are_trained(train: bool) -> None:
    model = tiny()
    result = TrainingBranches()(model, task(), Context()).model
    assert sum(isinstance(m, Branched) for m in result.modules()) == 7
    assert torch.equal(result.train(train)(X), model.train(train)(X))


def test_trained_branches_fold_into_one_convolution() -> None:
    model = tiny()
    result = TrainingBranches(layers=("body.*",))(model, task(), Context()).model.double()
    for norm in batch_norms(result):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert isinstance(tensor, Tensor)
            nn.init.uniform_(tensor, 0.5, 1.5)
    inputs = (X.double(),)
    data = replace(task(), example_inputs=inputs)
    folded = Folding()(result, data, Context()).model
    torch.testing.assert_close(folded(*inputs), result(*inputs), rtol=1e-10, atol=1e-10)
    assert total_macs(folded, inputs) == total_macs(model, (X,)) < total_macs(result, inputs)
    assert not any(isinstance(m, Branched) for m in folded.modules())
    again = Folding()(folded, data, Context()).model  # the network's own norms, which stood behind the branches
    torch.testing.assert_close(again(*inputs), result(*inputs), rtol=1e-10, atol=1e-10)
    assert not batch_norms(again)


def test_branches_are_refused_where_the_sum_would_be_no_convolution() -> None:
    for conv in (nn.Conv2d(1, 4, 2), nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3, padding=2, dilation=2)):
        with pytest.raises(NoEffect, match="no convolution that can have branches"):
            TrainingBranches()(nn.Sequential(conv), task(), Context())
        with pytest.raises(BadInput, match="list it under"):
            TrainingBranches(layers=("0",))(nn.Sequential(conv), task(), Context())


def test_half_the_resolution_is_the_mean_of_four_pixels_and_a_quarter_of_the_work() -> None:
    model = tiny()
    result = ResolutionMultiplier(share=0.5)(model, task(), Context()).model
    torch.testing.assert_close(result(X), model(nn.functional.avg_pool2d(X, 2)))
    head = 8 * 3
    assert total_macs(result, (X,)) - head == (total_macs(model, (X,)) - head) // 4
    with pytest.raises(BadInput, match=r"restructure\.global_pool first"):
        ResolutionMultiplier()(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 3)), task(), Context())
    with pytest.raises(NoEffect, match="reads images"):
        ResolutionMultiplier()(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), task(), Context())


def kernel(size: int) -> Tensor:
    """Outputs 0, 1: flat over 3 x 3; 2 to 7: the middle alone; the others: any kernel on one direction of channels."""
    weight = torch.zeros(16, 6, size, size, dtype=torch.float64)
    middle, edge = size // 2, size // 2 - 1
    weight[:2, :, edge : edge + 3, edge : edge + 3] = torch.randn(2, 6, 1, 1, generator=G).double()
    weight[2:8, :, middle, middle] = torch.randn(6, 6, generator=G).double()
    spatial = torch.randn(8, size, size, generator=G).double()
    spatial[:4, middle, middle], spatial[4:, middle, middle] = 3.0, 0.05
    if size == 5:
        spatial[:4, 0], spatial[:4, 4], spatial[:4, :, 0], spatial[:4, :, 4] = 0, 0, 0, 0
    weight[8:] = torch.einsum("nhw,c->nchw", spatial, torch.randn(6, generator=G).double())
    return weight


@pytest.mark.parametrize("size", [3, 5])
def test_a_kernel_that_is_an_inception_block_is_reproduced(size: int) -> None:
    conv = nn.Conv2d(6, 16, size, padding=size // 2).double()
    with torch.no_grad():
        conv.weight.copy_(kernel(size)[(order := torch.randperm(16, generator=G))])
    block = inception(conv, 0.5, 0.5)
    x = torch.randn(2, 6, 7, 7, generator=G).double()
    torch.testing.assert_close(block.module(x), conv(x), rtol=1e-9, atol=1e-9)
    outputs = torch.cat([part for part in block.last.values() if part is not None])
    assert sorted(outputs.tolist()) == list(range(16)) and len(block.last) == (4 if size == 5 else 3)
    assert sorted(order[block.last["branches.0.1"]].tolist()) == [0, 1]
    assert total_macs(block.module, (x,)) < total_macs(conv, (x,)) / 2


def test_least_squares_brings_an_inception_block_nearer() -> None:
    torch.manual_seed(0)
    context = Context()
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)).eval()
    InceptionBlock(layers=("2",), steps=0).apply(model, task(), context)
    built, solved = (
        float(context.log.edits[0].note.split(mark)[0].split()[-1]) for mark in (" at init", " after least")
    )
    assert solved < built


def test_what_cannot_be_an_inception_block_says_why() -> None:
    for conv in (nn.Conv2d(4, 16, 3), nn.Conv2d(4, 16, 3, 2, 1), nn.Conv2d(4, 16, (3, 5), padding=(1, 2))):
        with pytest.raises(Unfit, match="every place"):
            inception(conv, 0.5, 0.5)
    with pytest.raises(Unfit, match="4 output channels"):
        inception(nn.Conv2d(4, 4, 3, padding=1), 0.5, 0.5)
