"""A pytest plugin: measures the processor seconds of tests and fixtures, and keeps `durations.json` on request.

Seconds are those of this process and of the processes it waited for: a busy machine records what a quiet one does. What
a fixture of a module or of the session takes counts as the fixture's, not as that of the first test that asks for it.
"""

import json
import os
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

RECORD = Path(__file__).with_name("durations.json")
NAMED = 0.5  # seconds; tests that take less are added up by file or function
SLOW = 1.5  # seconds; a test that takes more of its own, or asks for a shared fixture that does, is marked `slow`
QUICK = 240.0  # processor seconds of all the other tests together: two minutes on two cores
MANY = 2.0  # seconds; the many small tests of one function have a sum of their own
OWN, SHARED = "seconds", "seconds of a shared fixture"


Record = dict[str, dict[str, float]]  # seconds of tests, shared fixtures, and the rest of each file


@dataclass(eq=False)  # pytest keeps plugins in sets
class Recorder:
    """What the tests took, by their names; `inside`: what shared fixtures took within the phase that is running."""

    tests: Counter[str] = field(default_factory=Counter)
    fixtures: Counter[str] = field(default_factory=Counter)
    inside: float = 0.0

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None]:
        yield from self._phase(item)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        yield from self._phase(item)

    def _phase(self, item: pytest.Item) -> Generator[None]:
        start, self.inside = processor_seconds(), 0.0
        yield
        item.user_properties.append((OWN, processor_seconds() - start - self.inside))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: pytest.FixtureRequest) -> Generator[None]:
        start, before = processor_seconds(), self.inside
        result = yield
        if fixturedef.scope != "function":
            took = processor_seconds() - start
            name = shared_name(fixturedef.baseid, fixturedef.argname)
            request._pyfuncitem.user_properties.append((f"{SHARED} {name}", took - (self.inside - before)))
            self.inside = before + took
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Of every process, in the one that prints."""
        if report.when != "teardown":
            return
        for name, took in report.user_properties:
            if name == OWN:
                self.tests[report.nodeid] += took
            elif name.startswith(SHARED):
                self.fixtures[name.removeprefix(SHARED).strip()] = max(took, self.fixtures[name])


def processor_seconds() -> float:
    return sum(os.times()[:4])


def shared_name(file: str, fixture: str) -> str:
    return f"{file}::{fixture}"


def record(tests: dict[str, float], fixtures: dict[str, float]) -> Record:
    """What `durations.json` holds: the longer tests and shared fixtures by name, the rest as one sum a file."""
    functions: Counter[str] = Counter()  # of tests that take less
    for name, took in tests.items():
        if took < NAMED:
            functions[name.partition("[")[0]] += took
    rest: Counter[str] = Counter()
    for name, took in functions.items():
        rest[name if took >= MANY else name.partition("::")[0]] += took
    rounded = {
        "tests": {name: round(took, 1) for name, took in tests.items() if took >= NAMED},
        "fixtures": {name: round(took, 1) for name, took in fixtures.items() if took >= NAMED},
        "rest": {name: round(took, 1) for name, took in rest.items()},
    }
    return {part: dict(sorted(seconds.items())) for part, seconds in rounded.items()}


@dataclass(frozen=True)
class Collected:
    """What the record is compared with, of every test that was found, also of those that are left out of this run."""

    name: str
    fixtures: frozenset[str]
    slow: bool


COLLECTED = pytest.StashKey[list[Collected]]()


def collected(item: pytest.Item) -> Collected:
    definitions = item._fixtureinfo.name2fixturedefs.values()
    shared = {shared_name(one[-1].baseid, one[-1].argname) for one in definitions if one[-1].scope != "function"}
    return Collected(item.nodeid, frozenset(shared), item.get_closest_marker("slow") is not None)


def too_slow(tests: Sequence[Collected], record: Record, limit: float = SLOW) -> list[str]:
    """Tests without the mark `slow` that took more than `limit` in the record, themselves or for a shared fixture."""
    found = []
    for test in tests:
        seconds = max([record["tests"].get(test.name, 0), *(record["fixtures"].get(f, 0) for f in test.fixtures)])
        if seconds > limit and not test.slow:
            found.append(f"{test.name}: {seconds} s")
    return found


def quick_seconds(tests: Sequence[Collected], record: Record) -> float:
    """What the tests without the mark took together, each shared fixture once."""
    quick = [test for test in tests if not test.slow]
    fixtures = {name for test in quick for name in test.fixtures}
    places = {place for test in quick for place in (test.name.partition("::")[0], test.name.partition("[")[0])}
    named = sum(record["tests"].get(test.name, 0) for test in quick)
    return named + sum(record["fixtures"].get(f, 0) for f in fixtures) + sum(record["rest"].get(p, 0) for p in places)


@pytest.hookimpl(tryfirst=True)  # before anything is left out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[COLLECTED] = [collected(item) for item in items]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-durations", action="store_true", help=f"write {RECORD.name} anew, from all the tests")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--record-durations"):
        config.pluginmanager.register(Recorder(), "recorder of durations")


def pytest_sessionfinish(session: pytest.Session) -> None:
    found = session.config.pluginmanager.get_plugin("recorder of durations")
    if found is not None and not hasattr(session.config, "workerinput"):
        RECORD.write_text(json.dumps(record(found.tests, found.fixtures), indent=0) + "\n")
