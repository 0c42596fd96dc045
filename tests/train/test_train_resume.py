"""Killed and started again, it ends with the same weights."""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from places import TESTS
from train_toy import Ending, Notes, Stop, checkpoint_every_step, net, on_cpu, same, task, training

from gossamer.data.batches import Batches, Normalisation
from gossamer.errors import BadInput, CorruptFile
from gossamer.methods.distill._student import regression, relative_hint_loss
from gossamer.methods.distill.dkd import DKD
from gossamer.methods.distill.self import MeanTeacherTerm
from gossamer.runtime.threads import torch_threads
from gossamer.train import Distillation, LossTerm, Training, fit
from gossamer.train.distillation import described_term
from gossamer.train.feature_hooks import LayerLoss, hooked, projection
from gossamer.train.hyperparameters import OptimizerName

PLAN = training(ema=0.9, clip=1.0)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("epoch", "at"), [(0, 3), (1, 0), (2, 7)])
def test_cut_off_anywhere_it_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: OptimizerName, epoch: int, at: int
) -> None:
    checkpoint_every_step(monkeypatch)
    plan, toy = replace(PLAN, optimizer=optimizer, lr=0.01), task()
    loss_terms = [Distillation(net(5))]
    whole = fit(net(dropout=0.5), toy, plan, on_cpu(), loss_terms=loss_terms)
    cut = replace(toy, train=Ending(toy.train, epoch=epoch, at=at))
    path = tmp_path / "checkpoint"
    with pytest.raises(Stop):
        fit(net(dropout=0.5), cut, plan, on_cpu(), loss_terms=loss_terms, checkpoint=path)
    stepped: list[int] = []
    model = net(dropout=0.5)
    model[0].register_forward_hook(lambda module, *_: stepped.append(1) if module.training else None)
    resumed = fit(model, toy, plan, on_cpu(), loss_terms=loss_terms, checkpoint=path)
    assert same(resumed.model, whole.model)
    assert len(stepped) == 3 * 8 - (8 * epoch + at)
    assert [replace(row, seconds=0) for row in resumed.history] == [replace(row, seconds=0) for row in whole.history]
    assert (resumed.best_epoch, resumed.score) == (whole.best_epoch, whole.score)


def test_a_shuffled_data_loader_and_gossamers_own_batches_go_on_where_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint_every_step(monkeypatch)
    x, y = (torch.cat(part) for part in zip(*task().train))
    dataset = torch.utils.data.TensorDataset(x, y)
    loaders = {
        "torch": torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True),
        "own": Batches(x, y, batch_size=16, shuffle=True, normalisation=Normalisation(mean=(0.0, 0.0), std=(1.0, 1.0))),
    }
    for name, loader in loaders.items():
        whole = fit(net(), task(train=loader), training(), on_cpu())
        steps = 0

        def stop(*_: object) -> None:
            nonlocal steps
            steps += 1
            if steps == 13:
                raise Stop

        model = net()
        hook = model[0].register_forward_hook(lambda module, *_: stop() if module.training else None)
        with pytest.raises(Stop):
            fit(model, task(train=loader), training(), on_cpu(), checkpoint=tmp_path / name)
        hook.remove()
        assert same(fit(net(), task(train=loader), training(), on_cpu(), checkpoint=tmp_path / name).model, whole.model)


def test_an_interrupt_passes_through_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    toy, path = task(), tmp_path / "checkpoint"
    cut = replace(toy, train=Ending(toy.train, epoch=1, at=4, error=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fit(net(), cut, training(), on_cpu(), checkpoint=path)
    assert same(
        fit(net(), toy, training(), on_cpu(), checkpoint=path).model,
        fit(net(), toy, training(), on_cpu()).model,
    )


def test_a_finished_training_gives_its_result_at_once(tmp_path: Path) -> None:
    notes = Notes()
    first = fit(net(), task(), training(), on_cpu(), checkpoint=tmp_path / "checkpoint")
    again = fit(net(), task(), training(), on_cpu(progress=notes), checkpoint=tmp_path / "checkpoint")
    assert same(first.model, again.model) and again.history == first.history and notes.said == []


@pytest.mark.parametrize(
    ("plan", "model", "seed", "named"),
    [
        (training(lr=0.06), net(), 0, "lr was 0.05, now 0.06"),
        (training(), net(1), 0, "starting weights"),
        (training(), net(), 1, "seed was 0, now 1"),
    ],
)
def test_the_checkpoint_of_another_training_is_refused(
    tmp_path: Path, plan: Training, model: torch.nn.Module, seed: int, named: str
) -> None:
    path = tmp_path / "checkpoint"
    fit(net(), task(), training(), on_cpu(), checkpoint=path)
    with pytest.raises(BadInput, match=named):
        fit(model, task(), plan, on_cpu(seed=seed), checkpoint=path)


@pytest.mark.parametrize(
    "loss_terms",
    [
        [],
        [Distillation(net(6))],
        [Distillation(net(5), temperature=5.0)],
        [Distillation(net(5), alpha_end=0.5)],
        [Distillation(net(5), loss=regression)],
        [Distillation(net(5)), MeanTeacherTerm(net(5), 0.5, 4.0, 0.9)],
    ],
    ids=["no teacher", "another teacher", "temperature", "schedule", "loss", "one term more"],
)
def test_a_checkpoint_does_not_go_on_under_another_teacher(tmp_path: Path, loss_terms: list[LossTerm]) -> None:
    path = tmp_path / "checkpoint"
    first = fit(net(), task(), training(epochs=1), on_cpu(), loss_terms=[Distillation(net(5))], checkpoint=path)
    again = fit(net(), task(), training(epochs=1), on_cpu(), loss_terms=[Distillation(net(5))], checkpoint=path)
    assert same(first.model, again.model)
    with pytest.raises(BadInput, match="another training: loss_terms was"):
        fit(net(), task(), training(epochs=1), on_cpu(), loss_terms=loss_terms, checkpoint=path)


def test_a_term_is_told_from_others_by_its_numbers_layers_and_loss() -> None:
    terms: list[LossTerm] = [MeanTeacherTerm(net(5), 0.5, 4.0, 0.9), MeanTeacherTerm(net(5), 0.5, 4.0, 0.99)]
    terms.append(Distillation(net(5), loss=DKD().loss))
    terms.append(Distillation(net(5), loss=DKD(others_weight=2.0).loss))
    for layer, weight in (("0", 1.0), ("2", 1.0), ("0", 2.0)):
        inputs, term = task().example_inputs, Distillation(net(5))
        layers = LayerLoss(relative_hint_loss, projection, weight)
        with hooked(net(), term, [(layer, layer)], layers, inputs=inputs) as feature_term:
            terms.append(feature_term)
    assert len({described_term(term) for term in terms}) == len(terms)


@pytest.mark.parametrize("keep", [0, 10, 500, -30])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "checkpoint"
    fit(net(), task(), training(epochs=1), on_cpu(), checkpoint=path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptFile, match="checkpoint: not a readable checkpoint"):
        fit(net(), task(), training(epochs=1), on_cpu(), checkpoint=path)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    torch.save({"identity": {}, "state": os.getcwd}, path)
    with pytest.raises(CorruptFile):
        fit(net(), task(), training(epochs=1), on_cpu(), checkpoint=path)


JOB = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from train_toy import net, on_cpu, task, training
from gossamer.train import fit, loop
import safetensors.torch, torch
loop.CHECK_STEPS, loop.CHECKPOINT_SECONDS = 1, 0.0
torch.set_num_threads(1)
model = net(dropout=0.5)
calls = 0
def counted(*_):
    global calls
    calls += 1
    print("step", flush=True)
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
handle = model[0].register_forward_hook(counted)
fit(model, task(), training(epochs=2, ema=0.9), on_cpu(), checkpoint=Path(sys.argv[1]))
safetensors.torch.save_file(model.state_dict(), sys.argv[1] + ".weights")
"""


@pytest.mark.slow
def test_killed_in_the_middle_of_an_epoch_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    script, path = tmp_path / "job.py", tmp_path / "checkpoint"
    script.write_text(textwrap.dedent(JOB.format(tests=str(TESTS))))
    command = [sys.executable, str(script), str(path)]
    killed = subprocess.run([*command, "10"], capture_output=True, text=True)  # the start is evaluated, then 6 steps
    assert killed.returncode == -signal.SIGKILL and killed.stdout.count("step") == 10
    assert path.exists() and not Path(f"{path}.weights").exists()
    resumed = subprocess.run([*command, "0"], capture_output=True, text=True, check=True)
    steps_and_evaluations = resumed.stdout.count("step")
    assert steps_and_evaluations == 2 * (8 + 4) - 5
    from safetensors.torch import load_file

    with torch_threads(1):  # as in the job: another number of threads adds up in another order
        expected = fit(net(dropout=0.5), task(), training(epochs=2, ema=0.9), on_cpu()).model.state_dict()
    got = load_file(f"{path}.weights")
    assert got.keys() == expected.keys() and all(torch.equal(got[key], expected[key]) for key in got)
