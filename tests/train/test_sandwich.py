"""Sub-networks that run with the weights of the network in training."""

import torch
from nets import tiny
from torch import nn

from gossamer.modules.elastic import elastic_network
from gossamer.train.sandwich import Sandwich, SharedWeights, shared_part


def test_a_sub_network_runs_on_the_shared_weights_and_gives_its_gradients_to_them() -> None:
    model, x = tiny().train(), torch.randn(4, 1, 6, 6)
    elastic = elastic_network(model, x)
    shared = SharedWeights(model, elastic, {"stem": 4}, ["body.0"])
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.9)  # as a step does: what it runs on is what the network has now
    output = shared(x)
    torch.testing.assert_close(output, elastic.subnetwork({"stem": 4}, ["body.0"]).model.train()(x))
    output.square().sum().backward()
    gradient = model.stem.weight.grad
    assert gradient is not None
    assert bool((gradient[:4].flatten(1).norm(dim=1) > 0).all()) and not gradient[4:].any()
    assert model.body[0].conv1.weight.grad is None


def test_parts_of_grouped_weights_are_taken_by_group() -> None:
    weight = torch.arange(8.0).view(4, 2, 1, 1).requires_grad_()
    part = shared_part(weight, {0: [0, 2], 1: [[1], [0]]})
    assert part.flatten().tolist() == [1.0, 4.0]
    part.sum().backward()
    assert weight.grad is not None and weight.grad.flatten().nonzero().flatten().tolist() == [1, 4]


def test_layouts_in_which_a_strided_convolution_would_abort_are_left() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 16, 1, 2), nn.Flatten(), nn.Linear(144, 2)
    )
    x = torch.randn(2, 1, 6, 6)
    elastic = elastic_network(model.train(), x)
    for p in model.parameters():
        p.data = p.data.to(memory_format=torch.channels_last) if p.dim() == 4 else p.data
    seen: list[int] = []
    for width, channels_last in ((4, False), (8, True)):
        shared = SharedWeights(model, elastic, {"0": width}, [])
        first = shared.skeleton.get_submodule("0")
        first.register_forward_hook(lambda _, taken, output: seen.append(output.stride(1)))
        shared(x.to(memory_format=torch.channels_last))
        assert (seen[-1] == 1) is channels_last


def test_the_sandwich_has_the_smallest_and_random_ones_and_nothing_to_teach_the_whole() -> None:
    model, x = tiny().train(), torch.randn(4, 1, 6, 6)
    term = Sandwich(model, elastic_network(model, x), count=2, temperature=1.0, seed=0)
    expected = model(x)
    loss = term((x,), expected, None)
    assert loss.item() > 0 and 2 <= len(term.made) <= 3
    assert term.made[0].skeleton.stem.out_channels == 2  # type: ignore[union-attr]
    loss.backward()
    own = torch.autograd.grad(expected.sum(), model.head.weight)[0]
    assert own is not None and model.head.weight.grad is not None
    twin = Sandwich(model, elastic_network(model, x), count=0, temperature=1.0, seed=0)
    silent = SharedWeights(model, elastic_network(model, x), {}, [])
    torch.testing.assert_close(
        twin.inplace.soft(silent(x), expected.detach(), None), torch.tensor(0.0), atol=1e-5, rtol=0
    )
