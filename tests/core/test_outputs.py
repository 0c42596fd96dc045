"""Outputs of the user's own classes, and networks that give something else while they train."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer import Context, Task
from gossamer.compact.reading import load
from gossamer.compact.writing import save
from gossamer.core.batches import cross_entropy
from gossamer.core.outputs import Fields, places, plain, put, tensors
from gossamer.core.progress import Silent
from gossamer.core.task import loss_of
from gossamer.errors import BadInput
from gossamer.methods._base import Method
from gossamer.methods.lowrank.svd import SVD
from gossamer.methods.prune.channels import ChannelPruning
from gossamer.methods.prune.obd import OptimalBrainDamage
from gossamer.methods.prune.snip import SNIP
from gossamer.methods.share.kmeans import KMeans
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.pt2.file import export_pt2, load_pt2
from gossamer.runtime.runners import open_runner
from gossamer.runtime.verification import verify
from gossamer.task import check
from gossamer.train.distillation import Distillation
from gossamer.train.train_mode import same_outputs, teacher_terms

X = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
A, B = torch.zeros(2), torch.ones(3)


@dataclass
class Data:
    logits: Tensor
    more: Any = None


class Attributes(dict[str, Any]):
    __getattr__ = dict.__getitem__


class ModelOutput(OrderedDict[str, Any]):
    __getattr__ = OrderedDict.__getitem__


class Plain:
    def __init__(self, logits: Tensor, more: Any = None) -> None:
        self.logits, self.more, self.name = logits, more, "plain"


Pair = namedtuple("Pair", ["logits", "more"])
KINDS = (Data, Attributes, ModelOutput, Plain, Pair)


class Net(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.a, self.b = kind, nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        h = self.a(x).relu()
        return self.kind(logits=self.b(h), more=(h, {"sum": h.sum(1)}))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_taken_apart_is_put_together_again(kind: Any) -> None:
    output = kind(logits=A, more=[B, None, {"deep": A}])
    assert [x is y for x, y in zip(tensors(output), (A, B, A), strict=True)] == [True] * 3
    again = put(list(tensors(output)), places(output))
    assert again.logits is A and again.more[0] is B and again.more[1] is None and again.more[2]["deep"] is A
    assert again[0] is A
    parts = plain(output)
    assert (parts[0] if kind is Pair else parts["logits"]) is A


def test_plain_outputs_are_what_they_were() -> None:
    assert places({"a": A, "b": (B, None)}) == {"a": 0, "b": [1, None]} and places((A, B)) == [0, 1]
    assert type(put([A, B], {"a": 0, "b": [1, None]})) is dict
    assert places({1: A}) is None  # JSON has no such names
    with pytest.raises(AttributeError, match="no 'boxes'; they have logits"):
        Fields(logits=A).boxes  # noqa: B018


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch"])
@pytest.mark.slow
def test_a_measure_by_attribute_works_on_every_runtime(kind: Any, runtime: str, tmp_path: Path) -> None:
    pytest.importorskip(runtime)
    model = Net(kind).eval()
    path = export_onnx(model, (X,), tmp_path / "m.onnx")
    runner = open_runner(runtime, model if runtime == "torch" else path, threads=1)
    got, expected = runner(X), model(X)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.more[1]["sum"], expected.more[1]["sum"], rtol=1e-4, atol=1e-5)
    rows = verify(model, runner, [X])
    assert rows[0].value == 100


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".pt2", ".gsr"])
@pytest.mark.slow
def test_networks_of_files_give_such_outputs_without_the_class(kind: Any, suffix: str, tmp_path: Path) -> None:
    model, path = Net(kind).eval(), tmp_path / f"m{suffix}"
    loaded = load_pt2(export_pt2(model, (X,), path)) if suffix == ".pt2" else load(save(model, path, (X,)))
    got, expected = loaded(X), model(X)
    torch.testing.assert_close(got.logits, expected.logits)
    torch.testing.assert_close(got.more[1]["sum"], expected.more[1]["sum"])
    assert got[0] is got.logits and (kind is Pair or got["logits"] is got.logits)
    assert not model._forward_hooks
    again = open_runner("onnxruntime", export_onnx(loaded, (X,), tmp_path / "m.onnx"), threads=1)(X)
    torch.testing.assert_close(again.logits, expected.logits, rtol=1e-4, atol=1e-5)


def test_plain_outputs_of_files_stay_plain(tmp_path: Path) -> None:
    model = Net(dict).eval()
    assert type(load_pt2(export_pt2(model, (X,), tmp_path / "m.pt2"))(X)) is dict
    assert type(load(save(model, tmp_path / "m.gsr", (X,)))(X)) is dict


class Detector(nn.Module):
    """train: what it gives in train mode: "maps", "losses", or nothing else."""

    def __init__(self, train: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.what, self.norm, self.body, self.head = train, nn.BatchNorm1d(4), nn.Linear(4, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor, target: Tensor | None = None) -> Any:
        y = self.head(self.body(self.norm(x)).relu())
        if self.training and self.what == "maps":
            return y
        if self.training and self.what == "losses":
            assert target is not None
            return {"box": (y - target).abs().mean(), "object": y.square().mean()}
        return y.exp(), y


def detection(train: str) -> Task:
    batches = [(X, torch.rand(4, 6)) for _ in range(2)]

    def loss(model: Any, batch: Any) -> Tensor:
        x, y = batch
        if train == "losses":
            return sum(model(x, y).values())  # type: ignore[return-value]
        out = model(x)
        return (out if isinstance(out, Tensor) else out[1]).sub(y).square().mean()

    def metric(model: Any, loader: Any) -> Tensor:
        return torch.cat([model(x)[0].sigmoid().mean(1) for x, _ in loader])

    return Task(
        name="boxes",
        train=batches,
        validation=batches,
        test=batches,
        calibration=batches,
        example_inputs=(X,),
        loss=loss,
        metric=metric,
    )


@pytest.mark.parametrize("train", ["maps", "losses", "the same"])
def test_a_loss_may_be_that_of_train_mode(train: str) -> None:
    model = Detector(train).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check(detection(train), model)
    assert loss_of(detection(train), model, detection(train).train[0]).numel() == 1  # type: ignore[index]
    assert not model.training and all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_a_loss_that_is_none_in_either_mode_is_refused_with_the_error_of_eval_mode() -> None:
    task = detection("the same")
    object.__setattr__(task, "loss", lambda model, batch: model(batch[0])[1])
    with pytest.raises(BadInput, match="must be a tensor with one number"):
        check(task, Detector("the same").eval())


@pytest.mark.parametrize(
    "method",
    [
        ChannelPruning(sparsity=0.5, criterion="taylor"),
        ChannelPruning(sparsity=0.5, criterion="fisher"),
        OptimalBrainDamage(sparsity=0.5, curvature="exact"),
        SNIP(sparsity=0.5),
        KMeans(bits=2, importance="adam"),
        SVD(params=0.5, measured=True),
    ],
    ids=lambda method: f"{method.name()} {getattr(method, 'criterion', '')}".strip(),
)
def test_methods_that_need_gradients_or_the_loss_take_that_of_train_mode(method: Method) -> None:
    model = Detector("losses").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    got = method(model, detection("losses"), Context()).model
    assert not got.training and not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class OneTensor(Detector):
    def forward(self, x: Tensor, target: Tensor | None = None) -> Any:
        out = super().forward(x, target)
        return out if self.training else out[1]


@pytest.mark.parametrize("curvature", ["gauss_newton", "fisher"])
@pytest.mark.parametrize(
    ("kind", "why"),
    [(Detector, "gives one tensor, got tuple"), (OneTensor, "fails on that: .*weights alone")],
)
def test_a_curvature_by_outputs_says_that_the_loss_has_none(kind: Any, why: str, curvature: Any) -> None:
    with pytest.raises(BadInput, match=f"this curvature needs a .*{why}"):
        OptimalBrainDamage(sparsity=0.5, curvature=curvature)(kind("losses").eval(), detection("losses"), Context())


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def test_teacher_and_student_are_in_the_same_mode() -> None:
    """Without norms that learn and dropout; what was taught stands in checkpoints."""
    model, said = Detector("maps"), Said()
    context = Context(progress=said)
    [term] = teacher_terms(model, model, detection("maps"), context, temperature=4.0, alpha=0.1)
    student = model.train()(X)
    assert isinstance(term.asked(X), Tensor) and float(term((X,), student, None).detach()) >= 0
    assert not term.teacher.norm.training and "in train mode" in term.described()  # type: ignore[union-attr]
    assert len(said.lines) == 1 and "so does its teacher" in said.lines[0]


def test_where_the_student_gives_losses_it_learns_from_the_task_alone() -> None:
    model, said = Detector("losses"), Said()
    assert teacher_terms(model, model, detection("losses"), Context(progress=said), temperature=4.0, alpha=0.1) == []
    assert "the task's loss alone counts" in said.lines[0]


def test_a_usual_network_is_taught_as_before_and_nothing_of_it_moves() -> None:
    model, said = Detector("the same").eval(), Said()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task = detection("the same")
    torch.manual_seed(5)
    [term] = teacher_terms(model, model, task, Context(progress=said), temperature=4.0, alpha=0.1)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert term.mode == "" and not said.lines
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_outputs_are_alike_where_every_part_has_its_shape() -> None:
    assert (
        same_outputs((A, {"x": B}), [A, {"x": B}])
        and same_outputs((A, B), A)
        and same_outputs(Data(A), Attributes(logits=A))
    )
    assert not same_outputs((A, B), (B, A)) and not same_outputs(A, (A, B)) and not same_outputs({"x": A}, {"y": A})
    assert not same_outputs({"loss": torch.tensor(1.0)}, {"loss": torch.tensor(1.0)})


def test_classes_of_outputs_are_taught_by_their_parts() -> None:
    kinds: tuple[Any, ...] = (Data, Attributes)
    student, teacher = (Net(kind) for kind in kinds)
    term = Distillation(teacher)
    with torch.no_grad():
        assert float(term((X,), student(X), None)) == pytest.approx(0.0, abs=1e-9)
        student.b.weight.add_(1)
        assert float(term((X,), student(X), None)) > 0.01


def test_the_usual_loss_takes_the_first_of_several_outputs() -> None:
    logits, target = torch.randn(6, 3), torch.randint(3, (6,))
    wanted = torch.nn.functional.cross_entropy(logits, target)
    for given in (logits, (logits, logits + 1), {"logits": logits, "hidden": logits * 2}):
        assert torch.equal(cross_entropy(lambda _, given=given: given, (logits, target)), wanted)
