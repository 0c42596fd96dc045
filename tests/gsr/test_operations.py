"""The list of operations of the format: Python's operators and other names of torch for what it has."""

import operator
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gossamer
from gossamer.gsr.format.operations import _SAME, CODES, VIEWS, WRITES, function_of
from gossamer.runtime.pt2.file import export_pt2, load_pt2


def both(low: Tensor, high: Tensor) -> Tensor:
    """True where neither holds: what the operator reads must still be what it was."""
    inner = low & high
    return (low ^ inner) | (high ^ inner)


ELSEWHERE: dict[str, Callable[..., Tensor]] = {
    "and of masks": lambda x: torch.where((x > 0) & (x < 0.7), x, 0.0),
    "masks that are read again": lambda x: torch.where(both(x > 0.3, x < 0.7), x, 0.0),
    "or of masks": lambda x: torch.where((x > 0.9) | (x < 0.2), x, 0.0),
    "exclusive or of masks": lambda x: torch.where((x > 0.9) ^ (x < 0.2), x, 0.0),
    "smaller of two": lambda x: torch.min(x, x.flip(0)),
    "larger of two": lambda x: torch.max(x, x.flip(0)),
    "multiply": lambda x: torch.multiply(x, x),
    "divide": lambda x: torch.divide(x, x + 1),
    "subtract": lambda x: torch.subtract(x, x.flip(0)),
    "clip": lambda x: torch.clip(x, 0.2, 0.5),
    "absolute": lambda x: torch.absolute(x - 0.5),
    "greater": lambda x: torch.where(torch.greater(x, 0.5), x, 0.0),
    "shaped as another": lambda x: (x @ x.mT).reshape_as(x @ x.mT).sum(0),
    "between two": lambda x: torch.lerp(x, x.flip(0), 0.25),
    "product of vectors": lambda x: torch.vdot(x[0], x[1]) * x,
    "differences": lambda x: torch.diff(x, dim=-1) * torch.trace(x),
    "cross product": lambda x: torch.linalg.cross(x[:, :3], x[:, 1:]),
    "corners": lambda x: x[torch.triu_indices(4, 4).unbind()] + x[torch.tril_indices(4, 4).unbind()],
    "angles": lambda x: torch.deg2rad(x) + torch.rad2deg(x),
    "larger and smaller without NaN": lambda x: torch.fmax(x, x.flip(0)) - torch.fmin(x, x.flip(0)),
    "special functions": lambda x: torch.special.entr(x) + torch.lgamma(x) + torch.digamma(x) + torch.copysign(x, -x),
    "shifted bits": lambda x: ((x * 8).int() << 2) >> (x * 2).int(),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_networks_that_use_another_name_are_stored_with_their_graph(name: str, tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return ELSEWHERE[name](self.layer(x).sigmoid())

    model, x = Net().eval(), torch.rand(4, 4)
    gossamer.save(model, tmp_path / "net.gsr", (x,), effort="fast")
    torch.testing.assert_close(gossamer.load(tmp_path / "net.gsr")(x), model(x))
    torch.testing.assert_close(load_pt2(export_pt2(model, (x,), tmp_path / "net.pt2"))(x), model(x))


def test_every_other_name_is_one_of_the_list() -> None:
    packets = {name.partition(".")[0] for name in CODES}
    assert all(name in CODES or name in packets for name in _SAME.values())
    assert not packets & {name for name in _SAME if "." not in name}


@pytest.mark.parametrize("name", sorted(name for name in CODES if not name.startswith("py.")))
def test_every_operation_of_the_list_is_there(name: str) -> None:
    assert function_of(name) is not None


def test_what_shares_memory_or_writes_says_so_in_its_schema() -> None:
    """Views and writes are known by name; torch's own schemas say the same of those without more than one kernel."""
    for name in CODES:
        function = function_of(name)
        if name.startswith(("py.", "sym_")) or not isinstance(function, torch._ops.OpOverload):
            continue
        written = any(a.alias_info and a.alias_info.is_write for a in function._schema.arguments)
        assert written == (name in WRITES), name
        shared = any(r.alias_info is not None for r in function._schema.returns)
        assert name in VIEWS or name in WRITES or not shared, name


def test_operators_of_python_are_not_confused_with_those_of_tensors() -> None:
    assert function_of("py.mul") is operator.mul
