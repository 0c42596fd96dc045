"""Lengths of trainings out of the time of a job, and where a job stands."""

from dataclasses import replace
from typing import Any

import pytest
from nets import learned, stripes, task, tiny

from gossamer import Context, Goal
from gossamer.core.progress import LabelledProgress, Silent
from gossamer.jobs.schedule import DEPLOY, ENOUGH, FEWEST, FINISH, JobSchedule
from gossamer.jobs.stages import Stages
from gossamer.methods.distill.recover import RecoveryDistillation
from gossamer.modules.cost import total_macs
from gossamer.search.checkpoint_store import CheckpointStore

WHOLE = total_macs(tiny(), task().example_inputs)


def schedule(spent: float, *, minutes: float | None = 5.0, recover: RecoveryDistillation | None = None) -> JobSchedule:
    """Of a job in which a step of the original takes 0.1 s."""
    store = CheckpointStore(None, "")
    store.results["seconds per step"] = 0.1
    return JobSchedule(
        original=tiny(),
        task=task(),
        goal=Goal(speedup=3, time_budget=minutes),
        context=Context(),
        store=store,
        seconds={"plan": spent},
        recover=recover or RecoveryDistillation(),
    )


def steps(spent: float, macs: int = WHOLE) -> int | None:
    recovery = schedule(spent).recovery("attempt 1", macs)
    return None if recovery is None else recovery.steps


def test_a_training_leaves_time_for_a_second_one_where_that_has_steps_enough() -> None:
    usable = 300 * (1 - FINISH - DEPLOY)
    assert steps(usable - 150) == 1000  # and 500 for a second one
    assert steps(usable - 119) == 1190  # a third would be less than 400
    assert steps(usable - 0.11 * FEWEST) == 110
    assert steps(usable - 0.09 * FEWEST) is None  # not worth an attempt


def test_a_training_is_not_longer_than_is_of_use_and_small_networks_get_more_steps() -> None:
    usable = 300 * (1 - FINISH - DEPLOY)
    assert steps(usable - 100, WHOLE // 2) == pytest.approx(1067, abs=1)  # (1 + 3 / 2) / 4 of the time for each
    assert steps(0, 0) == ENOUGH


def test_a_teacher_that_is_not_run_leaves_time_for_more_steps_as_long_as_these_are_no_long_training() -> None:
    usable = 300 * (1 - FINISH - DEPLOY)
    one = replace(schedule(usable - 30), remembered=True)
    one = replace(one, task=replace(one.task, train=list(one.task.train) * (400 // len(one.task.train))))
    recovery = one.recovery("attempt 1", WHOLE)
    assert recovery is not None and recovery.steps == 400  # 30 s / (0.1 s * 3 / 4), where 300 are with a teacher
    long = replace(one, task=replace(one.task, train=one.task.train[:40]))
    recovery = long.recovery("attempt 2", WHOLE)
    assert recovery is not None and recovery.steps == 8 * 40 - 1


def test_time_for_another_attempt_is_what_its_training_takes() -> None:
    usable = 300 * (1 - FINISH - DEPLOY)
    assert schedule(usable - 0.11 * FEWEST).time_for("a plan", WHOLE)
    assert not schedule(usable - 0.09 * FEWEST).time_for("a plan", WHOLE)


def test_where_epochs_are_given_or_no_time_the_recovery_is_as_it_was_asked_for() -> None:
    given = RecoveryDistillation(epochs=3)
    assert schedule(0, recover=given).recovery("attempt 1", WHOLE) is given
    assert schedule(0, minutes=None).recovery("attempt 1", WHOLE) == RecoveryDistillation()
    assert schedule(0, minutes=None).first_steps() is None


def test_a_job_that_goes_on_trains_as_long_as_it_would_have() -> None:
    one = schedule(100)
    before = one.recovery("attempt 1", WHOLE)
    one.seconds["more"] = 50.0
    assert one.recovery("attempt 1", WHOLE) == before != one.recovery("attempt 2", WHOLE)


def test_the_seconds_of_a_step_are_measured_once_and_the_original_stays_as_it_is() -> None:
    model = learned()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    one = schedule(0)
    one = JobSchedule(**{**vars(one), "original": model, "task": stripes(), "store": CheckpointStore(None, "")})
    assert one.seconds_per_step(WHOLE) == one.seconds_per_step(WHOLE) > 0
    assert all(bool((x == before[name]).all()) for name, x in model.state_dict().items())


def test_the_estimate_says_what_will_be_tried_and_how_long_it_takes() -> None:
    line = schedule(0).estimate(6, 2.0)
    assert line.startswith("estimate: within 5 min 00 s: some 20 shapes are estimated (40.0 s)")
    assert "up to 6 trainings of about 1,200 steps (2 min 00 s each)" in line
    assert "estimate: about" in schedule(0, minutes=None).estimate(6, 2.0)


class Said(Silent):
    def __init__(self) -> None:
        self.lines = list[str]()

    def say(self, message: str) -> None:
        self.lines.append(message)


def test_a_stage_is_named_once_with_its_number_and_the_time_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    now: Any = iter([100.0, 103.0, 110.0])
    monkeypatch.setattr("gossamer.jobs.stages.clock", lambda: next(now))
    said = Said()
    stages = Stages(said, ("one", "two", "three"), earlier=60.0, began=100.0)
    stages.enter("one")
    stages.enter("three")
    stages.enter("two")  # a step back
    assert said.lines == ["stage 1 of 3: one (1 min 00 s so far)", "stage 3 of 3: three (1 min 03 s so far)"]


def test_a_label_stands_before_all_that_a_part_says() -> None:
    said = Said()
    part = LabelledProgress(said, "tournament, depth")
    part.say("epoch 1")
    assert said.lines == ["tournament, depth: epoch 1"] and list(part.bar([1, 2], label="x")) == [1, 2]
