"""Studies on disk: results, leases, kills, storage that is away, and what is refused."""

import errno
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import gossamer
from gossamer.core.progress import Quiet
from gossamer.errors import BadInput, CorruptFile
from gossamer.nas import MobileSpace, SearchPlan
from gossamer.nas import shared_folder as files
from gossamer.nas.shared_folder import PATIENCE, Clock
from gossamer.nas.study import FORMAT, LEASE, Study, StudyDescription, describe_study, gone, process, read_description

DESCRIPTION = StudyDescription(
    identity={"format": FORMAT, "seed": 0, "space": "A", "versions": {"torch": "2"}}, trials=3
)


class Hand:
    """A clock that is set by hand; waiting moves it, and does what a test says."""

    def __init__(self, start: float = 0.0) -> None:
        self.time, self.then = start, list[Callable[[], Any]]()

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        if self.then:
            self.then.pop(0)()

    def clock(self) -> Clock:
        return Clock(now=lambda: self.time, sleep=self.sleep)


class Said(Quiet):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def worker(folder: Path, hand: Hand | None = None, said: Said | None = None, elsewhere: bool = True) -> Study:
    """A process of the study; elsewhere: on a machine of which nobody here can see whether it lives."""
    study = Study.start(folder, DESCRIPTION, clock=(hand or Hand()).clock(), progress=said or Said())
    if elsewhere:
        study.owner["place"] = "another machine"
    return study


def killed(act: Callable[[], Any]) -> int:
    """Do something in a process of its own, which is expected to end itself; the signal that ended it."""
    pid = os.fork()
    if not pid:
        try:
            act()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def suicide(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_first_result_of_a_step_counts_and_everyone_sees_it(tmp_path: Path) -> None:
    one, other = worker(tmp_path), worker(tmp_path)
    assert one.put("00000-score", {"value": 0.5})["value"] == 0.5
    assert other.put("00000-score", {"value": 0.7})["value"] == 0.5
    for study in (one, other):
        study.refresh()
        assert study.result("00000-score") == {"value": 0.5, "by": one.owner["name"]}
        assert study.result("00001-score") is None


def test_processes_that_write_at_once_lose_nothing_and_only_one_gets_each_lease(tmp_path: Path) -> None:
    worker(tmp_path)
    children = []
    for number in range(4):
        pid = os.fork()
        if not pid:
            study = Study.start(tmp_path, DESCRIPTION)
            for key in range(40):
                if study.take(f"{key:05d}-score") is not None:
                    study.put(f"{number}-{key}", {"value": number})
                    study.put(f"{key:05d}-score", {"value": number})
                study.put(f"same-{key}", {"value": number})
            os._exit(0)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 4
    study = worker(tmp_path)
    study.refresh()
    got = [key.partition("-")[2] for key in study.known if key[:2] in ("0-", "1-", "2-", "3-")]
    assert sorted(got) == sorted(map(str, range(40)))
    assert sum(key.startswith("same") for key in study.known) == 40


def test_a_lease_lasts_while_it_is_renewed_and_expires_by_the_clock_of_who_looks(tmp_path: Path) -> None:
    mine, theirs = Hand(), Hand(1e9)  # clocks of two machines need not agree
    one, other = worker(tmp_path, mine), worker(tmp_path, theirs)
    lease = one.take("00000-score")
    assert lease is not None and other.take("00000-score") is None
    theirs.time += LEASE
    assert other.take("00000-score") is None  # exactly so long: not yet
    lease.renew()
    theirs.time += LEASE
    assert other.take("00000-score") is None  # seen renewed now
    theirs.time += LEASE
    assert other.take("00000-score") is None
    theirs.time += 1
    assert other.take("00000-score") is not None
    assert one.take("00000-score") is None  # that one is new


def test_of_two_who_see_a_lease_expire_one_gets_the_next(tmp_path: Path) -> None:
    worker(tmp_path).take("00000-score")
    hand = Hand()
    studies = [worker(tmp_path, hand) for _ in range(3)]
    assert [study.take("00000-score") for study in studies] == [None] * 3
    hand.time += LEASE + 1
    assert sum(study.take("00000-score") is not None for study in studies) == 1


def test_a_lease_that_is_released_or_whose_result_is_there_is_not_waited_for(tmp_path: Path) -> None:
    one, other = worker(tmp_path), worker(tmp_path)
    lease = one.take("00000-score")
    assert lease is not None
    with lease:
        assert other.take("00000-score") is None
    second = other.take("00000-score")
    assert second is not None
    other.put("00000-score", {"value": 1})
    second.release()
    assert one.take("00000-score") is None


def with_the_lease(study: Study) -> None:
    study.take("00000-score")


def while_working(study: Study) -> None:
    lease = study.take("00000-score")
    assert lease is not None
    lease.hold()


def with_the_result_half_written(study: Study) -> None:
    study.take("00000-score")
    os.link = suicide
    study.put("00000-score", {"value": 1})


POINTS: tuple[Callable[[Study], None], ...] = (with_the_lease, while_working, with_the_result_half_written)


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.__name__)
def test_a_process_of_this_machine_that_is_killed_costs_its_step_and_no_waiting(
    tmp_path: Path, point: Callable[[Study], None]
) -> None:
    study = worker(tmp_path, elsewhere=False)

    def act() -> None:
        point(Study.start(tmp_path, DESCRIPTION))
        suicide()

    assert killed(act) == -signal.SIGKILL
    study.refresh()
    assert study.known == {}
    assert study.take("00000-score") is not None
    assert study.put("00000-score", {"value": 2})["value"] == 2


def test_a_result_survives_the_kill_that_follows_it(tmp_path: Path) -> None:
    study = worker(tmp_path)

    def act() -> None:
        Study.start(tmp_path, DESCRIPTION).put("00000-score", {"value": 1})
        suicide()

    assert killed(act) == -signal.SIGKILL
    study.refresh()
    assert study.known["00000-score"]["value"] == 1


def test_a_process_is_told_from_one_with_the_same_number_and_from_other_machines() -> None:
    own = process(os.getpid())
    assert not gone(own) and gone({**own, "began": "1"}) and not gone({**own, "place": "elsewhere", "pid": 0})
    pid = os.fork()
    if not pid:
        os._exit(0)
    while process(pid)["began"] != "ended":  # it has ended, and nobody has asked for it: its number is still taken
        pass
    assert gone({**own, "pid": pid})
    os.waitpid(pid, 0)
    assert gone({**own, "pid": pid})


@pytest.mark.parametrize("how", ["an error of the device", "a folder that is not mounted"])
def test_storage_that_is_away_is_said_and_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    hand, said = Hand(), Said()
    folder, away = tmp_path / "study", tmp_path / "away"
    study = worker(folder, hand, said)
    study.put("00000-score", {"value": 1})
    if how == "an error of the device":
        link, calls = os.link, iter([errno.EIO, errno.ESTALE])

        def failing(*args: Any) -> None:
            if number := next(calls, None):
                raise OSError(number, os.strerror(number))
            link(*args)

        monkeypatch.setattr(os, "link", failing)
    else:
        folder.rename(away)
        hand.then = [lambda: None, lambda: away.rename(folder)]
    assert study.put("00001-score", {"value": 2})["value"] == 2
    assert hand.time == 2 * files.RETRY
    assert "cannot be reached" in said.lines[0] and "is there again; nothing is lost" in said.lines[1]
    study.refresh()
    assert {key: row["value"] for key, row in study.known.items()} == {"00000-score": 1, "00001-score": 2}
    assert not list(folder.glob("work/trials/.*"))


def test_a_sign_of_life_is_left_out_where_the_storage_is_away(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    lease = worker(folder).take("00000-score")
    folder.rename(tmp_path / "away")
    assert lease is not None
    lease.renew()
    (tmp_path / "away").rename(folder)
    lease.renew()
    assert json.loads((folder / "work/trials/00000-score.lease-1").read_text())["beats"] == 2


def test_storage_that_stays_away_ends_in_one_message(tmp_path: Path) -> None:
    hand, said = Hand(), Said()
    study = worker(tmp_path / "study", hand, said)
    (tmp_path / "study").rename(tmp_path / "away")
    with pytest.raises(BadInput, match="not reached for an hour"):
        study.put("00000-score", {"value": 1})
    assert len(said.lines) == 1 and hand.time > PATIENCE


def test_a_file_that_is_missing_is_not_waited_for(tmp_path: Path) -> None:
    hand = Hand()
    with pytest.raises(FileNotFoundError):
        worker(tmp_path, hand).files.read("nothing")
    assert hand.time == 0


def test_what_cannot_pass_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = worker(tmp_path)

    def answer(number: int) -> Callable[..., None]:
        def fail(*_: Any) -> None:
            raise OSError(number, os.strerror(number))

        return fail

    monkeypatch.setattr(os, "link", answer(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        study.put("00000-score", {"value": 1})
    monkeypatch.setattr(os, "link", answer(errno.EPERM))
    with pytest.raises(BadInput, match="no hard links"):
        study.put("00000-score", {"value": 1})


def test_another_study_is_refused_with_what_differs(tmp_path: Path) -> None:
    worker(tmp_path)
    for part, value, words in (
        ("space", "B", "another space (A there, B here)"),
        ("seed", 1, "another seed (0 there, 1 here)"),
        ("versions", {"torch": "3"}, "another versions (torch 2 there, 3 here)"),
    ):
        other = replace(DESCRIPTION, identity={**DESCRIPTION.identity, part: value})
        for opened in (Study.start, Study.join):
            with pytest.raises(BadInput) as error:
                opened(tmp_path, other)
            assert words in str(error.value) and "name another folder" in str(error.value)
    assert Study.join(tmp_path, replace(DESCRIPTION, trials=9)).description.trials == 9


def test_what_tells_a_study_from_others(tmp_path: Path) -> None:
    task = gossamer.data.tiny_task()
    space, goal, plan = MobileSpace(channels=1, classes=4, side=16), gossamer.Goal(macs=5), SearchPlan(epochs=1)

    def identity(**changes: Any) -> dict[str, Any]:
        about: dict[str, Any] = {"space": space, "task": task, "goal": goal, "plan": plan, "seed": 0} | changes
        return describe_study(**about).identity

    same = identity()
    assert identity(plan=replace(plan, trials=99, pick=("macs", 3))) == same
    for changes in (
        {"space": MobileSpace(channels=1, classes=4, side=28)},
        {"task": replace(task, name="other")},
        {"goal": gossamer.Goal(macs=6)},
        {"plan": replace(plan, concurrent=2)},
        {"plan": replace(plan, searcher="predictor")},
        {"seed": 1},
    ):
        assert identity(**changes) != same
    found = StudyDescription(identity=same, trials=7)
    assert found.goal == goal and found.plan == replace(plan, trials=7) and found.seed == 0
    started = replace(plan, start=((0, 1), (2, 3)))
    assert identity(plan=started) != same
    assert StudyDescription(identity=identity(plan=started), trials=1).plan == replace(started, trials=1)


def test_folders_without_a_study_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no search"):
        read_description(tmp_path)
    path = tmp_path / "work" / "study.json"
    path.parent.mkdir()
    (path.parent / "journal.json").touch()
    with pytest.raises(BadInput, match="not of a study"):
        Study.start(tmp_path, DESCRIPTION)
    path.write_text("{")
    with pytest.raises(CorruptFile, match="damaged"):
        read_description(tmp_path)
    path.write_text(json.dumps({"identity": {"format": 0}, "trials": 1}))
    with pytest.raises(BadInput, match="another version"):
        read_description(tmp_path)
