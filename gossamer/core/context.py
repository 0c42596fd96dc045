"""What a method may touch besides the model."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from gossamer.core.goal import Goal
from gossamer.core.record import Curve, Edit, State

if TYPE_CHECKING:  # the command line starts without torch
    from torch import nn

T = TypeVar("T")


class Progress(Protocol):
    """Where a job says what it does. The command line draws bars; a library call is silent."""

    def say(self, message: str) -> None:
        """One line of plain text."""

    def bar(self, items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:
        """Go through the items under a progress bar."""

    def busy(self, label: str) -> AbstractContextManager[None]:
        """Work of unknown length."""


class Silent:
    """Says nothing."""

    def say(self, message: str) -> None: ...

    def bar(self, items: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:
        yield from items

    def busy(self, label: str) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass
class Run:
    """Device, seed, progress, the history of edits, how each training went, the uncompressed network, and where
    checkpoints go (None: nowhere).

    goal: what a job is to reach, and the runtime, threads and batch that time is measured with.
    cache: a folder that keeps what teachers say, for later epochs and runs.
    teacher: a network to learn from that is better than the original; where there is none, the original is.
    compile_teacher: whether torch.compile runs it, where only its outputs count.
    note: what files of weights say of the network that they are for (`gossamer.cli.loading.Source.note`).

    accelerator and devices are Lightning Fabric's ("cpu", "cuda", "auto"; 2 on cpu means two processes over gloo).
    """

    seed: int = 0
    accelerator: str = "auto"
    devices: int = 1
    folder: Path | None = None
    progress: Progress = field(default_factory=Silent)
    history: list[Edit] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    original: "nn.Module | None" = None
    teacher: "nn.Module | None" = None
    compile_teacher: bool = False
    cache: Path | None = None
    note: Mapping[str, str] = field(default_factory=dict)
    goal: Goal | None = None

    @property
    def guide(self) -> "nn.Module | None":
        """The network that compressed ones learn from, if there is one."""
        return self.teacher if self.teacher is not None else self.original
