"""Where the bytes of the compact file are: bars by layer before and after, and a table by tensor.

Below it the table of Deep Compression (Han, Mao and Dally 2016, arXiv:1510.00149, tables 2 to 5) for the same weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gossamer.core.record import JobDocument, StoredRow
from gossamer.report import text
from gossamer.report.pareto import compact_sizes
from gossamer.report.sections import grid_of_pairs, section
from gossamer.report.text import escape

SMALL = 0.9  # of the network in float32: a file above it has no story to tell
_NAMED = 6  # layers with a colour of their own
_SHOWN = 12  # tensors in sight, the largest of the file


@dataclass(frozen=True, kw_only=True)
class BytesPart:
    """What belongs together in the bars. before, after: bytes in float32 and in the file. css: its colour."""

    name: str
    css: str
    before: float
    after: float


def is_small(document: JobDocument) -> bool:
    """Whether the compact file is clearly smaller than the network in float32, and its tensors are known."""
    sizes = compact_sizes(document)
    return bool(document.stored) and sizes is not None and sizes[1] < SMALL * sizes[0]


def bytes_section(document: JobDocument) -> str:
    """Bars and table; nothing where the file is hardly smaller than the network in float32."""
    sizes = compact_sizes(document)
    if sizes is None or not is_small(document):
        return ""
    dense, size = sizes
    found = byte_parts(document, dense, size)
    ratio = text.times(dense / size)
    bars = (
        _bar("Before, in float32", dense, [(p, p.before / dense) for p in found])
        + _bar("After, to the same scale", size, [(p, p.after / dense) for p in found])
        + _bar(f"After, drawn {ratio} larger", size, [(p, p.after / size) for p in found])
    )
    key = "".join(_key(part) for part in found)
    lead = (
        "Code bits: of a code of fixed length for the values that occur. Bits per weight: what the file takes. "
        "Order-0 bound: the bytes that every code needs that looks at one value at a time; the file may stay below it, "
        "as it also looks at the neighbours. Rate: bytes in float32 over bytes in the file."
    )
    table = f'<h3>By tensor</h3><p class="lead">{lead}</p>{_table(document.stored, dense, size)}'
    table += _as_published(document.stored)
    return section("Where the bytes are", f'<div class="stack">{bars}</div><ul class="parts">{key}</ul>{table}')


def byte_parts(document: JobDocument, dense: float, size: float) -> list[BytesPart]:
    """The layers that take most of the bytes before or after, in the order of the network; the rest; the header."""
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    for row in document.stored:
        layer = _layer(row)
        before[layer] = before.get(layer, 0.0) + row.dense_bytes
        after[layer] = after.get(layer, 0.0) + row.bytes
    for cost in document.layers_before:  # layers that are gone, or have other tensors now
        before[cost.name] = before.get(cost.name) or cost.bytes
    weight = {layer: max(before[layer] / dense, after.get(layer, 0.0) / size) for layer in before}
    large = sorted(weight, key=lambda layer: -weight[layer])[:_NAMED]
    found = [
        BytesPart(name=layer, css=f"part-{number}", before=before[layer], after=after.get(layer, 0.0))
        for number, layer in enumerate(layer for layer in before if layer in large)
    ]
    left = max(0.0, dense - sum(p.before for p in found)), sum(after.values()) - sum(p.after for p in found)
    if max(left) >= 0.5:
        found.append(BytesPart(name="everything else", css="part-rest", before=left[0], after=left[1]))
    header = max(0.0, size - sum(after.values()))
    return [*found, BytesPart(name="header and graph", css="part-header", before=0.0, after=header)]


def _layer(row: StoredRow) -> str:
    return row.name.rpartition(".")[0] or row.name


def _bar(title: str, size: float, shares: Sequence[tuple[BytesPart, float]]) -> str:
    """One bar; shares: of its length. A label is only seen where it fits."""
    whole = sum(share for _, share in shares)
    pieces = "".join(
        f'<i class="{part.css}" style="width:{100 * share:.3f}%">'
        f"<span>{escape(part.name)} {100 * share / whole:.0f} %</span></i>"
        for part, share in shares
        if share > 0
    )
    said = ", ".join(f"{part.name} {100 * share / whole:.1f} %" for part, share in shares)
    return (
        f'<p><span>{escape(title)}</span><data value="{size}">{text.size(size)}</data></p>'
        f'<div class="bar" role="img" aria-label="{escape(said)}">{pieces}</div>'
    )


def _key(part: BytesPart) -> str:
    change = text.size(part.after)
    if part.before:
        change = f'{text.size(part.before)} <span class="quiet">→</span> {change}'
    return f'<li><i class="{part.css}"></i><b>{escape(part.name)}</b><span>{change}</span></li>'


def _table(rows: Sequence[StoredRow], dense: float, size: float) -> str:
    columns = (
        "Tensor",
        "Weights",
        "Density",
        "Code bits",
        "Bits per weight",
        "Order-0 bound",
        "Bytes",
        "Share of file",
        "Rate",
    )
    large = sorted(rows, key=lambda row: -row.bytes)[:_SHOWN]
    shown = [row for row in rows if row in large]
    rest = [row for row in rows if row not in large]
    body = [_row(row, size) for row in shown]
    if rest:
        body.append(_together(f"{text.plural(len(rest), 'smaller tensor')}", rest, size))
    header = max(0.0, size - sum(row.bytes for row in rows))
    body.append(("Header and graph", "", "", "", "", "", *_bytes(header, size), ""))
    bits = f"{8 * size / max(1, sum(row.weights for row in rows)):.2f}"
    body.append((*_together("The file", rows, size)[:4], bits, "", *_bytes(size, size), _rate(dense, size)))
    table = grid_of_pairs(columns, body, "cards stored totals")
    if rest:
        others = grid_of_pairs(columns, [_row(row, size) for row in rest], "cards stored")
        table += f"<details><summary>The {text.plural(len(rest), 'smaller tensor')}</summary>{others}</details>"
    return table


_PUBLISHED = (
    "Layer",
    "Weights",
    "Density",
    "Weight bits",
    "Weight bits, Huffman",
    "Index bits",
    "Index bits, Huffman",
    "Rate",
    "Rate, Huffman",
    "Rate in this file",
)


def _as_published(rows: Sequence[StoredRow]) -> str:
    """The table of the paper: what its format would take for the same weights; nothing where none of them is zero."""
    rows = [row for row in rows if row.as_gaps]
    if not any(row.density < 1 for row in rows):
        return ""
    lead = (
        "Han, Mao and Dally 2016: the position of each weight as its distance from the one before, with fillers where "
        "that is too large, and a code for its value; both of fixed length, or by Huffman. Every value of a codebook "
        "takes 32 bits; tables of codes are not counted. Rates: bits over those in float32."
    )
    large = sorted(rows, key=lambda row: -row.weights)[:_SHOWN]
    body = [_published(f"<code>{escape(row.name)}</code>", [row]) for row in rows if row in large]
    table = grid_of_pairs(_PUBLISHED, [*body, _published("All weights", rows)], "cards stored totals")
    return f'<h3>As Deep Compression would store it</h3><p class="lead">{lead}</p>{table}'


def _published(name: str, rows: Sequence[StoredRow]) -> tuple[str, ...]:
    """One line of the paper's table for one or several layers."""
    weights, stored = sum(row.weights for row in rows), sum(row.as_gaps["stored"] for row in rows)
    bits = {
        key: sum(row.as_gaps["stored"] * row.as_gaps[key] for row in rows)
        for key in ("code", "coded_code", "index", "coded_index")
    }
    books = 32 * sum(row.as_gaps["book"] for row in rows)
    fixed, coded = books + bits["code"] + bits["index"], books + bits["coded_code"] + bits["coded_index"]
    here = 8 * sum(row.bytes for row in rows)
    return (
        name,
        _data(weights, text.count(weights)),
        f"{100 * sum(row.density * row.weights for row in rows) / weights:.1f} %",
        *(_data(bits[key] / max(1, stored), f"{bits[key] / max(1, stored):.1f}") for key in bits),
        *(_data(rate, f"{100 * rate:.2f} %") for rate in (one / 32 / weights for one in (fixed, coded, here))),
    )


def _row(row: StoredRow, size: float) -> tuple[str, ...]:
    shape = " × ".join(map(str, row.shape)) or "scalar"
    return (
        f"<code>{escape(row.name)}</code><small>{shape}, {escape(row.coding)}</small>",
        _data(row.weights, text.count(row.weights)),
        _data(row.density, f"{100 * row.density:.1f} %"),
        _data(row.code_bits, str(row.code_bits)),
        _data(row.bits_per_weight, f"{row.bits_per_weight:.2f}"),
        _data(row.entropy_bytes, text.count(row.entropy_bytes)),
        *_bytes(row.bytes, size),
        _rate(row.dense_bytes, row.bytes),
    )


def _together(name: str, rows: Sequence[StoredRow], size: float) -> tuple[str, ...]:
    """Several tensors as one line of the table."""
    weights, stored = sum(row.weights for row in rows), sum(row.bytes for row in rows)
    return (
        escape(name),
        _data(weights, text.count(weights)),
        f"{100 * sum(row.density * row.weights for row in rows) / max(1, weights):.1f} %",
        "",
        f"{8 * stored / max(1, weights):.2f}",
        text.count(sum(row.entropy_bytes for row in rows)),
        *_bytes(stored, size),
        _rate(sum(row.dense_bytes for row in rows), stored),
    )


def _data(value: float, shown: str) -> str:
    return f'<data value="{value}">{shown}</data>'


def _bytes(stored: float, size: float) -> tuple[str, str]:
    share = 100 * stored / size
    return _data(stored, text.count(stored)), f"{share:.1f} %" if share >= 0.1 or not stored else "&lt;&nbsp;0.1&nbsp;%"


def _rate(dense: float, stored: float) -> str:
    """How many times smaller; nothing where there is no counterpart or nothing is stored."""
    return text.times(dense / stored) if dense and stored >= 0.5 else ""
