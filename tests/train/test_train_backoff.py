"""A training that explodes goes back, more slowly, and says so."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train_toy import Ending, Notes, Stop, linear, net, on_cpu, same, task, training

from gossamer.core.batches import cross_entropy
from gossamer.core.metrics import Top1
from gossamer.errors import BadInput, Diverged
from gossamer.train import fit
from gossamer.train.backoff import Exploded, check_loss, check_score
from gossamer.train.state import Numbers


class Spoilt:
    """A loss that gives `value` in the given training steps, counted from 0 over everything that is tried."""

    def __init__(self, steps: set[int], value: float) -> None:
        self.steps, self.value, self.step = steps, value, -1

    def __call__(self, model: Any, batch: Any) -> torch.Tensor:
        self.step += 1
        loss = cross_entropy(model, batch)
        return loss * self.value if self.step in self.steps else loss


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_it_goes_back_to_the_last_good_epoch_with_a_lower_learning_rate(value: float) -> None:
    notes = Notes()
    fitted = fit(net(), task(loss=Spoilt({10}, value)), training(schedule="constant"), on_cpu(progress=notes))
    assert fitted.backed_off == 1
    assert [row.lr for row in fitted.history] == pytest.approx([0.05, 0.015, 0.015])
    assert "back to the last good state, learning rate times 0.3" in notes.said[1]
    assert all(torch.isfinite(p).all() for p in fitted.model.parameters())
    # The first epoch is that of an undisturbed training; the second starts from its end.
    calm = fit(net(), task(), training(schedule="constant"), on_cpu())
    assert fitted.history[0].loss == calm.history[0].loss
    assert fitted.history[1].loss != calm.history[1].loss


def test_the_third_time_it_gives_up_and_leaves_the_last_good_weights(tmp_path: Path) -> None:
    toy = task(loss=Spoilt({10, 18, 26}, float("nan")))  # in the second epoch, each time that it is tried
    with pytest.raises(Diverged, match="2 times lowering the learning rate did not help") as caught:
        fit(net(), toy, training(), on_cpu(folder=tmp_path), label="recover: step 2")
    path = tmp_path / "recover--step-2-last-good.safetensors"
    assert str(path) in str(caught.value)
    good = net()
    good.load_state_dict(load_file(path))
    after_one = net()
    with pytest.raises(Stop):
        fit(after_one, replace(task(), train=Ending(task().train, epoch=1, at=0)), training(), on_cpu())
    assert same(good, after_one)


def test_a_state_that_explodes_in_its_first_step_was_no_good() -> None:
    """What the last steps of an epoch spoilt shows in the first of the next: the epoch before is done again, too."""
    fitted = fit(net(), task(loss=Spoilt({16}, 1e6)), training(schedule="constant"), on_cpu())
    assert fitted.backed_off == 1
    assert [row.lr for row in fitted.history] == pytest.approx([0.05, 0.015, 0.015])
    calm = fit(net(), task(), training(schedule="constant"), on_cpu())
    assert fitted.history[0].loss == calm.history[0].loss != fitted.history[1].loss


def test_data_that_are_no_numbers_are_named_before_the_learning_rate_is_blamed() -> None:
    train = list(task().train)
    train[5] = (train[5][0].clone().fill_(float("nan")), train[5][1])
    with pytest.raises(BadInput, match=r"task 'quadrants': the train loader: batch 5 holds NaN"):
        fit(net(), task(train=train), training(), on_cpu())


def test_without_a_folder_the_last_good_weights_are_in_a_temporary_one() -> None:
    with pytest.raises(Diverged, match="The last good weights are in") as caught:
        fit(net(), task(loss=Spoilt(set(range(1000)), float("nan"))), training(), on_cpu())
    path = Path(str(caught.value).split("weights are in ")[1].split(";")[0])
    assert path.exists()
    path.unlink()
    path.parent.rmdir()


def test_weights_spoilt_by_the_last_step_are_noticed() -> None:
    step, spoilt = 0, net()
    head = list(spoilt.parameters())[-2]

    def spoil(model: Any, batch: Any) -> torch.Tensor:
        """Gradients of the last step of the first epoch, the first time, are not finite; the losses all are."""
        nonlocal step
        step += 1
        loss = cross_entropy(model, batch)
        return loss + (head.sum() * 0).sqrt() if step == 8 else loss

    fitted = fit(spoilt, task(loss=spoil), training(), on_cpu())
    assert fitted.backed_off == 1
    assert all(torch.isfinite(p).all() for p in fitted.model.parameters())


def test_the_first_loss_is_the_measure_for_later_ones() -> None:
    numbers = Numbers()
    check_loss(2.0, numbers)
    check_loss(19.9, numbers)
    with pytest.raises(Exploded, match="became nan"):
        check_loss(float("nan"), numbers)
    with pytest.raises(Exploded, match=r"rose to 20\.1, from 2 at the start"):
        check_loss(20.1, numbers)
    small = Numbers()
    check_loss(0.01, small)
    check_loss(9.9, small)
    with pytest.raises(Exploded):
        check_loss(10.1, small)


def test_what_moved_masks_do_to_the_loss_is_no_explosion() -> None:
    numbers = Numbers(best_score=0.9, best_epoch=1)
    check_loss(0.001, numbers, moved=True)
    check_loss(99.0, numbers, moved=True)
    check_score(0.1, numbers, Top1(), moved=True)
    with pytest.raises(Exploded, match="rose to 101"):
        check_loss(101.0, numbers, moved=True)
    with pytest.raises(Exploded, match="became nan"):
        check_score(float("nan"), numbers, Top1(), moved=True)


def test_worse_than_the_start_is_tried_more_slowly_and_then_let_be() -> None:
    numbers = Numbers(best_score=0.9)
    with pytest.raises(Exploded):
        check_score(0.1, numbers, Top1())
    numbers.backed_off = 2
    check_score(0.1, numbers, Top1())


def test_a_collapse_on_validation_data_is_noticed() -> None:
    numbers = Numbers(best_score=0.9)
    check_score(0.31, numbers, Top1())
    check_score(None, numbers, Top1())
    with pytest.raises(Exploded, match=r"fell from 0\.9 to 0\.29"):
        check_score(0.29, numbers, Top1())
    with pytest.raises(Exploded, match="became nan"):
        check_score(float("nan"), numbers, Top1())


def test_a_module_of_another_kind_of_number_is_fine() -> None:
    model = linear()
    model.register_buffer("codes", torch.zeros(3, dtype=torch.int8))
    assert fit(model, task(), training(epochs=1), on_cpu()).backed_off == 0
