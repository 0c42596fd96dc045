"""Auxiliary heads, and blocks that are left out while training."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import Block, tiny
from nets import task as noise
from torch import Tensor, nn
from train_toy import net, on_cpu, task, training

from gossamer.core.batches import cross_entropy
from gossamer.errors import BadInput, NoEffect
from gossamer.models import build
from gossamer.models.stochastic import StochasticBlock, StochasticResNet
from gossamer.train import fit
from gossamer.train.auxiliary import Heads, blocks_left_out, heads_of, helped, leave_out

X = torch.randn(4, 8, 5, 5, generator=torch.Generator().manual_seed(0)).relu()


class TwoHeads(nn.Module):
    """A body, a head that counts, two that only help; `heads.a` runs while training."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(72, 8), nn.ReLU())
        self.heads = nn.ModuleDict({"a": nn.Sequential(nn.Linear(8, 4)), "idle": nn.Linear(8, 4)})
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if self.training:
            self.heads["a"](x)
        return self.fc(x)  # type: ignore[no-any-return]


def two_heads() -> TwoHeads:
    torch.manual_seed(0)
    return TwoHeads()


def test_a_head_adds_its_loss_by_its_weight() -> None:
    model, (x, y) = two_heads().train(), next(iter(task().train))
    heads = Heads(model, {"heads.a": 0.3}, cross_entropy)
    outputs = model(x)
    assert torch.allclose(heads((x,), outputs, y), 0.3 * F.cross_entropy(model.heads["a"](model.body(x)), y))
    model.eval()(x)
    with pytest.raises(BadInput, match=r"heads\.a' did not run"):
        heads((x,), outputs, y)
    heads.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_training_with_a_head_is_the_loop_that_one_would_write() -> None:
    ours, theirs, toy = two_heads(), two_heads(), task()
    fit(
        ours,
        toy,
        training(epochs=1, schedule="constant", warmup=0.0, auxiliary={"heads.a": 0.5}, keep="last"),
        on_cpu(),
    )
    plan = training(schedule="constant", warmup=0.0)
    decayed = [p for p in theirs.parameters() if p.dim() > 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed},
        {"params": [p for p in theirs.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=plan.lr, momentum=0.9, nesterov=True, weight_decay=plan.weight_decay)
    for x, y in toy.train:
        features = theirs.body(x)
        loss = F.cross_entropy(theirs.fc(features), y) + 0.5 * F.cross_entropy(theirs.heads["a"](features), y)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name)
    assert torch.equal(ours.state_dict()["heads.idle.weight"], two_heads().state_dict()["heads.idle.weight"])
    assert not any(m._forward_hooks for m in ours.modules())


def test_a_head_learns_in_several_processes_as_in_one() -> None:
    models = [two_heads(), two_heads()]
    for devices, model in enumerate(models, 1):
        fit(model, task(), training(epochs=1, auxiliary={"heads.a": 0.5}, keep="last"), on_cpu(devices=devices))
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


def test_patterns_take_the_outermost_modules() -> None:
    assert heads_of(two_heads(), {"heads.*": 0.3}) == {"heads.a": 0.3, "heads.idle": 0.3}
    with pytest.raises(NoEffect, match="no module of the network"):
        heads_of(two_heads(), {"aux*": 0.3})
    with pytest.raises(BadInput, match=r"auxiliary\['a'\] = 0"):
        training(auxiliary={"a": 0.0})


@pytest.mark.parametrize(("name", "size", "heads"), [("googlenet_aux", 79, 2), ("inception_v3_aux", 299, 1)])
def test_the_heads_of_the_zoo(name: str, size: int, heads: int) -> None:
    with torch.device("meta"):
        model = build(name, input_size=size, classes=7).train()
        batch = (torch.empty(2, 3, size, size), torch.empty(2, dtype=torch.int64))
    weights = {"heads.*": 0.3} if heads == 2 else {"head": 0.4}
    term = Heads(model, weights, cross_entropy)
    outputs = model(batch[0])
    assert len(term.weights) == len(term.outputs) == heads
    assert all(given.shape == outputs.shape == (2, 7) for given in term.outputs.values())


class Late(nn.Module):
    """A part of it takes part from the second step on."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.more, self.calls = nn.Linear(72, 4), nn.Linear(72, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        x = x.flatten(1)
        return self.fc(x) + (self.more(x) if self.calls != 1 else 0)  # type: ignore[no-any-return]


def test_what_takes_part_later_than_the_rest_is_trained() -> None:
    model = Late()
    before = model.more.weight.detach().clone()
    fit(model, task(), training(epochs=1, lr=0.01, keep="last"), on_cpu())
    assert not torch.equal(model.more.weight, before)


# Blocks


def test_a_block_is_left_out_as_often_as_asked_and_its_mean_is_its_output() -> None:
    torch.manual_seed(1)
    block = Block(8).eval()
    with torch.no_grad():
        whole = block(X)
        block.training = True  # only the hook looks at it
        draws = [leave_out(0.25, block, (X,), whole) for _ in range(4000)]
        left = sum(d is not None and torch.equal(d, X) for d in draws) / len(draws)
        assert left == pytest.approx(0.25, abs=0.03)
        mean = torch.stack([d for d in draws if d is not None]).mean(0)
        torch.testing.assert_close(mean, whole, atol=0.1, rtol=0.1)
        block.training = False
        assert leave_out(0.25, block, (X,), whole) is None


def test_probabilities_rise_to_the_last_block_and_nothing_stays() -> None:
    model = tiny()
    with blocks_left_out(model, noise().example_inputs, 0.6):
        found = [next(iter(b._forward_hooks.values())).args for b in model.body]  # type: ignore[union-attr]
    assert [p for (p,) in found] == pytest.approx([0.2, 0.4, 0.6])
    assert not any(m._forward_hooks for m in model.modules())


def test_training_leaves_blocks_out_reproducibly() -> None:
    def trained(drop_path: float | None) -> nn.Module:
        model = tiny()
        fit(model, noise(), training(epochs=1, lr=0.01, drop_path=drop_path, keep="last"), on_cpu())
        return model

    first, again, none = trained(0.9), trained(0.9), trained(None)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters()))
    assert not all(torch.equal(p, q) for p, q in zip(first.parameters(), none.parameters()))


def test_a_network_with_its_own_drop_path_keeps_the_one_asked_for() -> None:
    model = StochasticResNet(1)
    survivals = [m.survival for m in model.modules() if isinstance(m, StochasticBlock)]
    assert model.drop_path == 0.5 and survivals == pytest.approx([5 / 6, 4 / 6, 0.5])
    for name in ("resnet20_stochastic", "fractalnet5"):
        network: Any = build(name)
        with blocks_left_out(network, (torch.randn(1, 3, 8, 8),), 0.2):
            assert network.drop_path == 0.2
        assert network.drop_path == 0.2 and not any(m._forward_hooks for m in network.modules())
    model.drop_path = 0.3
    assert [m.survival for m in model.modules() if isinstance(m, StochasticBlock)] == pytest.approx([0.9, 0.8, 0.7])


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(NoEffect, match="neither residual blocks"), helped(net(), task(), training(drop_path=0.1)):
        pass
