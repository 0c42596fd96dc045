"""What a method is: a frozen value of hyper-parameters that can be called on a model."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import nn

from gossamer.ranges import check_fields
from gossamer.run import Run
from gossamer.task import Task


@dataclass(frozen=True, kw_only=True)
class Method:
    """A value of hyper-parameters, callable on `(model, task, run)`; gives a changed copy and leaves the model alone.

    The file's path below `methods/` is its name in a recipe: `prune.channels`. `stage` orders the methods of a recipe:
    a method with a lower stage cannot come after one with a higher; one with none may stand anywhere.
    """

    stage: ClassVar[int | None] = None
    saves: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_fields(self, self.name())

    @classmethod
    def name(cls) -> str:
        """The name in a recipe."""
        return cls.__module__.removeprefix("gossamer.methods.")

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        raise NotImplementedError(type(self).__name__)

    def roughly(self) -> "Method":
        """A method that gives the same shapes with as little fitting as it can: for measuring what they cost."""
        return self

    def options(self) -> dict[str, Any]:
        """Hyper-parameters by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
