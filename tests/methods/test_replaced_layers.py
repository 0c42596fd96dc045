"""What the record says of layers that gave their place to others."""

import json
from typing import Any

import pytest
import torch
from nets import task, tiny
from torch import nn

from gossamer.core.context import Context
from gossamer.core.edit_details import SwapRecord
from gossamer.core.record import Edit, to_json
from gossamer.methods.lowrank.cp import CP
from gossamer.methods.lowrank.svd import SVD
from gossamer.methods.lowrank.tucker import Tucker
from gossamer.methods.restructure.branches import TrainingBranches
from gossamer.methods.restructure.fire import FireModule
from gossamer.methods.restructure.fold import Folding
from gossamer.modules.outline import outline


class Side(nn.Module):
    """Two branches that are added, then one layer; a pool that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(4, 6, 1, groups=2)
        self.long = nn.Sequential(nn.Conv2d(3, 2, (1, 3), padding=(0, 1)), nn.Conv2d(2, 4, 3, padding=1))
        self.short = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.unused = nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.short(x) + self.norm(self.long(x))))  # type: ignore[no-any-return]


def test_an_outline_has_a_column_for_what_comes_after_and_a_row_for_what_stands_beside() -> None:
    rows = [
        (p.kind, p.inputs, p.outputs, p.groups, p.column, p.row) for p in outline(Side(), (torch.randn(1, 3, 6, 6),))
    ]
    assert rows == [
        ("1×1", 3, 4, 1, 0, 0),
        ("1×3", 3, 2, 1, 0, 1),
        ("3×3", 2, 4, 1, 1, 1),
        ("BatchNorm2d", 0, 0, 1, 2, 1),
        ("1×1", 4, 6, 2, 3, 1),
    ]
    [part] = outline(nn.Conv1d(2, 4, 3, stride=2), (torch.randn(1, 2, 9),))
    assert (part.kind, part.stride) == ("3", "2")


def swapped(method: Any, model: nn.Module) -> dict[str, SwapRecord]:
    context = Context(original=model)
    method.apply(model, task(), context)
    read = [Edit.parse(json.loads(json.dumps(row))) for row in to_json(context.log.edits)]
    assert read == context.log.edits
    return {edit.target: edit.swapped for edit in read if edit.swapped is not None}


def test_a_rule_shows_the_spectrum_that_it_chose_from() -> None:
    model = tiny()
    found = swapped(Tucker(energy=0.6), model)
    assert found
    for name, one in found.items():
        layer: Any = model.get_submodule(name)
        assert [(p.kind, p.inputs, p.outputs) for p in one.before] == [("3×3", layer.in_channels, layer.out_channels)]
        outputs, inputs = one.spectra
        assert [(p.kind, p.inputs, p.outputs) for p in one.after] == [
            ("1×1", layer.in_channels, inputs.rank),
            ("3×3", inputs.rank, outputs.rank),
            ("1×1", outputs.rank, layer.out_channels),
        ]
        values = torch.linalg.svdvals(layer.weight.detach().double().flatten(1))
        torch.testing.assert_close(torch.tensor(outputs.values).double(), values / values[0], rtol=1e-3, atol=1e-3)
        assert one.error is not None and 0.0 < one.error <= 0.4**0.5 and one.of == "weights"


@pytest.mark.parametrize("data", ["none", "inputs", "accumulated"])
def test_the_error_of_a_given_rank_is_what_the_spectrum_leaves_out(data: Any) -> None:
    model = tiny()
    [one] = swapped(SVD(ranks={"head": 2}, data=data), model).values()
    [row] = one.spectra
    values = torch.tensor(row.values).double().square()
    assert row.rank == 2 and len(row.values) > 2
    assert one.error == pytest.approx(float((values[2:].sum() / values.sum()).sqrt()), rel=1e-2)
    assert one.of == ("weights" if data == "none" else "outputs")


def test_terms_that_were_asked_for_have_no_spectrum_and_norms_are_in_the_picture() -> None:
    [one] = swapped(CP(ranks={"body.0.conv1": 6}, sweeps=20, norm=True), tiny()).values()
    assert one.spectra == []
    assert [p.kind for p in one.after] == ["1×1", "BatchNorm2d", "3×1", "BatchNorm2d", "1×3", "BatchNorm2d", "1×1"]
    assert [p.column for p in one.after] == list(range(7))


def test_blocks_show_their_branches_and_how_far_they_are_off() -> None:
    for one in swapped(FireModule(steps=2, batches=2), tiny()).values():
        assert [(p.kind, p.column, p.row) for p in one.after] == [("1×1", 0, 0), ("1×1", 1, 0), ("3×3", 1, 1)]
        assert one.error is not None and one.error > 0


@pytest.mark.slow
def test_branches_that_are_folded_are_shown() -> None:
    model = tiny()
    context = Context(original=model)
    wide = TrainingBranches().apply(model, task(), context)
    shown = [edit.swapped for edit in context.log.edits]
    assert all(one is not None and len(one.before) == 1 and len(one.after) >= 3 for one in shown)
    folded = {edit.target: edit.swapped for edit in context.log.edits}
    again = swapped(Folding(), wide)
    assert set(again) == set(folded)
    assert all(len(one.before) >= 3 and len(one.after) == 1 for one in again.values())


def test_outside_of_a_job_nothing_is_drawn() -> None:
    context = Context()
    Tucker(energy=0.6).apply(tiny(), task(), context)
    assert context.log.edits and all(edit.swapped is None for edit in context.log.edits)
