"""The quick tests are quick: by the record of an earlier run of all tests, not by the clock of this one."""

import json

import pytest
from recorder import COLLECTED, QUICK, RECORD, Collected, Record, Recorder, quick_seconds, record, too_slow

SEEN: Record = json.loads(RECORD.read_text())
TOY: Record = {"tests": {"a.py::long": 9.0, "a.py::brief": 0.6}, "fixtures": {"a.py::job": 5.0}, "rest": {"a.py": 0.3}}


def test_what_took_long_is_marked_slow(request: pytest.FixtureRequest) -> None:
    """Mark what is named here, or make it quicker and record the durations again: `scripts/test --durations`."""
    assert too_slow(request.config.stash[COLLECTED], SEEN) == []


def test_no_recorded_time_is_negative() -> None:
    assert [name for part in SEEN.values() for name, took in part.items() if took < 0] == []


def test_the_quick_tests_together_stay_below_the_limit(request: pytest.FixtureRequest) -> None:
    assert quick_seconds(request.config.stash[COLLECTED], SEEN) < QUICK


def test_long_tests_and_users_of_long_fixtures_need_the_mark() -> None:
    def toy(name: str, *fixtures: str, slow: bool = False) -> Collected:
        return Collected(f"a.py::{name}", frozenset(fixtures), slow)

    tests = [toy("long"), toy("brief"), toy("user", "a.py::job")]
    assert too_slow(tests, TOY, limit=4) == ["a.py::long: 9.0 s", "a.py::user: 5.0 s"]
    assert quick_seconds([*tests, toy("other user", "a.py::job")], TOY) == pytest.approx(9 + 0.6 + 5 + 0.3)
    marked = [toy("long", slow=True), toy("brief"), toy("user", "a.py::job", slow=True)]
    assert too_slow(marked, TOY, limit=4) == []
    assert quick_seconds(marked, TOY) == pytest.approx(0.6 + 0.3)


def test_the_record_names_what_is_long_and_adds_up_the_rest() -> None:
    assert record({"a.py::x": 2.04, "a.py::y": 0.2, "a.py::z": 0.2}, {"a.py::f": 0.7, "a.py::g": 0.1}) == {
        "tests": {"a.py::x": 2.0},
        "fixtures": {"a.py::f": 0.7},
        "rest": {"a.py": 0.4},
    }


def test_a_shared_fixture_is_not_the_first_tests_time(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    class Fixtures:
        @pytest.fixture(scope="module")
        def job(self) -> None:
            clock[0] += 5

        @pytest.fixture
        def own(self) -> None:
            clock[0] += 1

    pytester.makepyfile("def test_first(job, own): pass\ndef test_second(job, own): pass")
    recorder = Recorder()
    with monkeypatch.context() as patch:  # the recorder of this test itself must not see the made-up clock at its end
        patch.setattr("recorder.processor_seconds", lambda: clock[0])
        pytester.inline_run("-p", "no:cacheprovider", plugins=[recorder, Fixtures()])
    assert list(recorder.tests.values()) == [1.0, 1.0]
    assert list(recorder.fixtures.values()) == [5.0]
