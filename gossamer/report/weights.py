"""The weights of the original as histograms, with the values that the result has left on them."""

import math

from gossamer.core.record import JobDocument, StoredRow
from gossamer.report import text
from gossamer.report.file_bytes import is_small
from gossamer.report.plot import Frame
from gossamer.report.sections import section
from gossamer.report.text import escape

_HEIGHT = 132
_DOTTED = 40  # values whose stems lie apart
_LOW = -0.25  # where counts begin: the logarithm of 1 is not at the very bottom


def weights_section(document: JobDocument) -> str:
    """A small plot for each weight tensor whose values are listed; nothing where none is."""
    rows = [row for row in document.stored if row.values]
    if not rows or not is_small(document):
        return ""
    bins = max(len(row.histogram) for row in rows)
    before = f'<span><i class="before"></i>weights of the original, in {bins} bins</span>' if bins else ""
    key = f'<p class="key">{before}<span><i class="stem"></i>values in the file</span></p>'
    lead = "How many weights have each value; counts on a logarithmic scale, where rare values are seen besides zero."
    plots = "".join(_plot(row) for row in rows)
    return section("Weights and their values", f'<div class="weights">{plots}</div>{key}', lead)


def _plot(row: StoredRow) -> str:
    low, high = row.values[0], row.values[-1]
    if row.histogram:
        low, high = min(low, row.low), max(high, row.high)
    pad = 0.03 * (high - low) or 0.5
    most = math.log10(max([*row.counts, *row.histogram]))
    frame = Frame(low - pad, high + pad, _LOW, max(most, 1.0), height=_HEIGHT)
    body = _counts(frame) + _histogram(frame, row) + _stems(frame, row) + _ticks(frame, low, high)
    shape = " × ".join(map(str, row.shape))
    values = text.plural(len(row.values), "value")
    said = f"{row.name}: {values} on the histogram of the original's weights"
    listing = ", ".join(
        f'<data value="{value}">{_value(value)}</data> <small>({text.count(n)})</small>'
        for value, n in zip(row.values, row.counts, strict=True)
    )
    plot = f'<svg role="img" aria-label="{escape(said)}" width="100%" height="{_HEIGHT}">{body}</svg>'
    return (
        f"<figure><figcaption><code>{escape(row.name)}</code><small>{shape}, {values}</small></figcaption>"
        f'<div class="plot">{plot}</div>'
        f"<details><summary>The values</summary><p>{listing}</p></details></figure>"
    )


def _counts(frame: Frame) -> str:
    """Lines at 1, 10, 100 and so on."""
    parts = []
    for power in range(math.floor(frame.y_high) + 1):
        y = frame.y(power)
        label = f"{10 ** (power % 3)} {('', 'k', 'M', 'G')[power // 3]}".strip()
        parts.append(f'<line class="grid" x1="0" y1="{y}" x2="100%" y2="{y}"/>')
        parts.append(f'<text class="tick" x="0" dx="-8" y="{y}" dy="4" text-anchor="end">{label}</text>')
    return "".join(parts)


def _histogram(frame: Frame, row: StoredRow) -> str:
    width = (row.high - row.low) / max(1, len(row.histogram))
    share = 100 * width / (frame.x_high - frame.x_low)
    bars = []
    for place, count in enumerate(row.histogram):
        if count:
            top = float(frame.y(math.log10(count)))
            left = frame.x(row.low + place * width)
            bars.append(f'<rect x="{left}" y="{top}" width="{share:.2f}%" height="{frame.height - top:.1f}"/>')
    return f'<g class="bins">{"".join(bars)}</g>'


def _stems(frame: Frame, row: StoredRow) -> str:
    """A line for each value, with a dot where there is room for it; the share of zero is written above its own."""
    parts = []
    many = len(row.values) > _DOTTED
    for value, count in zip(row.values, row.counts, strict=True):
        x, y = frame.x(value), frame.y(math.log10(count))
        parts.append(f'<line x1="{x}" y1="{frame.height}" x2="{x}" y2="{y}"/>')
        if not many:
            parts.append(f'<circle cx="{x}" cy="{y}" r="3.5"/>')
    zeros = 1 - row.density
    label = ""
    if zeros > 0:
        label = f'<text class="zeros" x="{frame.x(0.0)}" y="-10" text-anchor="middle">{100 * zeros:.1f} % zero</text>'
    return f'<g class="{"stems many" if many else "stems"}">{"".join(parts)}</g>{label}'


def _ticks(frame: Frame, low: float, high: float) -> str:
    """The ends of the range and zero, where it lies clear of both."""
    parts = [f'<line class="axis" x1="0" y1="{frame.height}" x2="100%" y2="{frame.height}"/>']
    inner = [0.0] if 0.15 < frame.share(0.0) < 0.85 else []
    for value in (low, *inner, high):
        label = "0" if value == 0 else _value(value)
        parts.append(
            f'<text class="tick" x="{frame.x(value)}" y="{frame.height + 17}" text-anchor="middle">{label}</text>'
        )
    return "".join(parts)


def _value(value: float) -> str:
    return text.significant(value).replace("-", "−")
