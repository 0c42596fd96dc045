"""A study: one search in a folder, which any number of processes work on.

`study.json` says what is searched. Each result is a file of its own, written once. Whoever works on a trial has a
*lease*: a file that is renewed as long as the process lives. A lease that has not changed for `LEASE` seconds, by the
clock of the process that looks, has expired, and the next lease of the trial can be taken. Leases are numbered and
never removed, so two processes cannot both take the one after an expired one.
"""

import hashlib
import json
import os
import platform
import threading
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from gossamer.core.goal import Goal
from gossamer.core.progress import Progress, Silent
from gossamer.core.record import write_text
from gossamer.core.task import Task
from gossamer.errors import BadInput, CorruptFile
from gossamer.nas.plan import SearchPlan
from gossamer.nas.shared_folder import Clock, SharedFolder
from gossamer.nas.space import Space
from gossamer.search.checkpoint_store import data_fingerprint

FORMAT = 3  # of the files of a study, and of what is decided from them
NAME, WORK = "study.json", "work"
LEASE, BEAT = 90.0, 10.0  # seconds: without a sign of life until a lease has expired; between two signs
PARTS = {"data": "data or metric", "space": "space", "goal": "goal", "plan": "plan", "seed": "seed"}


@dataclass(frozen=True, kw_only=True)
class StudyDescription:
    """What is searched: the same for all processes of a study.

    Attributes:
        identity: by name, what makes it this study and no other one.
        trials: trainings, at most; more can be asked for later.
        origin: how a process makes task and space itself; None where only Python can.
    """

    identity: dict[str, Any]
    trials: int
    origin: dict[str, Any] | None = None

    @property
    def goal(self) -> Goal:
        """The limits, and how time is measured."""
        return Goal(**self.identity["goal"])

    @property
    def plan(self) -> SearchPlan:
        """How is searched."""
        return SearchPlan(**{**self.identity["plan"], "trials": self.trials})

    @property
    def seed(self) -> int:
        """Of all that is drawn."""
        return int(self.identity["seed"])


def describe_study(
    space: Space, task: Task, goal: Goal, plan: SearchPlan, seed: int, origin: Mapping[str, Any] | None = None
) -> StudyDescription:
    """What a search of these is."""
    identity = {
        "format": FORMAT,
        "versions": versions(plan.searcher),
        "data": hashlib.sha256(f"{task.name} {data_fingerprint(task)}".encode()).hexdigest()[:16],
        "space": repr(space),
        "goal": asdict(goal),
        "plan": asdict(replace(plan, trials=1, pick=None)),  # more trials go on from what is known
        "seed": seed,
    }
    made = dict(origin) if origin is not None else None
    return StudyDescription(identity=json.loads(json.dumps(identity)), trials=plan.trials, origin=made)


def versions(searcher: str) -> dict[str, str]:
    """Of what decides and computes: processes with others would come to other results."""
    deciding = {"tpe": ["optuna"], "nsga2": ["optuna"], "predictor": ["scikit-learn"]}.get(searcher, [])
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in ("gossamer", "torch", *deciding):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def read_description(folder: Path) -> StudyDescription:
    """What the study in a folder is.

    Raises:
        BadInput: there is none, or another version of gossamer made it.
        CorruptFile: its description is damaged.
    """
    path = folder / WORK / NAME
    if not path.is_file():
        empty = f"{folder} holds no search; start one there with"
        raise BadInput(
            f"{empty} gossamer.nas.search(..., out={str(folder)!r}), then join it",
            shell=f"{empty} `gossamer search --out {folder}`, then join it",
        )
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        found = StudyDescription(**known)
        if found.identity["format"] != FORMAT:
            raise BadInput(f"{folder} holds a study of another version of gossamer; use that one")
        return found
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, BadInput):
            raise
        raise CorruptFile(f"{path} is damaged: {error}; delete {path.parent} to start over there") from error


def refuse_others(folder: Path, known: StudyDescription, wanted: StudyDescription) -> None:
    """Raise BadInput where a folder holds another study than the one that is wanted."""
    for name in known.identity.keys() | wanted.identity.keys():
        theirs, ours = known.identity.get(name), wanted.identity.get(name)
        if theirs == ours:
            continue
        fix = f"name another folder, or delete {folder / WORK} to start over there"
        if isinstance(theirs, dict) and isinstance(ours, dict):
            keys = [key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)]
            details = ", ".join(f"{key} {theirs.get(key)} there, {ours.get(key)} here" for key in sorted(keys))
        else:
            details = f"{theirs} there, {ours} here"
        raise BadInput(f"{folder} holds a study of another {PARTS.get(name, name)} ({details}); {fix}")


class Study:
    """The files of one study.

    Args:
        folder: of the study.
        description: what it is.
        clock: of this process.
        progress: where is said that the storage is away.
    """

    def __init__(
        self,
        folder: Path,
        description: StudyDescription,
        *,
        clock: Clock | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.folder, self.description = folder, description
        self.clock = clock or Clock()
        self.files = SharedFolder(folder / WORK / "trials", NAME, self.clock, progress or Silent())
        self.known: dict[str, Any] = {}
        self.seen: dict[str, tuple[Any, float]] = {}
        self.owner = {"name": uuid.uuid4().hex[:12], **process(os.getpid())}

    @classmethod
    def start(cls, folder: Path, description: StudyDescription, **how: Any) -> "Study":
        """The study of a search that begins or goes on.

        Raises:
            BadInput: the folder holds another study, or files that are none.
        """
        work = folder / WORK
        if (work / NAME).exists():
            refuse_others(folder, read_description(folder), description)
        elif work.exists() and any(work.iterdir()):
            raise BadInput(f"{work} holds files that are not of a study of this version; name another output folder")
        (work / "trials").mkdir(parents=True, exist_ok=True)
        write_text(work / NAME, json.dumps(asdict(description), indent=1))
        (work / "trials" / NAME).touch()
        return cls(folder, description, **how)

    @classmethod
    def join(cls, folder: Path, description: StudyDescription, **how: Any) -> "Study":
        """The study that a search has started.

        Raises:
            BadInput: there is none, or it is another one.
        """
        refuse_others(folder, read_description(folder), description)
        return cls(folder, description, **how)

    def result(self, key: str) -> dict[str, Any] | None:
        """What came of a step; None as long as nobody has done it."""
        return self.known.get(key)

    def refresh(self) -> None:
        """Read what others have written since the last time."""
        for name in self.files.names():
            key, _, kind = name.rpartition(".")
            if kind == "result" and key not in self.known:
                self.known[key] = self.files.read(name)

    def put(self, key: str, value: Mapping[str, Any]) -> dict[str, Any]:
        """Keep the result of a step. Where another process has kept one before, that one counts, and is given."""
        name = f"{key}.result"
        kept = {**value, "by": self.owner["name"]}
        found: dict[str, Any] = json.loads(json.dumps(kept)) if self.files.put(name, kept) else self.files.read(name)
        self.known[key] = found
        return found

    def take(self, key: str) -> "Lease | None":
        """The lease of a step that nobody works on; None where somebody does, or it is done."""
        names = self.files.names()
        numbers = [int(name.rpartition("-")[2]) for name in names if name.startswith(f"{key}.lease-")]
        latest = max(numbers, default=0)
        if f"{key}.result" in names or (latest and not self._expired(f"{key}.lease-{latest}")):
            return None
        lease = Lease(self, f"{key}.lease-{latest + 1}")
        if not self.files.put(lease.name, lease.content()):
            return None
        if f"{key}.result" in self.files.names():  # it was done between the two looks
            return None
        return lease

    def _expired(self, name: str) -> bool:
        content, now = self.files.read(name), self.clock.now()
        if content.get("released") or gone(content):
            return True
        before = self.seen.get(name)
        if before is None or before[0] != content:
            self.seen[name] = (content, now)
            return False
        return now - before[1] > LEASE


class Lease:
    """That this process works on a step. As a context, it is renewed in the background and released at the end."""

    def __init__(self, study: Study, name: str) -> None:
        self.study, self.name, self.beats = study, name, 0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._beating, daemon=True, name="lease")

    def content(self) -> dict[str, Any]:
        """Of the file."""
        return {**self.study.owner, "beats": self.beats}

    def renew(self) -> None:
        """A sign of life."""
        self.beats += 1
        self.study.files.renew(self.name, self.content())

    def hold(self) -> Self:
        """Renew it in the background from now on."""
        self._thread.start()
        return self

    def release(self) -> None:
        """End it: others need not wait until it expires."""
        self._ends.set()
        if self._thread.is_alive():
            self._thread.join()
        self.study.files.renew(self.name, {**self.content(), "released": True})

    def __enter__(self) -> Self:
        return self.hold()

    def __exit__(self, *about: object) -> None:
        self.release()

    def _beating(self) -> None:
        while not self._ends.wait(BEAT):
            self.renew()


def process(pid: int) -> dict[str, Any]:
    """What tells a process from all others, also after its number is given again; without "place" where that cannot be
    said here. Its place is a boot of a machine and a container on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        began = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return {"pid": pid}
    ended = began[0] in "ZX"  # killed, and its parent has not asked for it
    return {"pid": pid, "place": f"{boot} {namespace}", "began": "ended" if ended else began[19]}


def gone(holder: Mapping[str, Any]) -> bool:
    """Whether a process of this machine has ended. Of other machines, only the lease says so, by its age."""
    here = process(os.getpid())
    if "place" not in here or holder.get("place") != here["place"]:
        return False
    return bool(process(int(holder["pid"])).get("began") != holder["began"])
