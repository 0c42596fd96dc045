"""What fails in the search is left out by its name, and the job goes on."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from gossamer.core.folder import disk_trouble
from gossamer.core.progress import Progress
from gossamer.core.record import Edit, EditKind
from gossamer.errors import FolderBusy, GossamerError, MissingExtra, out_of_memory, own_error
from gossamer.search.checkpoint_store import CheckpointStore

P = ParamSpec("P")
T = TypeVar("T")
LONGEST = 300  # characters of a reason


@dataclass(frozen=True)
class FailureGuard:
    """Runs what belongs to one candidate. What raises is in the store with its reason, so that a job that goes on
    leaves out the same."""

    store: CheckpointStore
    progress: Progress

    def __call__(self, name: str, key: str, compute: Callable[P, T], *args: P.args, **options: P.kwargs) -> T | None:
        """What `compute` gives for the candidate of this name; None where it fails, or failed before a kill. key: tells
        this trial from all others."""
        if self.failed(key):
            return None
        try:
            return compute(*args, **options)
        except Exception as error:
            if ends_the_job(error):
                raise
            why, short = failure_reason(error), out_of_memory(error)
        if short:
            gc.collect()  # the error held what filled the memory
        self.store.leave(key, name, why)
        self.progress.say(f"left out: {name}: {why}")
        return None

    def failed(self, key: str) -> bool:
        """Whether this trial has failed."""
        return key in self.store.left

    def rows(self) -> list[Edit]:
        """What was left out, and why, for the history."""
        return [left_unchanged(name, why) for name, why in dict.fromkeys(map(tuple, self.store.left.values()))]


def ends_the_job(error: BaseException) -> bool:
    """Whether an error has nothing to do with the candidate: the disk, the folder, a missing package."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, FolderBusy | MissingExtra) or (isinstance(chain, OSError) and disk_trouble(chain)):
            return True
        chain = chain.__cause__ or chain.__context__
    return "PytorchStreamWriter failed writing" in str(error)


def failure_reason(error: BaseException) -> str:
    """One line that says why a candidate fails."""
    text = str(error) if isinstance(error, GossamerError) else own_error(error)
    line = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def left_unchanged(what: str, why: str) -> Edit:
    """A row of the history."""
    return Edit(method="plan", kind=EditKind.SWAP, target=what, before="as it is", after="left alone", note=why)
