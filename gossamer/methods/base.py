"""What a method is: a frozen value of hyper-parameters that can be called on a model."""

from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

from torch import nn

from gossamer.errors import BadInput
from gossamer.run import Run
from gossamer.task import Task


@dataclass(frozen=True)
class Range:
    """The admitted values of a number: low <= value <= high, an end left out where `open_` names it ("low", "high")."""

    low: float
    high: float
    open_: tuple[str, ...] = ()

    def __contains__(self, value: float) -> bool:
        above = value > self.low if "low" in self.open_ else value >= self.low
        below = value < self.high if "high" in self.open_ else value <= self.high
        return above and below

    def __str__(self) -> str:
        return f"{'(' if 'low' in self.open_ else '['}{self.low}, {self.high}{')' if 'high' in self.open_ else ']'}"


@dataclass(frozen=True, kw_only=True)
class Method:
    """A value of hyper-parameters, callable on `(model, task, run)`; gives a changed copy and leaves the model alone.

    The file's path below `methods/` is its name in a recipe: `prune.channels`. `stage` orders the methods of a recipe:
    a method with a lower stage cannot come after one with a higher; one with none may stand anywhere.
    """

    stage: ClassVar[int | None] = None
    saves: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for f in fields(self):
            hint = hints[f.name]
            if get_origin(hint) is not Annotated:
                continue
            value = getattr(self, f.name)
            for rule in get_args(hint)[1:]:
                if isinstance(rule, Range) and value is not None and value not in rule:
                    raise BadInput(f"{self.name()}: {f.name} = {value} must be in {rule}")

    @classmethod
    def name(cls) -> str:
        """The name in a recipe."""
        return cls.__module__.removeprefix("gossamer.methods.")

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        raise NotImplementedError(type(self).__name__)

    def options(self) -> dict[str, Any]:
        """Hyper-parameters by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
