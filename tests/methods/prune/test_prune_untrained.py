"""Pruning at initialization: SNIP and SynFlow."""

import torch
from nets import task, tiny
from torch import nn

from gossamer.constraints.apply import constraints
from gossamer.constraints.weights import effective_weight
from gossamer.core.context import Context
from gossamer.errors import BadInput
from gossamer.methods.prune._masks import selected_weights
from gossamer.methods.prune.snip import SNIP, connection_scores
from gossamer.methods.prune.synflow import SynFlow, absolute, flow_masks, flow_scores


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)
    )


def test_snip_scores_are_the_gradients_of_gates_on_the_connections() -> None:
    model, data = net().train(), task()
    batches = data.train[:2]  # type: ignore[index]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    scores = connection_scores(model, data, batches, ["3.weight", "6.weight"])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    gates = {name: torch.ones_like(model.get_parameter(name), requires_grad=True) for name in scores}
    gated = {name: model.get_parameter(name).detach() * gate for name, gate in gates.items()}
    total = sum(data.loss(lambda x: torch.func.functional_call(model, gated, (x,)), batch) for batch in batches)
    for name, gradient in zip(gates, torch.autograd.grad(total, list(gates.values()))):
        torch.testing.assert_close(scores[name], gradient.abs())


def test_snip_drops_exactly_its_share_and_draws_the_same_for_the_same_seed() -> None:
    results = [SNIP(sparsity=0.8, batches=2)(tiny(), task(), Context(seed=3)).model for _ in range(2)]
    weights = [selected_weights(r, ["*"], []) for r in results]
    total = sum(w.numel() for w in weights[0].values())
    assert sum(int((w == 0).sum()) for w in weights[0].values()) == round(0.8 * total)
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])


def test_what_flows_into_a_unit_flows_out_of_it() -> None:
    """The conservation law: in every hidden unit the scores of the weights in and out have one sum, and so has every
    layer, which is what flows through the network."""
    plain = absolute(net())
    inputs = task().example_inputs
    scores = flow_scores(plain, inputs, ["0.weight", "3.weight", "6.weight"])
    flow = plain(torch.ones_like(inputs[0][:1], dtype=torch.double)).sum()
    for s in scores.values():
        torch.testing.assert_close(s.sum(), flow)
    torch.testing.assert_close(scores["0.weight"].sum((1, 2, 3)), scores["3.weight"].sum((0, 2, 3)))
    torch.testing.assert_close(scores["3.weight"].sum((1, 2, 3)), scores["6.weight"].view(3, 5, 4).sum((0, 2)))


def test_synflow_keeps_every_layer_where_one_round_of_it_empties_some() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), *(nn.Linear(36, 36) for _ in range(4)), nn.Linear(36, 3))
    with torch.no_grad():
        model[2].weight *= 1e-3  # scores do not depend on the scale of a layer
    weights = selected_weights(model, ["*"], [])
    masks = flow_masks(model, task().example_inputs, weights, 0.99, 100)
    total = sum(m.numel() for m in masks.values())
    assert sum(int((~m).sum()) for m in masks.values()) == round(0.99 * total)
    assert all(m.any() for m in masks.values())
    once = flow_masks(model, task().example_inputs, weights, 0.99, 1)
    assert not all(m.any() for m in once.values())


def test_synflow_needs_no_data_and_leaves_the_model_alone() -> None:
    class Untouchable:
        def __iter__(self) -> None:
            raise AssertionError("data were touched")

        def __len__(self) -> int:
            return 1

    model = tiny()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    data = task()
    for split in ("train", "validation", "test", "calibration"):
        object.__setattr__(data, split, Untouchable())
    result = SynFlow(sparsity=0.5, rounds=5)(model, data, Context()).model
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert sum(int((effective_weight(result, n) == 0).sum()) for n in constraints(result)) == 1776


def test_a_network_with_several_outputs_is_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.fc(x), x

    try:
        SynFlow(sparsity=0.5)(Two(), task(), Context())
    except BadInput as error:
        assert "must give one tensor" in str(error)
    else:
        raise AssertionError("it was accepted")
