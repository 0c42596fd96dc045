"""Values of metrics as text, in their units."""

PERCENT = "%"


def shown_text(shown: float, unit: str) -> str:
    """A value in its unit with its digits: two decimals, of small errors four digits.

    Example:
        >>> shown_text(93.2, "%"), shown_text(0.01234567, "m"), shown_text(12.5, "")
        ('93.20 %', '0.01235 m', '12.50')
    """
    small = unit != PERCENT and 0 < abs(shown) < 10
    return f"{shown:#.4g} {unit}".strip() if small else f"{shown:.2f} {unit}".strip()
