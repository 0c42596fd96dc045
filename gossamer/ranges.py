"""Admitted values of hyper-parameters, declared once on the field: validator, message and test values in one."""

from dataclasses import dataclass, fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from gossamer.errors import BadInput


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


def check_ranges(options: Any, label: str) -> None:
    """Raise `BadInput` for the first field `Annotated[..., Range(...)]` of a dataclass whose value is outside."""
    hints = get_type_hints(type(options), include_extras=True)
    for f in fields(options):
        hint = hints[f.name]
        if get_origin(hint) is not Annotated:
            continue
        value = getattr(options, f.name)
        for rule in get_args(hint)[1:]:
            if isinstance(rule, Range) and value is not None and value not in rule:
                raise BadInput(f"{label}: {f.name} = {value} must be in {rule}")
