"""What a method is: a frozen value of hyper-parameters that can be called on a model."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import nn

from gossamer.core.context import Run
from gossamer.core.record import Edit
from gossamer.core.task import Task
from gossamer.core.validation import check_fields


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A value of hyper-parameters, callable on `(model, task, run)`; gives a changed copy and leaves the model alone.

    The file's path below `methods/` is its name in a recipe: `prune.channels`. `stage` orders the methods of a recipe:
    a method with a lower stage cannot come after one with a higher; one with none may stand anywhere. saves: what goes
    down: "params", "macs", "nonzeros", "distinct" (values). A class that leaves something abstract is no method but
    what several share.
    """

    stage: ClassVar[int | None] = None
    saves: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_fields(self, self.name())

    @classmethod
    def name(cls) -> str:
        """The name in a recipe."""
        return cls.__module__.removeprefix("gossamer.methods.")

    @abstractmethod
    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        """A changed copy of the model; `run.history` has every change."""

    def roughly(self) -> "Method":
        """A method that gives the same shapes with as little fitting as it can: for measuring what they cost."""
        return self

    def note(self, run: Run, kind: str, target: str, *, before: str, after: str, **more: Any) -> None:
        """A row of the history. more: proof, note and swapped of an `Edit`."""
        run.history.append(Edit(method=self.name(), kind=kind, target=target, before=before, after=after, **more))

    def options(self) -> dict[str, Any]:
        """Hyper-parameters by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
