"""A student taught from end to end, and everything that can be its teacher or its student."""

import base64
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import measured_briefly
from nets import learned, stripes, task, tiny
from PIL import Image
from torch import Tensor, nn

import gossamer
from gossamer import BadInput, Context, Goal
from gossamer.constraints.apply import constrain, constraints
from gossamer.constraints.codebook import Codebook
from gossamer.constraints.grid import Grid
from gossamer.constraints.mask import Mask
from gossamer.constraints.weights import effective_weight
from gossamer.core.metric import PerSample
from gossamer.core.record import JobDocument
from gossamer.jobs import diagnostics
from gossamer.jobs.distillation import distill, without_teacher
from gossamer.jobs.teachers import (
    OnnxTeacher,
    RecordedTeacher,
    as_found,
    external_teacher,
    searched,
    trainable,
)
from gossamer.measure import calibration
from gossamer.methods import catalogue
from gossamer.methods.distill.hints import FitNets
from gossamer.methods.distill.kd import KD
from gossamer.methods.distill.temperature import TemperatureScaling, divided
from gossamer.methods.distill.wider import Net2Wider
from gossamer.methods.share.hashed import HashedNet
from gossamer.search.checkpoint_store import CheckpointStore
from gossamer.train import compiled_teacher
from gossamer.train.teachers import Ensemble, only_remembers
from gossamer.train.trainable_export import TrainableExport

BRIEF = KD(epochs=3, lr=0.05)


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick")]


def small(width: int = 6) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3),
    )  # fmt: skip


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gossamer.Artifact]:
    """Two teachers, an assistant, calibration, the student alone, answers kept."""
    folder = tmp_path_factory.mktemp("taught")
    with measured_briefly():
        yield gossamer.distill(
            [learned(), learned()], small(), stripes(), BRIEF, assistants=[small(8)], calibrate=True,
            out=folder / "job", context=Context(cache=folder / "answers"),
        )  # fmt: skip


def test_the_document_says_who_was_taught_by_whom_and_what_came_of_it(result: gossamer.Artifact) -> None:
    document = JobDocument.parse((result.folder / "records.json").read_text())
    assert document.dump() == result.document.dump()
    taught = document.teaching
    assert taught is not None and list(taught.networks) == ["original", "assistant 1", "result", "alone"]
    assert taught.networks["original"] == "Ensemble"
    assert [(c.name, len(c.score), len(c.seconds)) for c in taught.curves] == [
        ("assistant 1", 3, 3), ("result", 3, 3), ("alone", 3, 3)
    ]  # fmt: skip
    measured = {(r.what, r.subject) for r in document.records}
    assert {("ece", s) for s in taught.networks} | {("nll", s) for s in taught.networks} <= measured
    assert {("macs", "original"), ("macs", "result"), ("latency", "result"), ("teacher_time", "original")} <= measured
    assert [e.method for e in document.edits] == ["distill.kd", "distill.kd", "distill.temperature"]
    assert len(taught.agreement) == 4 and all(taught.agreement[i][i] == 100 for i in range(4))
    assert [row.samples for row in taught.classes] == [32, 32, 32]


def test_the_numbers_are_those_of_the_network_in_hand(result: gossamer.Artifact) -> None:
    logits, labels = calibration.logits_and_labels(result.model, stripes().test)
    value = {(r.what, r.subject, r.conditions.get("split")): r.value for r in result.records}
    assert value["nll", "result", "test"] == pytest.approx(calibration.negative_log_likelihood(logits, labels))
    assert value["score", "result", "test"] == pytest.approx(100 * float((logits.argmax(1) == labels).float().mean()))
    taught = result.document.teaching
    assert taught is not None
    for number, row in enumerate(taught.classes):
        right = (logits.argmax(1) == labels)[labels == number]
        assert row.top1["result"] == pytest.approx(100 * float(right.float().mean()))


def test_the_page_shows_all_of_it(result: gossamer.Artifact) -> None:
    page = (result.folder / "report.html").read_text()
    for title in ("Teacher and student", "How the student learned", "Class by class", "Who agrees with whom"):
        assert f"<h2>{title}</h2>" in page
    assert "Sure and right" in page and "Attention maps" in page and "data:image/png;base64," in page


def test_the_same_job_again_trains_nothing_and_another_one_is_refused(
    result: gossamer.Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gossamer.methods._training.fit", None)
    how: Any = {"assistants": [small(8)], "calibrate": True, "out": result.folder}
    again = distill([learned(), learned()], small(), stripes(), BRIEF, **how)
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), result.model.parameters()))
    assert again.document.teaching is not None and again.document.teaching.curves == result.document.teaching.curves  # type: ignore[union-attr]
    with pytest.raises(BadInput, match="another job"):
        distill(learned(), small(), stripes(), BRIEF, **how)


def test_a_killed_job_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Context().progress.__class__):  # type: ignore[misc]
        def say(self, message: str) -> None:
            if "epoch 2 of 3" in message:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(
            learned(), small(), stripes(), BRIEF, alone=False, out=tmp_path / "a", context=Context(progress=Killed())
        )
    epochs: list[str] = []

    class Noted(Context().progress.__class__):  # type: ignore[misc]
        def say(self, message: str) -> None:
            epochs.append(message)

    on = distill(
        learned(), small(), stripes(), BRIEF, alone=False, out=tmp_path / "a", context=Context(progress=Noted())
    )
    whole = distill(learned(), small(), stripes(), BRIEF, alone=False, out=tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(on.model.parameters(), whole.model.parameters()))
    assert not any("epoch 1 of 3" in message for message in epochs)


# Teachers


def test_an_onnx_file_and_its_recorded_answers_teach_like_the_network(tmp_path: Path) -> None:
    path = gossamer.export_onnx(learned(), stripes().example_inputs, tmp_path / "teacher.onnx")
    cache = tmp_path / "answers"
    known = distill(path, small(), stripes(), BRIEF, alone=False, out=tmp_path / "onnx", context=Context(cache=cache))
    assert known.document.teaching is not None and list(known.document.teaching.networks) == ["original", "result"]
    assert not [r for r in known.records if r.what == "macs" and r.subject == "original"]
    [folder] = cache.iterdir()
    recorded = distill(folder, small(), stripes(), BRIEF, alone=False, out=tmp_path / "recorded")
    assert all(torch.equal(a, b) for a, b in zip(known.model.parameters(), recorded.model.parameters()))
    assert recorded.document.teaching is not None and list(recorded.document.teaching.networks) == ["result"]
    assert "Student taught" in (tmp_path / "recorded" / "report.html").read_text()
    assert external_teacher(tmp_path / "onnx") is None
    found = external_teacher(cache)
    assert isinstance(found, RecordedTeacher) and found.cached_outputs.folder == folder
    shutil.copytree(folder, cache / "other")
    with pytest.raises(BadInput, match=f"2 teachers; name the folder of one, below it: {folder.name}, other"):
        external_teacher(cache)
    with pytest.raises(BadInput, match="no such file"):
        OnnxTeacher(tmp_path / "none.onnx")
    with pytest.raises(BadInput, match="a folder of recorded outputs"):
        distill(tmp_path / "onnx", small(), stripes())


def test_an_ensemble_of_which_one_only_answers_has_no_costs_and_one_that_remembers_no_accuracy(tmp_path: Path) -> None:
    path = gossamer.export_onnx(learned(), stripes().example_inputs, tmp_path / "teacher.onnx")
    brief, cache = replace(BRIEF, epochs=1), tmp_path / "answers"
    context = Context(cache=cache)
    made = distill([learned(), path], small(), stripes(), brief, alone=False, out=tmp_path / "a", context=context)
    assert {r.what for r in made.records if r.subject == "original"} == {"score", "teacher_time", "ece", "nll"}
    assert only_remembers(Ensemble([learned(), RecordedTeacher(next(cache.iterdir()))]))
    known = distill([learned(), cache], small(), stripes(), brief, alone=False, out=tmp_path / "b")
    assert not [r for r in known.records if r.subject == "original"]


INSIDE = (
    "attention",
    "bayesian",
    "crd",
    "cwd",
    "data_free",
    "fsp",
    "gradients",
    "hints",
    "neurons",
    "rkd",
    "specialists",
)


def test_methods_that_look_inside_refuse_a_teacher_that_only_answers(tmp_path: Path) -> None:
    only = OnnxTeacher(gossamer.export_onnx(tiny(), stripes().example_inputs, tmp_path / "teacher.onnx"))
    for name, teacher in product(INSIDE, (only, Ensemble([tiny(), only]))):
        with pytest.raises(BadInput, match=f"distill.{name}: needs the layers of the teacher"):
            catalogue()[f"distill.{name}"]()(small(), stripes(), Context(teacher=teacher))


def test_what_is_refused_leaves_no_work_in_the_way(tmp_path: Path) -> None:
    method = FitNets(epochs=1, hint_epochs=1, layers={"0": "head"})
    with pytest.raises(
        BadInput, match=r"'0' of the student and 'head' of the teacher cannot be matched: shapes .* and"
    ):
        distill(tiny(), small(), stripes(), method, out=tmp_path)
    assert not (tmp_path / "work").exists()
    soft = nn.Sequential(*small(), nn.Softmax(1))
    with pytest.raises(BadInput, match="one last linear layer"):
        distill(tiny(), soft, stripes(), BRIEF, calibrate=True, out=tmp_path)
    real = replace(stripes(), validation=[(x, y.float()) for x, y in stripes().validation], metric=closeness)
    with pytest.raises(BadInput, match="calibrate: is for classifiers"):
        distill(tiny(), small(), real, BRIEF, calibrate=True, out=tmp_path)
    assert not (tmp_path / "work").exists()


def closeness(model: Any, loader: Any) -> Tensor:
    return torch.cat([torch.exp(-model(x)[:, 0].pow(2)) for x, _ in loader]).detach()


def test_an_ensemble_gives_the_mean_of_equal_outputs() -> None:
    x = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    a, b = tiny(), learned()
    torch.testing.assert_close(Ensemble([a, b])(x), (a(x) + b(x)) / 2)
    with pytest.raises(BadInput, match="equal outputs"):
        Ensemble([a, nn.Flatten()])(x)
    with pytest.raises(BadInput, match="at least one"):
        Ensemble([])


def test_networks_that_do_not_fit_are_refused() -> None:
    wrong = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    with pytest.raises(BadInput, match=r"teacher gives outputs of shape \(4, 3\), Sequential gives \(4, 4\)"):
        distill(tiny(), wrong, stripes(), BRIEF)
    with pytest.raises(BadInput, match="the student does not accept"):
        distill(tiny(), nn.Linear(2, 3), stripes(), BRIEF)
    with pytest.raises(BadInput, match="unknown method"):
        distill(tiny(), small(), stripes(), "distill.kdd")
    with pytest.raises(BadInput, match="'auto' needs one"):
        distill(tiny(), "auto", stripes())


def test_a_teacher_is_compiled_only_where_that_pays() -> None:
    x = (torch.zeros(4, 1, 6, 6),)
    found = compiled_teacher.teacher_times(tiny(), x, 10, torch.device("cpu"))
    assert list(found) == ["plain"] and compiled_teacher.faster_form(found) == "plain"
    assert compiled_teacher.faster_form({"plain": 10.0, "compiled": 8.0}) == "compiled"
    assert compiled_teacher.faster_form({"plain": 10.0, "compiled": 9.5}) == "plain"


# Students


def test_a_student_out_of_a_file_keeps_its_zeros_and_shared_values(tmp_path: Path) -> None:
    model = learned()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 4:
                p.masked_fill_(p.abs() < p.abs().median(), 0.0)
        head = dict(model.named_parameters())["head.weight"]
        head.copy_(head.sign().roll(1, 0) / 4)  # of other classes, so that there is something to learn
    gossamer.save(model, tmp_path / "s.gsr", stripes().example_inputs)
    student = trainable(gossamer.load(tmp_path / "s.gsr"))
    kinds = {name: type(stack[0]) for name, stack in constraints(student).items()}
    assert set(kinds.values()) == {Mask, Codebook}
    made = distill(learned(), gossamer.load(tmp_path / "s.gsr"), stripes(), BRIEF, alone=False, out=tmp_path / "job")
    after = dict(made.model.named_parameters())
    zeros = {name: effective_weight(student, name) == 0 for name, kind in kinds.items() if kind is Mask}
    assert zeros and all(torch.equal(after[name] == 0, mask) for name, mask in zeros.items())
    [few] = [name for name, kind in kinds.items() if kind is Codebook]
    assert len(set(after[few].flatten().tolist())) <= 2
    assert any(not torch.equal(after[name], effective_weight(student, name)) for name in zeros)


def test_a_network_that_trains_is_taken_as_it_is() -> None:
    model = small()
    assert trainable(model) is model and model.training
    assert as_found(torch.randn(8, 8)) is None and as_found(torch.zeros(3)) is None
    assert not isinstance(trainable(tiny()), TrainableExport)


def test_a_student_is_cut_out_of_its_teacher_for_a_goal(tmp_path: Path) -> None:
    made = distill(learned(), "auto", stripes(), BRIEF, goal=Goal(macs=60_000, max_drop=20), out=tmp_path)
    assert made.met and made.document.goal["macs"] == 60_000
    value = {(r.what, r.subject): r.value for r in made.records}
    assert value["macs", "result"] <= 60_000 < value["macs", "original"]
    assert made.document.edits[0].method.startswith(("restructure.", "prune.", "lowrank."))
    assert made.document.edits[-1].method == "distill.kd"
    assert "<h2>The goal</h2>" in (tmp_path / "report.html").read_text()


def test_a_goal_of_bytes_is_one_of_weights_and_impossible_goals_are_said(tmp_path: Path) -> None:
    params = sum(p.numel() for p in learned().parameters())
    store = CheckpointStore(tmp_path / "work", "a")
    cut = searched(learned(), stripes(), Goal(file_bytes=2 * params), Context(), store, tmp_path / "work")
    assert sum(p.numel() for p in cut.parameters()) <= params / 2
    with pytest.raises(BadInput, match="itself meets the goal"):
        searched(
            learned(), stripes(), Goal(params=10**6), Context(), CheckpointStore(tmp_path / "b", "a"), tmp_path / "b"
        )


def test_a_held_student_is_taught_under_its_constraints(tmp_path: Path) -> None:
    student = small()
    mask = torch.zeros(6, 6, 3, 3, dtype=torch.bool)
    mask[:, :2] = True
    held = constrain(student, {"2.weight": Mask(mask)})
    made = distill(tiny(), held, stripes(), BRIEF, alone=False, out=tmp_path)
    weight = dict(made.model.named_parameters())["2.weight"]
    assert not weight[~mask].any() and weight[mask].all() and not constraints(made.model)


def test_a_hashed_student_is_stored_as_its_numbers(tmp_path: Path) -> None:
    """Also where the temperature divides the last layer's; outputs that a fixed grid holds are divided off it."""
    student = HashedNet(share=0.1)(learned(), stripes(), Context()).model
    job = {"alone": False, "calibrate": True, "out": tmp_path / "job"}
    made = distill(tiny(), student, stripes(), BRIEF, **job)  # type: ignore[arg-type]
    stored = gossamer.inspect_file(tmp_path / "job" / "model.gsr").tensors
    coded = {row.name: row.coding for row in stored}
    assert {coded[name] for name in constraints(student)} == {"hashed"}
    values = {name: len(set(w.flatten().tolist())) for name, w in made.model.named_parameters() if w.dim() > 1}
    assert all(count <= 2 * round(0.1 * made.model.get_parameter(name).numel()) for name, count in values.items())
    x = stripes().test[0][0]  # type: ignore[index]
    loaded = gossamer.load(tmp_path / "job" / "model.gsr")
    torch.testing.assert_close(loaded(x), made.model(x), rtol=1e-4, atol=1e-4)


def test_a_held_last_layer_is_divided_as_it_is_held_where_that_can_be() -> None:
    x, grid, mask = stripes().example_inputs[0], Grid(0.05, -7, 7), torch.ones(3, 8, dtype=torch.bool)
    mask[:, 0] = False
    for rule, kept in ((Mask(mask), True), (grid, False)):
        held = constrain(learned(), {"head.weight": rule, "stem.weight": Grid(0.1, -7, 7)})
        found, layer = divided(held, 1.7, (x,))
        assert layer == "head" and set(constraints(found)) == {"stem.weight", *(["head.weight"] if kept else [])}
        torch.testing.assert_close(1.7 * found(x), held(x))
        torch.testing.assert_close(1.7 * effective_weight(found, "head.weight"), effective_weight(held, "head.weight"))


# Other outputs


class TwoHeads(nn.Module):
    """Boxes and scores, as a detector gives them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(36, width), nn.ReLU())
        self.boxes, self.scores = nn.Linear(width, 8), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.body(x)
        return {"boxes": self.boxes(y).view(-1, 2, 4), "scores": self.scores(y)}


class Words(nn.Module):
    """Logits for each position of a sequence, classes in dimension 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(7, width), nn.Conv1d(width, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.embed(x).mT)  # type: ignore[no-any-return]


def seeded(build: Any, *args: Any) -> nn.Module:
    torch.manual_seed(8)
    return build(*args)  # type: ignore[no-any-return]


def flat(outputs: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, width), nn.ReLU(), nn.Linear(width, outputs))


def images(seed: int) -> Tensor:
    return torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


def words(seed: int) -> Tensor:
    return torch.randint(7, (16, 9), generator=torch.Generator().manual_seed(seed))


def distance(a: Any, b: Any) -> float:
    pairs = zip(torch.utils._pytree.tree_leaves(a), torch.utils._pytree.tree_leaves(b))
    return sum(float((x - y).pow(2).mean() / y.var()) for x, y in pairs)


@pytest.mark.parametrize(
    ("build", "inputs", "target"),
    [
        pytest.param(lambda w: flat(2, w), images, lambda y: y, id="regression"),
        pytest.param(lambda w: flat(4, w), images, lambda y: (y > 0).float(), id="labels that go together"),
        pytest.param(Words, words, lambda y: y.argmax(1), id="sequences"),
        pytest.param(TwoHeads, images, lambda y: y["boxes"], id="boxes"),
    ],
)
def test_what_is_no_class_of_an_image_is_taught_too(build: Any, inputs: Any, target: Any, tmp_path: Path) -> None:
    """From the teacher's outputs alone, with labels that count for nothing: the epoch that validation chose is, on
    inputs never seen, at most half as far from them as the student was."""
    teacher, student = seeded(build, 24).eval(), build(12).eval()
    with torch.no_grad():
        batches = [(inputs(i), target(teacher(inputs(i)))) for i in range(12)]

    def loss(model: Any, batch: Any) -> Tensor:
        return F.mse_loss(torch.utils._pytree.tree_leaves(model(batch[0]))[0].float().mean(), batch[1].float().mean())

    @torch.no_grad()
    def score(model: Any, loader: Any) -> Tensor:
        return torch.cat([torch.full((len(x),), 1 / (1 + distance(model(x), teacher(x)))) for x, _ in loader])

    data = replace(
        task(), train=batches, validation=batches[:2], test=batches[2:4], calibration=[x for x, _ in batches],
        example_inputs=(batches[0][0],), loss=loss, metric=score,
    )  # fmt: skip
    method = KD(epochs=20, lr=0.01, alpha=0.0, temperature=1.0)
    taught = method(student, data, Context(teacher=teacher, cache=tmp_path)).model.eval()
    fresh = inputs(99)
    with torch.no_grad():
        assert distance(taught(fresh), teacher(fresh)) < 0.5 * distance(student(fresh), teacher(fresh))


def test_a_regression_goes_through_the_whole_job_without_sections_on_classes(tmp_path: Path) -> None:
    teacher, student = seeded(flat, 2, 16).eval(), seeded(flat, 2, 4)
    with torch.no_grad():
        batches = [(images(i), teacher(images(i))) for i in range(4)]

    def loss(model: Any, batch: Any) -> Tensor:
        return F.mse_loss(model(batch[0]), batch[1])

    def score(model: Any, loader: Any) -> Tensor:
        return torch.cat([torch.exp(-(model(x) - y).pow(2).mean(1)) for x, y in loader])

    data = replace(
        task(), train=batches, validation=batches, test=batches, calibration=[x for x, _ in batches],
        example_inputs=(batches[0][0],), loss=loss, metric=PerSample(function=score, name="closeness"),
    )  # fmt: skip
    made = distill(teacher, student, data, KD(epochs=1, lr=0.01), out=tmp_path)
    assert made.document.teaching is not None and not made.document.teaching.reliability
    page = (tmp_path / "report.html").read_text()
    assert "How the student learned" in page and "Sure and right" not in page


class Detector(nn.Module):
    """Boxes and classes, in a dict."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.boxes, self.labels = nn.Linear(width, 4), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x)
        return {"boxes": self.boxes(features), "labels": self.labels(features)}


def test_a_network_that_gives_a_dict_goes_through_the_whole_job(tmp_path: Path) -> None:
    def loss(model: Any, batch: Any) -> Tensor:
        found = model(*batch[0])
        return F.cross_entropy(found["labels"], batch[1]["labels"]) + F.l1_loss(found["boxes"], batch[1]["boxes"])

    def metric(model: Any, loader: Any) -> Tensor:
        return torch.cat([(model(*x)["labels"].argmax(1) == y["labels"]).float() for x, y in loader])

    batches = [((x,), {"labels": y, "boxes": torch.rand(len(x), 4)}) for x, y in task().train]
    data = replace(
        task(), train=batches, validation=batches, test=batches, calibration=[x for (x,), _ in batches],
        example_inputs=batches[0][0], loss=loss, metric=metric,
    )  # fmt: skip
    torch.manual_seed(0)
    made = distill(Detector(16), Detector(4), data, KD(epochs=1, lr=0.01), out=tmp_path)
    assert list(made.model(*data.example_inputs)) == ["boxes", "labels"]
    assert made.document.teaching is not None


# Parts


def test_training_without_a_teacher_is_as_long_and_under_the_same_options() -> None:
    options: dict[str, Any] = {"lr": 0.3, "weight_decay": 2e-4, "clip": 1.5, "mixup": 0.4, "cutmix": 0.6}
    for method, epochs in ((KD(epochs=7, **options), 7), (FitNets(epochs=7, hint_epochs=2, **options), 9)):
        assert without_teacher(method, stripes()) == KD(epochs=epochs, alpha=1.0, **options)
    assert without_teacher(Net2Wider(factor=2.0), stripes()) is None


def test_pictures_are_pngs_of_the_values() -> None:
    x = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(diagnostics.picture(x)))))
    assert shown[..., 0].tolist() == [[0, 64], [128, 255]] and shown.shape == (2, 2, 3)
    shades = np.asarray(Image.open(io.BytesIO(base64.b64decode(diagnostics.picture(x[0])))))
    low, high = list(diagnostics.SHADES[0]), list(diagnostics.SHADES[-1])
    assert shades[0, 0].tolist() == low and shades[1, 1].tolist() == high


def test_temperature_scaling_divides_the_outputs_and_nothing_else() -> None:
    model, data, context = learned(), stripes(), Context()
    x = data.test[0][0]  # type: ignore[index]
    found = TemperatureScaling().apply(model, data, context)
    logits, labels = calibration.logits_and_labels(model, data.validation)
    best = calibration.best_temperature(logits, labels)
    torch.testing.assert_close(found(x) * best, model(x), rtol=1e-4, atol=1e-4)
    assert [edit.target for edit in context.log.edits] == ["head"]
    same = [n for n, p in found.named_parameters() if torch.equal(p, dict(model.named_parameters())[n])]
    assert len(same) == len(list(model.parameters())) - 2
    with pytest.raises(BadInput, match="one last linear layer"):
        divided(nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.Softmax(1)), 2.0, (x,))


def test_records_are_plain_json(result: gossamer.Artifact) -> None:
    assert json.loads(result.document.dump())["teaching"]["method"] == "distill.kd"
