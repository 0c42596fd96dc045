"""The summary of a job as plain rows: what the command line, the README and the page show in the same words.

Of the records it reads `what`, `subject` ("original" is before; the deployed network, "result int8" or else "result",
is after), and of the conditions `split` (absent means test), `device`, `runtime`, `batch`, `threads`, `dtype`, `file`.
Before and after are only compared where device, runtime, batch, threads and the suffix of the file are the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gossamer.core.record import JobDocument, Record
from gossamer.core.units import PERCENT
from gossamer.report import text
from gossamer.report.score import Score

Verdict = Literal["better", "same", "worse", ""]
Key = tuple[str, ...]
ORIGINAL = "original"
AFTER = ("result int8", "result")
NOTICED = 0.005  # share by which two numbers must differ to be shown as different


@dataclass(frozen=True, kw_only=True)
class TableCell:
    """One number of a table.

    Args:
        text: as it is shown.
        detail: the interval or exact count next to it.
        value: in the unit of its record.

    Example:
        >>> TableCell(text="93.1 %", detail="92.6 to 93.6", value=93.1).value
        93.1
    """

    text: str
    detail: str = ""
    value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the summary.

    Attributes:
        what: the kind of `Record`.
        name: in words.
        conditions: that it was measured under, in words.
        before: of the original; None where it was not measured.
        after: of the result; None where it was not measured.
        change: in words.
        verdict: of `change`; "" where there is nothing to compare.
        ratio: before over after; None without both.
        runtime: of a latency or memory.
        batch: of a latency.

    Example:
        >>> Row(what="params", name="Parameters", conditions="", before=None, after=None, change=TableCell(text="2×"),
        ...     verdict="better").change.text
        '2×'
    """

    what: str
    name: str
    conditions: str
    before: TableCell | None
    after: TableCell | None
    change: TableCell
    verdict: Verdict
    ratio: float | None = None
    runtime: str = ""
    batch: str = ""


def summary_rows(document: JobDocument) -> list[Row]:
    """The score, latency on each runtime, MACs, parameters, file bytes and peak memory, as far as they were measured.

    Args:
        document: the record of a job.

    Returns:
        One row for each.

    Example:
        >>> from gossamer.core.record import JobDocument
        >>> rows = [Record(subject=s, what="params", value=n, unit="") for s, n in (("original", 200), ("result", 50))]
        >>> empty = dict.fromkeys(("records", "edits", "states", "layers_before", "layers_after", "int8_steps"), [])
        >>> empty |= dict(command="", goal={}, task={}, met=True, missed=[], seconds={}, environment={}, files={})
        >>> [(row.name, row.change.text) for row in summary_rows(JobDocument(**{**empty, "records": rows}))]
        [('Parameters', '4.00× smaller')]
    """
    return [
        _score_row(document, *pair) if what == "score" else _cost_row(what, *pair)
        for what in ("score", "latency", "macs", "params", "compact_bytes", "file_bytes", "peak_memory")
        for pair in _pairs(document, what)
    ]


def markdown(rows: list[Row]) -> str:
    r"""The rows as a Markdown table.

    Args:
        rows: of `summary_rows`.

    Returns:
        Text with a line for each row after two of the header.

    Example:
        >>> markdown([]).count("\n") >= 1
        True
    """
    lines = ["| | before | after | change |", "|---|---:|---:|---|"]
    for row in rows:
        title = f"{row.name} ({row.conditions})" if row.conditions else row.name
        cells = (title, plain_rows(row.before), plain_rows(row.after), plain_rows(row.change))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def plain_rows(cell: TableCell | None) -> str:
    """A cell in one line: `18.7 ms (18.0–20.1)`."""
    if cell is None:
        return "–"
    return f"{cell.text} ({cell.detail})" if cell.detail else cell.text


def show(record: Record) -> TableCell:
    """A record's number in the notation of its kind."""
    value, span = record.value, ""
    if record.low is not None and record.high is not None:
        span = f"{_end(record, record.low)} to {_end(record, record.high)}"
    match record.what:
        case "score":
            shown = text.score(value, record.unit)
        case "agreement":
            shown = text.percent(value)
        case "drop":
            shown = f"{text.points(value)} points"
        case "latency":
            shown = text.milliseconds(value)
        case "macs":
            shown = text.large(value)
        case "params":
            shown = text.count(value)
        case "file_bytes" | "compact_bytes" | "peak_memory":
            shown = text.size(value)
            span = f"{text.count(value)} bytes" if record.what != "peak_memory" and value >= 1000 else span
        case "max_difference":
            shown = text.proof(value)
        case _:
            shown = f"{text.significant(value)} {record.unit}".strip()
    return TableCell(text=shown, detail=span, value=value)


def _end(record: Record, value: float) -> str:
    """An end of an interval: the number without its unit."""
    if record.what == "latency":
        return text.significant(value)
    if record.what == "score" and record.unit != PERCENT:
        return text.score(value, "")
    return text.points(value)


def drop_record(document: JobDocument, split: str) -> Record | None:
    """The paired drop of the deployed network on a split."""
    rows = [r for r in document.records if r.what == "drop" and _split(r) == split and "against" not in r.conditions]
    return next((r for subject in AFTER for r in rows if r.subject == subject), None)


def _split(record: Record) -> str:
    return str(record.conditions.get("split", "test"))


def _key(record: Record) -> Key:
    """What must be equal for two records to be compared."""
    file = str(record.conditions.get("file", ""))
    suffix = file.rpartition(".")[2] if file else ""
    return (*(str(record.conditions.get(name, "")) for name in ("device", "runtime", "batch", "threads")), suffix)


def _pairs(document: JobDocument, what: str) -> Iterator[tuple[Record | None, Record | None]]:
    """Before and after under equal conditions, in the order of the records."""
    last = Score.of(document).split
    rows = [r for r in document.records if r.what == what and (what != "score" or _split(r) == last)]
    for key in dict.fromkeys(_key(r) for r in rows):
        same = {r.subject: r for r in rows if _key(r) == key}
        after = next((same[subject] for subject in AFTER if subject in same), None)
        if ORIGINAL in same or after:
            yield same.get(ORIGINAL), after


def _score_row(document: JobDocument, before: Record | None, after: Record | None) -> Row:
    score = Score.of(document)
    drop = drop_record(document, score.split)
    verdict: Verdict = ""
    change = TableCell(text="–")
    if drop is None and before and after:
        drop = Record(subject=after.subject, what="drop", value=score.lost(before.value, after.value), unit="points")
    if drop is not None:
        lost = drop.value >= 0
        span = show(drop).detail
        low, high = (
            (drop.low, drop.high) if drop.low is not None and drop.high is not None else (drop.value, drop.value)
        )
        verdict = "worse" if low > 0 else "better" if high < 0 else "same"
        if span and not lost:
            span = f"{text.points(-high)} to {text.points(-low)}"
        change = TableCell(
            text=f"{text.points(abs(drop.value))} points {'lost' if lost else 'gained'}", detail=span, value=drop.value
        )
    samples = next((f"{text.count(r.n)} samples" for r in (after, before) if r and r.n), "")
    return Row(
        what="score",
        name=f"{text.titled(score.name)} on {score.split}",
        conditions=samples,
        before=show(before) if before else None,
        after=show(after) if after else None,
        change=change,
        verdict=verdict,
    )


def _cost_row(what: str, before: Record | None, after: Record | None) -> Row:
    ratio = before.value / after.value if before and after and after.value > 0 else None
    change, verdict = _change(what, before, after, ratio)
    known = after or before
    runtime = str(known.conditions.get("runtime", "")) if known else ""
    return Row(
        what=what,
        name=_name(what, known),
        conditions=_conditions(what, before, after),
        before=show(before) if before else None,
        after=show(after) if after else None,
        change=change,
        verdict=verdict,
        ratio=ratio,
        runtime=runtime,
        batch=str(known.conditions.get("batch", "")) if known else "",
    )


def _name(what: str, record: Record | None) -> str:
    conditions = record.conditions if record else {}
    match what:
        case "latency":
            return f"Latency on {text.runtime(conditions.get('runtime', 'unnamed runtime'))}"
        case "file_bytes":
            suffix = str(conditions.get("file", "")).rpartition(".")[2]
            return f"File (.{suffix})" if suffix else "File"
        case "compact_bytes":
            return "Compact file (.gsr)"
        case "peak_memory":
            return "Peak memory"
        case _:
            return {"macs": "Multiply-adds (MACs)", "params": "Parameters"}[what]


def _conditions(what: str, before: Record | None, after: Record | None) -> str:
    """`float32 → int8, batch 64, 2 threads`."""
    known = after or before
    if known is None or what not in ("latency", "peak_memory"):
        return ""
    dtypes = list(dict.fromkeys(str(r.conditions["dtype"]) for r in (before, after) if r and "dtype" in r.conditions))
    parts = [" → ".join(dtypes)]
    if what == "peak_memory" and "runtime" in known.conditions:
        parts.append(text.runtime(known.conditions["runtime"]))
    if "batch" in known.conditions:
        parts.append(f"batch {known.conditions['batch']}")
    if "threads" in known.conditions:
        parts.append(text.plural(int(known.conditions["threads"]), "thread"))
    return ", ".join(part for part in parts if part)


def _change(what: str, before: Record | None, after: Record | None, ratio: float | None) -> tuple[TableCell, Verdict]:
    if before is None or after is None:
        return TableCell(text="not measured before" if before is None else "not measured after"), ""
    if ratio is None:
        return TableCell(text="–"), ""
    faster, slower = ("faster", "slower") if what == "latency" else ("smaller", "larger")
    verdict: Verdict = "same"
    if abs(ratio - 1) < NOTICED:
        verdict = "same"
    elif _top(after) < _bottom(before):
        verdict = "better"
    elif _bottom(after) > _top(before):
        verdict = "worse"
    if verdict == "better":
        return TableCell(text=f"{text.times(ratio)} {faster}", value=ratio), verdict
    if verdict == "worse":
        return TableCell(text=f"{text.times(1 / ratio)} {slower}", value=ratio), verdict
    detail = "quartiles overlap" if before.low is not None and before.value != after.value else ""
    return TableCell(text=f"not {faster}", detail=detail, value=ratio), verdict


def _bottom(record: Record) -> float:
    return record.value if record.low is None else record.low


def _top(record: Record) -> float:
    return record.value if record.high is None else record.high
