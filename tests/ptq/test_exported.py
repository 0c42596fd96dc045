"""Weights that lie on the grid which another runtime's quantizer finds: values, and what they compute."""

import pytest
import torch
from torch import Tensor, nn

from gossamer.core.copies import copy_network
from gossamer.ptq.exported import program_of, rounded_program
from gossamer.ptq.rounding import with_largest
from gossamer.ptq.weights import widest_steps

SHAPE = (1, 3, 12, 12)


class Net(nn.Module):
    """Batch norms behind convolutions, one of which another layer reads as well, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depth = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.BatchNorm2d(8, affine=False), nn.ReLU())
        self.read_twice, self.apart = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.2, 3)
                if module.affine:
                    nn.init.uniform_(module.weight, 0.02, 2)
                    nn.init.normal_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read_twice(self.depth(self.first(x)))
        return self.head((x + self.apart(x)).mean((2, 3)))


class Shared(nn.Module):
    """Two layers with one weight, and one of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other, self.own = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.own(torch.relu(self.other(torch.relu(self.one(x)))))


def samples(shape: tuple[int, ...] = SHAPE, count: int = 24) -> list[tuple[Tensor]]:
    return [(torch.rand(shape, generator=torch.Generator().manual_seed(i)),) for i in range(count)]


def error(model: nn.Module, of: nn.Module, shape: tuple[int, ...] = SHAPE) -> float:
    with torch.no_grad():
        return sum(float((model(*x) - of(*x)).square().sum() / of(*x).square().sum()) for x in samples(shape))


def test_batch_norms_that_alone_read_a_convolution_are_folded_and_nothing_else_changes() -> None:
    model = Net().eval()
    before = copy_network(model).state_dict()
    program = program_of(model, samples()[0])
    norms = [node for node in program.graph.nodes if node.target == torch.ops.aten.batch_norm.default]
    assert len(norms) == 1 and "apart" in str(norms[0].args[1])
    assert error(program, model) < 1e-9
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("least", [0.0, 0.01])
def test_the_step_that_a_quantizer_finds_is_the_one_that_weights_were_rounded_to(least: float) -> None:
    program = program_of(Net().eval(), samples()[0])
    found = rounded_program(program, samples()[0], samples(), least_step=least)
    assert set(found.steps) == {"first.0.weight", "depth.0.weight", "read_twice.weight", "head.weight"}
    assert found.left == ()
    for name, step in found.steps.items():
        rows = found.network.get_parameter(name).detach().flatten(1)
        torch.testing.assert_close(torch.from_numpy(widest_steps(rows[None].numpy(), least)[0]), step)
        codes = rows / step[:, None]
        torch.testing.assert_close(codes, codes.round(), atol=1e-4, rtol=0)
        assert codes.abs().max() <= 127.001 and (step >= least).all()
        assert ((codes.abs().amax(1) > 126.9) | (step <= least)).all()


def test_what_is_rounded_by_gptq_is_nearer_than_the_nearest_codes() -> None:
    program = program_of(Net().eval(), samples()[0])
    rounded = rounded_program(program, samples()[0], samples(), least_step=0.02).network
    nearest = copy_network(program)
    for name in ("first.0.weight", "depth.0.weight", "read_twice.weight", "head.weight"):
        weight = nearest.get_parameter(name).data
        step = (weight.flatten(1).abs().amax(1) / 127).clamp_min(0.02).view(-1, *[1] * (weight.ndim - 1))
        weight.copy_((weight / step).round() * step)
    assert error(rounded, program) < 0.5 * error(nearest, program)


def test_layers_that_share_a_weight_are_left_and_named() -> None:
    model = Shared().eval()
    shape = (1, 6)
    program = program_of(model, samples(shape)[0])
    found = rounded_program(program, samples(shape)[0], samples(shape))
    assert found.left == ("other.weight",) and list(found.steps) == ["own.weight"]
    torch.testing.assert_close(found.network.get_parameter("one.weight"), model.one.weight)
    assert 0 < error(found.network, model, shape) < 1e-3


def test_a_largest_weight_keeps_its_code_only_where_no_other_has_it() -> None:
    rows, step = torch.tensor([[[127.0, -127.0, 3.0], [5.0, 127.2, -1.0], [1.0, 2.0, 3.0]]]), torch.ones(1, 3)
    codes = torch.tensor([[[126.0, -127.0, 3.0], [5.0, 126.0, -1.0], [1.0, 2.0, 3.0]]])
    assert with_largest(codes, rows, step).tolist() == [[[126, -127, 3], [5, 127, -1], [1, 2, 3]]]
