"""How many cores this process may use: affinity, quotas of containers, and what follows from it."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gossamer import Goal, open_runner
from gossamer.cli import app
from gossamer.core import processors


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Control groups of this test's own, on a machine of eight cores."""
    monkeypatch.setattr(processors, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(processors, "_groups", lambda: {"": "/box/inner", "cpu": "/box"})
    (tmp_path / "box/inner").mkdir(parents=True)
    (tmp_path / "cpu/box").mkdir(parents=True)
    return tmp_path


def test_without_limits_it_is_the_affinity(group: Path) -> None:
    assert processors.available() == 8
    (group / "box/inner/cpu.max").write_text("max 100000\n")
    assert processors.available() == 8


@pytest.mark.parametrize(("text", "found"), [("300000 100000", 3), ("250000 100000", 2), ("50000 100000", 1)])
def test_a_quota_counts_in_whole_cores_and_is_at_least_one(group: Path, text: str, found: int) -> None:
    (group / "box/inner/cpu.max").write_text(text)
    assert processors.available() == found


def test_the_tightest_limit_of_all_groups_above_counts(group: Path) -> None:
    (group / "box/inner/cpu.max").write_text("600000 100000")
    (group / "box/cpu.max").write_text("400000 100000")
    assert processors.available() == 4


def test_a_quota_of_version_1(group: Path) -> None:
    (group / "cpu/box/cpu.cfs_quota_us").write_text("500000\n")
    (group / "cpu/box/cpu.cfs_period_us").write_text("100000\n")
    assert processors.available() == 5
    (group / "cpu/box/cpu.cfs_quota_us").write_text("-1\n")
    assert processors.available() == 8


def test_threads_follow_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert Goal(macs=1).threads == 1 and Goal(macs=1, threads=7).here().threads == 1
    from torch import nn

    assert open_runner("torch", nn.ReLU(), threads=7).threads == 1
    assert open_runner("torch", nn.ReLU()).threads == 1


def test_more_threads_than_cores_are_said(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    words = ["bench", "mycode:Net", "--input", "1x1x8x8", "--runtime", "torch", "--batch", "1", "--repeats", "5"]
    many = CliRunner().invoke(app, [*words, "--threads", "8", "--quiet"])
    assert many.exit_code == 0 and "--threads 8: this process may use 1 of the machine's cores" in many.stderr
    assert "1 threads" in many.stdout or "1 thread," in many.stdout
    assert "this process may use" not in CliRunner().invoke(app, [*words, "--quiet"]).stderr
    assert CliRunner().invoke(app, [*words, "--threads", "0"]).exit_code == 2
