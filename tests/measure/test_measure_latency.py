import sys

import pytest
import torch

from gossamer.errors import BadInput
from gossamer.measure import Runner, latency, steady_latency


class Clock:
    """A clock that only runners move, in place of the real one."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    one = Clock()
    monkeypatch.setattr(sys.modules["gossamer.measure.latency"], "time", one)
    monkeypatch.setattr(Sleeper, "clock", one)


class Sleeper(Runner):
    """Takes a given time of the clock, and writes down what is called."""

    clock = Clock()

    runtime, version, precision, threads = "sleep", "1", "float32", 1

    def __init__(self, name, seconds, log):
        self.name, self.seconds, self.log = name, seconds, log

    def prepare(self, inputs):
        self.log.append(f"prepare {self.name}")
        return inputs

    def raw(self, prepared):
        self.log.append(self.name)
        self.clock.now += self.seconds
        return prepared

    def outputs(self, raw):
        return raw


def test_latency_tells_the_slow_from_the_fast_and_says_the_conditions():
    log: list[str] = []
    runners = {"slow": Sleeper("slow", 0.004, log), "fast": Sleeper("fast", 0.0005, log)}
    found = latency(runners, (torch.zeros(3, 2),), repeats=6, warmup=1)
    slow, fast = found["slow"], found["fast"]
    assert slow.median_ms == pytest.approx(4) and fast.median_ms == pytest.approx(0.5)
    assert slow.min_ms <= slow.q1_ms <= slow.median_ms <= slow.q3_ms
    assert (slow.runs, slow.batch, slow.runtime, slow.threads, slow.dtype) == (6, 3, "sleep", 1, "float32")
    row = slow.to_record("result", quiet=True)
    assert (row.value, row.low, row.high, row.n) == (slow.median_ms, slow.q1_ms, slow.q3_ms, 6)
    assert row.conditions["runtime"] == "sleep" and row.conditions["quiet"] is True and row.unit == "ms"


def test_inputs_are_prepared_once_before_anything_runs_and_visits_are_interleaved_in_changing_order():
    log: list[str] = []
    runners = {name: Sleeper(name, 0, log) for name in "abc"}
    latency(runners, (torch.zeros(1),), repeats=12, warmup=2)
    assert log[:3] == ["prepare a", "prepare b", "prepare c"] and not any("prepare" in entry for entry in log[3:])
    visits = log[9:]
    assert len(visits) == 2 * 3 * 12 and visits[::2] == visits[1::2]
    rounds = [tuple(visits[i : i + 6 : 2]) for i in range(0, len(visits), 6)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds) and len(set(rounds)) > 2


def test_order_follows_the_seed():
    logs = []
    for seed in (0, 0, 1):
        log: list[str] = []
        latency({name: Sleeper(name, 0, log) for name in "abc"}, (torch.zeros(1),), repeats=9, warmup=1, seed=seed)
        logs.append(log)
    assert logs[0] == logs[1] != logs[2]


def test_a_time_limit_ends_after_at_least_five_rounds():
    found = latency({"a": Sleeper("a", 0.002, [])}, (torch.zeros(1),), repeats=500, warmup=1, seconds=0.0)
    assert found["a"].runs == 5


def test_latency_of_nothing_is_refused():
    with pytest.raises(BadInput):
        latency({}, (torch.zeros(1),))


def test_the_steadiest_of_some_measurements_counts():
    """Where something else runs in the first one; a steady one is not repeated."""

    class Disturbed(Sleeper):
        def raw(self, prepared):
            self.seconds = 0.001 if len(self.log) > 30 or len(self.log) % 4 < 2 else 0.009
            return super().raw(prepared)

    log: list[str] = []
    found = steady_latency({"one": Disturbed("one", 0.001, log)}, (torch.zeros(1),), repeats=10, warmup=1)
    assert found["one"].median_ms == pytest.approx(1) and not found["one"].unsteady
    calls = len(log)
    steady_latency({"one": Sleeper("one", 0.001, log)}, (torch.zeros(1),), repeats=10, warmup=1)
    assert len(log) == calls + 22  # prepared once, warmed up once, two runs a round
