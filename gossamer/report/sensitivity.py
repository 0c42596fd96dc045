"""How much accuracy each group costs by itself when it is cut: the plot of `gossamer analyze --sensitivity`."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gossamer.core.record import write_text
from gossamer.errors import BadInput
from gossamer.report import text
from gossamer.report.page import shell
from gossamer.report.plot import (
    Frame,
    Point,
    axes,
    curve,
    figure,
    line,
)
from gossamer.report.text import escape

Sensitivity = tuple[str, float, float]
_NAMED = 3


def write_sensitivity(
    rows: Iterable[Sensitivity], path: str | Path, *, title: str, budget: float | None = None
) -> Path:
    """Write the plot and its table as one self-contained HTML page.

    Args:
        rows: (group, sparsity in [0, 1), drop in points), in any order; only the group is cut and nothing is trained.
        path: of the page.
        title: its heading.
        budget: points, drawn as a line; None: no line.

    Returns:
        The path.

    Raises:
        BadInput: there are no rows, or a drop is not finite.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = write_sensitivity([("conv1", 0.5, 1.2)], f"{folder}/page.html", title="tiny")
        ...     page.stat().st_size > 1000
        True
    """
    curves = _curves(rows)
    lead = (
        "Each group cut alone, nothing retrained. The "
        f"{text.plural(min(_NAMED, len(curves)), 'most sensitive group')} in colour, the others grey."
    )
    body = (
        f'<header><p class="brand">gossamer<span>sensitivity</span></p><h1 class="met">{escape(title)}</h1>'
        f'<p class="lead">{lead}</p></header>'
        f"<main>{_plot(curves, budget)}<section><h2>Points lost at each sparsity</h2>{_table(curves)}</section></main>"
    )
    target = Path(path)
    write_text(target, shell(f"gossamer: {title}", body))
    return target


def _curves(rows: Iterable[Sensitivity]) -> dict[str, list[Point]]:
    """Points of each group by rising sparsity; the most sensitive group first."""
    curves: dict[str, list[Point]] = {}
    for group, sparsity, drop in rows:
        if not (0 <= sparsity < 1 and abs(drop) <= 100):
            raise BadInput(
                f"sensitivity of group {group!r}: sparsity {sparsity} must be in [0, 1) and drop {drop} in [-100, 100]"
            )
        curves.setdefault(group, []).append((sparsity, drop))
    if not curves:
        raise BadInput("sensitivity: there is nothing to plot; give at least one (group, sparsity, drop)")
    worst = {group: sum(drop for _, drop in points) / len(points) for group, points in curves.items()}
    return {group: sorted(curves[group]) for group in sorted(curves, key=lambda group: -worst[group])}


def _plot(curves: Mapping[str, Sequence[Point]], budget: float | None) -> str:
    """Drop against sparsity; no cut, no loss is the point that all curves share."""
    every = [point for points in curves.values() for point in points]
    low, high = min(0.0, *(y for _, y in every)), max(1.0, *(y for _, y in every))
    frame = Frame(0.0, max(x for x, _ in every) * 105 or 1.0, low - 0.02 * (high - low), high * 1.05)
    body = [axes(frame, "sparsity of the group, %", "points of accuracy lost")]
    if budget is not None and budget <= high:
        body.append(line(frame, (frame.x_low, budget), (frame.x_high, budget), "budget"))
    for rank, (group, points) in reversed(list(enumerate(curves.items()))):
        css = f"curve named-{rank}" if rank < _NAMED else "curve"
        tip = [group, *(f"{100 * x:.0f} %: {text.points(y)} points" for x, y in points)]
        path = [(0.0, 0.0), *((100 * x, y) for x, y in points if x > 0)]
        body.append(curve(frame, path, css, tip))
    key = "".join(
        f'<span><i class="named-{rank}"></i>{escape(group)}</span>' for rank, group in enumerate(list(curves)[:_NAMED])
    )
    label = "Points of accuracy lost against sparsity, one curve per group"
    return figure("".join(body), frame, label) + f'<p class="key">{key}</p>'


def _table(curves: Mapping[str, Sequence[Point]]) -> str:
    """Groups by sparsities, shaded by loss."""
    columns = sorted({x for points in curves.values() for x, _ in points})
    top = max(1.0, *(y for points in curves.values() for _, y in points))
    head = "".join(f'<th scope="col">{100 * x:.3g} %</th>' for x in columns)
    rows = []
    for group, points in curves.items():
        drops = dict(points)
        cells = "".join(_cell(drops.get(x), top) for x in columns)
        rows.append(f'<tr><th scope="row"><code>{escape(group)}</code></th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="points lost, by group and sparsity">'
        f'<table class="heat"><thead><tr><th scope="col">Group</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(drop: float | None, top: float) -> str:
    if drop is None:
        return '<td class="quiet">–</td>'
    # The square root keeps small losses apart next to a layer that collapses.
    share = (max(drop, 0.0) / top) ** 0.5
    return f'<td style="--share:{60 * share:.0f}%"><data value="{drop}">{text.points(drop)}</data></td>'
