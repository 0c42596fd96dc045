"""Every layer before and after, as a table with bars."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gossamer.core.record import JobDocument, LayerCost
from gossamer.report import text
from gossamer.report.text import escape


@dataclass(frozen=True)
class _Measure:
    name: str
    value: Callable[[LayerCost], float | None]
    show: Callable[[float], str]


_MEASURES = (
    _Measure("Parameters", lambda row: row.params, text.count),
    _Measure("MACs", lambda row: row.macs, text.large),
    _Measure("Time", lambda row: row.time_ms, text.milliseconds),
    _Measure("Channels", lambda row: row.out_channels, text.count),
)


def layer_tables(document: JobDocument) -> list[tuple[str, str]]:
    """(name, table as HTML) per measure that was taken."""
    pairs = _pairs(_with_norms(document.layers_before), _with_norms(document.layers_after))
    tables = []
    for measure in _MEASURES:
        values = [tuple(measure.value(row) if row else None for row in pair) for pair in pairs]
        if any(value is not None for pair in values for value in pair):
            tables.append((measure.name, _table(measure, pairs, values)))
    return tables


def _with_norms(rows: Sequence[LayerCost]) -> list[LayerCost]:
    """A batch norm counts to the layer before it, with which runtimes fuse it."""
    found: list[LayerCost] = []
    for row in rows:
        last = found[-1] if found else None
        if last is None or not row.kind.startswith("BatchNorm") or last.out_channels != row.out_channels:
            found.append(row)
            continue
        times = [one.time_ms for one in (last, row) if one.time_ms is not None]
        found[-1] = replace(
            last,
            kind=f"{last.kind} with norm",
            params=last.params + row.params,
            macs=last.macs + row.macs,
            bytes=last.bytes + row.bytes,
            time_ms=sum(times) if times else None,
        )
    return found


def _pairs(before: Sequence[LayerCost], after: Sequence[LayerCost]) -> list[tuple[LayerCost | None, LayerCost | None]]:
    """The same layer on both sides, in the order of the network; a new layer follows its predecessor."""
    old, new = _by_call(before), _by_call(after)
    order = list(old)
    place = 0
    for key in new:
        if key in old:
            place = order.index(key) + 1
        else:
            order.insert(place, key)
            place += 1
    return [(old.get(key), new.get(key)) for key in order]


def _by_call(rows: Sequence[LayerCost]) -> dict[tuple[str, int], LayerCost]:
    """Layers by name and call: a shared one is called more than once."""
    calls: Counter[str] = Counter()
    named = {}
    for row in rows:
        named[row.name, calls[row.name]] = row
        calls[row.name] += 1
    return named


def _table(
    measure: _Measure,
    pairs: Sequence[tuple[LayerCost | None, LayerCost | None]],
    values: Sequence[tuple[float | None, ...]],
) -> str:
    top = max((value for pair in values for value in pair if value is not None), default=0.0) or 1.0
    rows = []
    for (old, new), (before, after) in zip(pairs, values, strict=True):
        known = old or new
        if known is None:
            continue
        bars = bar("before", before, top) + bar("after", after, top)
        rows.append(
            f'<tr><th scope="row"><span class="layer"><span class="name">{escape(known.name)}'
            f"<small>{escape(known.kind)} {_shape(old, new)}</small></span>"
            f'<span class="bars" aria-hidden="true">{bars}</span></span></th>'
            f"<td>{_number(measure, before, old, 'new')}</td><td>{_number(measure, after, new, 'gone')}</td>"
            f'<td class="wide">{relative(before, after)}</td></tr>'
        )
    total = _total(measure, values) if measure.name != "Channels" else ""
    return (
        f'<table class="layers"><caption class="hidden">{escape(measure.name)} per layer</caption><thead><tr>'
        '<th scope="col">Layer</th><th scope="col">Before</th><th scope="col">After</th>'
        f'<th scope="col" class="wide">Change</th></tr></thead><tbody>{"".join(rows)}</tbody>{total}</table>'
    )


def _shape(old: LayerCost | None, new: LayerCost | None) -> str:
    shapes = [f"{row.in_channels}→{row.out_channels}" for row in (old, new) if row]
    return escape(" now ".join(dict.fromkeys(shapes)))


def bar(css: str, value: float | None, top: float) -> str:
    """A bar as long as the value is of the largest."""
    width = 0.0 if value is None else 100 * value / top
    return f'<i class="{css}" style="width:{width:.2f}%"></i>'


def _number(measure: _Measure, value: float | None, row: LayerCost | None, absent: str) -> str:
    if row is None:
        return f'<span class="quiet">{absent}</span>'
    return (
        '<span class="quiet">not measured</span>'
        if value is None
        else f'<data value="{value}">{measure.show(value)}</data>'
    )


def relative(before: float | None, after: float | None) -> str:
    """`−38 %`; nothing where a side is missing."""
    if before is None or after is None or before == 0:
        return ""
    if before == after:
        return '<span class="quiet">unchanged</span>'
    return f"{100 * (after / before - 1):+.0f} %".replace("-", "−")


def _total(measure: _Measure, values: Sequence[tuple[float | None, ...]]) -> str:
    before, after = (sum(pair[side] or 0.0 for pair in values) for side in (0, 1))
    cells = "".join(f'<td><data value="{value}">{measure.show(value)}</data></td>' for value in (before, after))
    change = f'<td class="wide">{relative(before, after)}</td>'
    return f'<tfoot><tr><th scope="row">All layers</th>{cells}{change}</tr></tfoot>'
