"""Marks for plots whose widths are percentages: they stretch with the page while type and dots keep their size.

An SVG without a view box takes x in percent and y in pixels. That is all that a responsive plot needs: no script has to
lay it out, it prints, and it reads the same on a telephone as on a wall.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from gossamer.report.text import escape

Point = tuple[float, float]


@dataclass(frozen=True)
class Frame:
    """A plot area: x from 0 to 100 percent of the width, y from `height` pixels (y_low) to 0 (y_high, which may be the
    smaller number of the two: of errors the best lies at the top).

    log_x: x is logarithmic; x_low must be above 0 then.
    """

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    height: int = 380
    log_x: bool = False

    def share(self, value: float) -> float:
        """Position as a share of the width."""
        if self.log_x:
            return math.log(value / self.x_low) / math.log(self.x_high / self.x_low)
        return (value - self.x_low) / (self.x_high - self.x_low)

    def x(self, value: float) -> str:
        """Position in percent of the width."""
        return f"{100 * self.share(value):.2f}%"

    def y(self, value: float) -> str:
        """Position in pixels from the top."""
        return f"{self.height * (self.y_high - value) / (self.y_high - self.y_low):.1f}"


def ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """About `wanted` round numbers from low to high: multiples of 1, 2, 2.5 or 5 times a power of ten."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 10) -> list[float]:
    """1, 2 and 5 times the powers of ten from low to high; the powers alone where these are more than `most`."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    found = [value for value in found if low <= value <= high]
    return found if len(found) <= most else [value for value in found if round(math.log10(value), 6).is_integer()]


def number(value: float, step: float) -> str:
    """A tick label with the decimals that its step needs."""
    places = 0
    while places < 6 and abs(round(step, places) - step) > step * 1e-6:
        places += 1
    return f"{value:,.{places}f}".replace("-", "−")


def axes(frame: Frame, x_title: str, y_title: str, *, x_ticks: int = 8, y_ticks: int = 7) -> str:
    """Grid lines, tick labels and titles; every second label of x can be left out on a narrow page (`minor`)."""
    parts = [f'<text class="title" x="0" y="-16">{escape(y_title)}</text>']
    bottom, top = sorted((frame.y_low, frame.y_high))
    ys = ticks(bottom, top, y_ticks)
    for value in ys:
        label = number(value, ys[1] - ys[0] if len(ys) > 1 else value or 1.0)
        parts.append(line(frame, (frame.x_low, value), (frame.x_high, value), "grid"))
        parts.append(f'<text class="tick" x="0" dx="-10" y="{frame.y(value)}" dy="4" text-anchor="end">{label}</text>')
    xs = (log_ticks if frame.log_x else ticks)(frame.x_low, frame.x_high, x_ticks)
    for i, value in enumerate(xs):
        step = value if frame.log_x or len(xs) < 2 else xs[1] - xs[0]
        label = number(value, step or 1.0)
        minor = " minor" if i % 2 else ""
        parts.append(
            f'<text class="tick{minor}" x="{frame.x(value)}" y="{frame.height + 20}" '
            f'text-anchor="middle">{label}</text>'
        )
    parts.append(line(frame, (frame.x_low, frame.y_low), (frame.x_high, frame.y_low), "axis"))
    parts.append(f'<text class="title" x="100%" y="{frame.height + 42}" text-anchor="end">{escape(x_title)}</text>')
    return "".join(parts)


def line(frame: Frame, start: Point, end: Point, css: str) -> str:
    """A straight line between two points in data units."""
    (x1, y1), (x2, y2) = start, end
    return f'<line class="{css}" x1="{frame.x(x1)}" y1="{frame.y(y1)}" x2="{frame.x(x2)}" y2="{frame.y(y2)}"/>'


def path(frame: Frame, points: Sequence[Point], css: str) -> str:
    """Straight lines from point to point."""
    return "".join(line(frame, a, b, css) for a, b in pairwise(points))


def figure(body: str, frame: Frame, label: str) -> str:
    """The marks as an SVG that is as wide as what holds it; label: what a screen reader says of the whole."""
    return (
        f'<div class="plot"><svg role="group" aria-label="{escape(label)}" width="100%" height="{frame.height}">'
        f"{body}</svg></div>"
    )


def mark(frame: Frame, at: Point, css: str, tip: Sequence[str], shape: str = "dot") -> str:
    """One point that tells about itself when pointed at or reached with the keyboard; tip: its lines of text."""
    shapes = {
        "dot": '<circle r="6.5"/>',
        "ring": '<circle r="5.5"/>',
        "diamond": '<path d="M0-9 9 0 0 9-9 0Z"/>',
        "star": '<circle class="halo" r="13"/><circle r="7.5"/>',
        "cross": '<path d="M-5-5 5 5M-5 5 5-5"/>',
        "below": '<path d="M-6-9H6L0 0Z"/>',
    }
    text = "\n".join(tip)
    return (
        f'<svg x="{frame.x(at[0])}" y="{frame.y(at[1])}" overflow="visible" class="mark {css}">'
        f'<g tabindex="0" role="img" aria-label="{escape(", ".join(tip))}" data-tip="{escape(text)}">'
        f'<circle class="hit" r="16"/>{shapes[shape]}</g></svg>'
    )


def curve(frame: Frame, points: Sequence[Point], css: str, tip: Sequence[str]) -> str:
    """A line that tells about itself; tip: its lines of text."""
    text = "\n".join(tip)
    return (
        f'<g class="{css}" tabindex="0" role="img" aria-label="{escape(", ".join(tip))}" data-tip="{escape(text)}">'
        f"{path(frame, points, 'hit')}{path(frame, points, 'stroke')}</g>"
    )
