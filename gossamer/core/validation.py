"""Admitted values of hyper-parameters, declared once on the field: validator, message and test values in one.

A number says its range (`Annotated[float, Range(0, 1)]`), a name its choices (`Literal["sgd", "adamw"]`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Self, get_args, get_origin, get_type_hints

from gossamer.core.kinds import check_kinds
from gossamer.errors import BadInput, unknown


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


def check_fields(options: Any, label: str) -> None:
    """Raise `BadInput` for the first field of a dataclass whose value is outside its range or none of its choices."""
    hints = get_type_hints(type(options), include_extras=True)
    for f in fields(options):
        kind, rules, value = get_origin(hints[f.name]), get_args(hints[f.name]), getattr(options, f.name)
        if kind is Literal and value not in rules:
            raise unknown(f"{label} {f.name}", str(value), rules)
        for rule in rules if kind is Annotated and value is not None else ():
            if not isinstance(rule, Range):
                continue
            whole = rules[0] is int
            if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
                raise BadInput(f"{label}: {f.name} = {value!r} must be {'an integer' if whole else 'a number'}")
            if float(value) not in rule:
                raise BadInput(f"{label}: {f.name} = {value} must be in {rule}")
    check_kinds(options, label)


def require_kind(name: str, value: Any, kind: type, example: str, *, optional: bool = False) -> None:
    """Raise `BadInput` where an argument is nothing of the kind, with an example of one."""
    if not (isinstance(value, kind) or (optional and value is None)):
        got = type(value).__name__
        raise BadInput(f"{name} must be a gossamer.{kind.__name__}, not a {got}; for example {example}")


def refuse_unknown(options: Iterable[str], known: Iterable[str], label: str) -> None:
    """Raise `BadInput` with the nearest name for the first option that does not exist."""
    names = list(known)
    for option in options:
        if option not in names:
            raise unknown(f"{label} argument", option, names)


class KnownArguments:
    """A base of dataclasses whose constructors refuse unknown arguments with the nearest name that exists.

    Example:
        >>> import gossamer
        >>> gossamer.Goal(speed_up=3)
        Traceback (most recent call last):
        gossamer.errors.BadInput: unknown Goal argument 'speed_up'; did you mean 'speedup'?
    """

    def __new__(cls, *args: Any, **options: Any) -> Self:
        refuse_unknown(options, [f.name for f in fields(cls) if f.init], cls.__name__)  # type: ignore[arg-type]
        return super().__new__(cls)
