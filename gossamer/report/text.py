"""Numbers as text, with units and no more digits than they deserve; and the escaping of everything else."""

import html
import math

from gossamer.core.units import shown_text

_RUNTIMES = {
    "torch": "PyTorch",
    "torch.compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "binary": "bits (binary)",
}


def escape(text: object) -> str:
    """Safe as HTML text and inside a quoted attribute."""
    return html.escape(str(text), quote=True)


def significant(value: float, digits: int = 3) -> str:
    """Plain decimal notation with this many significant digits; digits before the point are never rounded away."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    # The exponent after rounding: 9.999 has two digits before the point by then.
    places = digits - 1 - int(f"{value:.{digits - 1}e}".split("e")[1])
    return f"{value:,.{min(max(places, 0), 9)}f}"


def count(value: float) -> str:
    """`272,186`."""
    return f"{value:,.0f}"


def large(value: float) -> str:
    """`31.3 M`: three digits with a decimal prefix; in full below 10,000."""
    return count(value) if abs(value) < 10_000 and value == int(value) else _prefixed(value)


def size(value: float) -> str:
    """`366 kB`; decimal prefixes, 1 kB = 1000 bytes."""
    return f"{_prefixed(value)}B" if abs(value) >= 1000 else f"{value:.0f} B"


def _prefixed(value: float) -> str:
    for unit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # Just below a unit three digits round up to it: 999,999 is 1.00 M, not 1,000 k.
        if abs(value) >= unit * 0.9995:
            return f"{significant(value / unit)} {prefix}"
    return significant(value)


def milliseconds(value: float) -> str:
    """`18.7 ms`."""
    return f"{significant(value)} ms"


def points(value: float) -> str:
    """`0.32`, with a true minus sign."""
    return f"{value:.2f}".replace("-", "−")


def percent(value: float) -> str:
    """`93.20 %`."""
    return f"{points(value)} %"


def score(value: float, unit: str) -> str:
    """`93.20 %`, `0.1234 m`, with a true minus sign."""
    return shown_text(value, unit).replace("-", "−")


def times(value: float) -> str:
    """`4.06×`, `12.3×`."""
    return f"{significant(value)}×"


def proof(value: float) -> str:
    """`3.1e-07` as `3.1 · 10⁻⁷`; 0 is `exact`."""
    if value == 0:
        return "exact"
    if not math.isfinite(value):
        return str(value)
    mantissa, exponent = f"{value:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} · 10{raised}"


def duration(seconds: float) -> str:
    """`8.2 s`, `13 min 32 s`, `2 h 05 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def plain_text(value: object) -> str:
    """Any value of the document: thousands set apart, no needless decimals, lists joined."""
    match value:
        case bool() | str() | None:
            return str(value)
        case int():
            return count(value) if abs(value) >= 10_000 else str(value)
        case float():
            return f"{value:g}"
        case list() | tuple():
            return ", ".join(plain_text(item) for item in value)
        case _:
            return str(value)


def runtime(name: object) -> str:
    """The name that people use for a runtime."""
    return _RUNTIMES.get(str(name), str(name))


def titled(name: str) -> str:
    """With a capital first letter."""
    return name[:1].upper() + name[1:]


def plural(number: int, noun: str) -> str:
    """`1 edit`, `2 edits`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
