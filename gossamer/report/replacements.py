"""Layers that gave their place to others: what stood there, what stands there now, what it cost, what its rank left."""

import re
from collections.abc import Callable, Sequence

from gossamer.core.edit_details import BlockPart, SpectrumRow, SwapRecord
from gossamer.core.record import Edit, JobDocument, LayerCost
from gossamer.report import text
from gossamer.report.layers import bar, relative
from gossamer.report.plot import Frame, axes, line, mark
from gossamer.report.sections import section
from gossamer.report.text import escape

_SHOWN = 8
_HEIGHT = 96

Value = Callable[[LayerCost], float | None]


def swaps_section(document: JobDocument) -> str:
    """A row and a figure for each; nothing where no layer was swapped."""
    edits = [edit for edit in document.edits if edit.swapped is not None]
    if not edits:
        return ""
    figures = [_figure(edit, edit.swapped) for edit in edits if edit.swapped is not None]
    body = _table(document, edits) + f'<div class="swaps">{"".join(figures[:_SHOWN])}</div>'
    if len(figures) > _SHOWN:
        rest = f'<div class="swaps">{"".join(figures[_SHOWN:])}</div>'
        body += f"<details><summary>{len(figures) - _SHOWN} more</summary>{rest}</details>"
    lead = (
        "Error: |new − old| / |old| of a layer's outputs on calibration data, of its weights where no data was used; "
        "before the network was trained again. Before and after: the time of a batch, in the layer and in all that "
        "stands in its place."
    )
    return section("Layers that were replaced", body, lead)


def spent(rows: Sequence[LayerCost], names: Sequence[str], value: Value) -> float | None:
    """The sum over everything at these places and below; None where nothing there was measured."""
    values = [value(row) for row in rows if any(row.name == n or row.name.startswith(f"{n}.") for n in names)]
    known = [v for v in values if v is not None]
    return sum(known) if known else None


def _table(document: JobDocument, edits: Sequence[Edit]) -> str:
    rows = []
    for edit in edits:
        names = [edit.target, *(edit.swapped.gone if edit.swapped else ())]
        times = _both(document, names, lambda row: row.time_ms)
        macs = _both(document, names, lambda row: row.macs)
        rows.append((edit, times, macs))
    top = max((t for _, times, _ in rows for t in times if t is not None), default=0.0) or 1.0
    body = "".join(_row(edit, times, macs, top) for edit, times, macs in rows)
    head = "".join(f'<th scope="col"{css}>{name}</th>' for name, css in _COLUMNS)
    return f'<table class="layers replaced"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


_COLUMNS = (
    ("Layer", ""),
    ("Error", ""),
    ("MACs", ' class="wide"'),
    ("Before", ""),
    ("After", ""),
    ("Change", ' class="wide"'),
)


def _both(document: JobDocument, names: Sequence[str], value: Value) -> tuple[float | None, float | None]:
    return spent(document.layers_before, names, value), spent(document.layers_after, names, value)


def _row(
    edit: Edit, times: tuple[float | None, float | None], macs: tuple[float | None, float | None], top: float
) -> str:
    before, after = times
    bars = bar("before", before, top) + bar("after", after, top)
    error = edit.swapped.error if edit.swapped else None
    cells = [
        "" if error is None else f'<data value="{error}">{text.percent(100 * error)}</data>',
        _shown(before, text.milliseconds),
        _shown(after, text.milliseconds),
    ]
    cells = [f"<td>{cell}</td>" for cell in cells]
    cells.insert(1, f'<td class="wide">{relative(*macs)}</td>')
    return (
        f'<tr><th scope="row"><span class="layer"><span class="name">{escape(edit.target)}'
        f'<small>{escape(edit.method)}</small></span><span class="bars" aria-hidden="true">{bars}</span></span></th>'
        f'{"".join(cells)}<td class="wide">{relative(before, after)}</td></tr>'
    )


def _shown(value: float | None, show: Callable[[float], str]) -> str:
    return '<span class="quiet">–</span>' if value is None else f'<data value="{value}">{show(value)}</data>'


def _figure(edit: Edit, swapped: SwapRecord) -> str:
    plots = "".join(_spectrum(row) for row in swapped.spectra)
    said = f"{', '.join(map(_said, swapped.before))} became {', '.join(map(_said, swapped.after))}"
    return (
        f"<figure><figcaption><code>{escape(edit.target)}</code><small>{escape(edit.method)}</small></figcaption>"
        f'<div class="flow" role="img" aria-label="{escape(said)}">{_boxes(swapped.before, "before")}'
        f'<span class="turn">→</span>{_boxes(swapped.after, "after")}</div>'
        f'<div class="spectra">{plots}</div></figure>'
    )


def _boxes(parts: Sequence[BlockPart], css: str) -> str:
    """Branches below one another, each indented by the columns that come before it."""
    rows: dict[int, list[BlockPart]] = {}
    for part in parts:
        rows.setdefault(part.row, []).append(part)
    lines = []
    for row in sorted(rows):
        boxes = "".join(_box(part) for part in rows[row])
        lines.append(f'<p style="--at:{rows[row][0].column}">{boxes}</p>')
    return f'<div class="boxes {css}">{"".join(lines)}</div>'


def _box(part: BlockPart) -> str:
    css = "" if part.outputs else ' class="light"'
    return (
        f"<span{css}><b>{escape(_kind(part))}</b>{''.join(f'<small>{escape(n)}</small>' for n in _notes(part))}</span>"
    )


def _kind(part: BlockPart) -> str:
    """`batch norm 2d` for BatchNorm2d."""
    return part.kind if part.outputs else re.sub(r"(?<=[a-z])(?=[A-Z0-9])", " ", part.kind).lower()


def _notes(part: BlockPart) -> list[str]:
    if not part.outputs:
        return []
    notes = [f"{part.inputs}→{part.outputs}"]
    if part.groups > 1:
        notes.append("depthwise" if part.groups == part.inputs else f"{part.groups} groups")
    return [*notes, *([f"stride {part.stride}"] if part.stride else [])]


def _said(part: BlockPart) -> str:
    return " ".join([_kind(part), *_notes(part)]).replace("→", " to ")


def _spectrum(row: SpectrumRow) -> str:
    """A curve, its kept part in colour, and a dot at the rank."""
    last = row.ranks[-1]
    if len(row.ranks) < 2:
        return ""
    frame = Frame(row.ranks[0], last, 0.0, max([1.0, *row.values]), height=_HEIGHT)
    points = list(zip(row.ranks, row.values))
    at = next((i for i, (n, _) in enumerate(points) if n >= row.rank), len(points) - 1)
    here = points[at]
    if row.what == "singular values":
        left = points[at + 1][1] if at + 1 < len(points) else 0.0
        y, worth = "singular values", f"the largest left out is {text.significant(left)} of the largest"
    else:
        y, worth = "relative error", f"relative error {text.percent(100 * here[1])}"
    tip = [f"{row.mode}: {row.rank} of {last}", worth]
    body = (
        axes(frame, "", y, x_ticks=3, y_ticks=2)
        + _area(frame, points[: at + 1], "kept")
        + _area(frame, points[at:], "left")
        + line(frame, (here[0], 0.0), (here[0], frame.y_high), "cut")
        + mark(frame, here, "", tip)
    )
    label = f"{row.what.capitalize()}, {row.mode} {row.rank} of {last}"
    rank = f'<b><data value="{row.rank}">{row.rank}</data></b>'
    title = f'<p class="note">{escape(row.mode.capitalize())} {rank} of {last}</p>'
    plot = f'<svg role="group" aria-label="{escape(label)}" width="100%" height="{_HEIGHT}">{body}</svg>'
    return f'<div>{title}<div class="plot">{plot}</div></div>'


def _area(frame: Frame, points: Sequence[tuple[float, float]], css: str) -> str:
    """What lies below a curve; its own view box stretches with the page."""
    if len(points) < 2:
        return ""
    places = [f"{100 * frame.share(x):.2f} {frame.y(y)}" for x, y in points]
    first, last = (place.split()[0] for place in (places[0], places[-1]))
    path = f"M{first} {_HEIGHT}L{'L'.join(places)}L{last} {_HEIGHT}Z"
    return (
        f'<svg viewBox="0 0 100 {_HEIGHT}" preserveAspectRatio="none" width="100%" height="{_HEIGHT}">'
        f'<path class="{css}" d="{path}"/></svg>'
    )
