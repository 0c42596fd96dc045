"""No part of a job is silent: whatever reads data does so under a bar or a label."""

from dataclasses import replace
from pathlib import Path

import pytest
from watched import Asking, Watched

import gossamer
from gossamer.core.context import Context
from gossamer.jobs.stages import Stages


def test_a_stage_is_under_way_until_the_next_one_and_the_last_until_the_end() -> None:
    progress = Watched()
    with Stages(progress, ("one", "two")) as stages:
        assert progress.labels == []
        stages.enter("one")
        assert progress.labels == ["stage 1 of 2: one"]
        stages.enter("two")
        stages.enter("one")  # a step back
        assert progress.labels == ["stage 2 of 2: two"]
    assert progress.labels == []


@pytest.mark.slow
def test_a_planned_job_reads_its_data_under_a_label(tmp_path: Path) -> None:
    task, progress, silent = gossamer.data.tiny_task(), Watched(), list[int]()
    splits = ("train", "validation", "test", "calibration")
    watched = {name: Asking(getattr(task, name), progress, silent) for name in splits}
    goal = gossamer.Goal(max_drop=100, macs=3000)
    context = Context(progress=progress)
    gossamer.compress(
        gossamer.data.tiny_network(),
        replace(task, **watched),
        goal=goal,
        epochs=1,
        lr=0.01,
        out=tmp_path,
        context=context,
    )
    assert silent == []
