"""The parts of the page, each from the job document to HTML. What is missing is said, not left out."""

from collections.abc import Mapping, Sequence
from typing import Any

from gossamer.core.record import Edit, JobDocument, Record
from gossamer.core.units import PERCENT
from gossamer.report import text
from gossamer.report.layers import layer_tables
from gossamer.report.pareto import pareto, size_limit, standing, with_final_times
from gossamer.report.score import Score
from gossamer.report.table import (
    ORIGINAL,
    Row,
    TableCell,
    show,
    summary_rows,
)
from gossamer.report.text import escape
from gossamer.report.verdict import NO_TEST, clauses

_SHOWN_EDITS = 12
_PURPOSE = {
    "model.onnx": "float32, for ONNX Runtime, OpenVINO and other runtimes that read ONNX",
    "model.int8.onnx": "8-bit weights and activations, for the same runtimes; the file to ship",
    "model.gsr": "the smallest: gossamer.load runs it without the class, or fills a network of the class",
    "model.pt2": "for PyTorch without the class: torch.export.load, or gossamer's commands",
    "model.safetensors": "the weights, for gossamer.load_weights into a network of the class, and for more training",
    "recipe.yaml": "the steps that were taken: gossamer compress --recipe takes them again",
}


def section(title: str, body: str, lead: str = "") -> str:
    """A titled part of the page; lead: one plain sentence under the title, as HTML."""
    if lead:
        body = f'<p class="lead">{lead}</p>{body}'
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def grid_of_pairs(columns: Sequence[str], rows: Sequence[Sequence[str]], css: str = "cards") -> str:
    """A table whose first cells are row headers; `cards` fall apart on a narrow page. Cells are HTML."""
    head = "".join(f'<th scope="col" role="columnheader">{escape(name)}</th>' for name in columns)
    body = []
    for first, *others in rows:
        cells = "".join(
            f'<td role="cell" data-label="{escape(name)}">{cell}</td>'
            for name, cell in zip(columns[1:], others, strict=True)
        )
        body.append(f'<tr role="row"><th scope="row" role="rowheader">{first}</th>{cells}</tr>')
    return (
        f'<table class="{css}" role="table"><thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(body)}</tbody></table>'
    )


def tabs(group: str, panels: Sequence[tuple[str, str]]) -> str:
    """Panels of which one is shown at a time, without a script."""
    choices = "".join(
        f'<input type="radio" name="{group}" id="{group}-{i}"{" checked" if i == 0 else ""}>'
        f'<label for="{group}-{i}">{escape(name)}</label>'
        for i, (name, _) in enumerate(panels)
    )
    bodies = "".join(f'<div class="panel">{body}</div>' for _, body in panels)
    return f'<div class="tabs">{choices}{bodies}</div>'


def pairs(values: Mapping[str, Any]) -> str:
    """Names and values as a description list."""
    items = "".join(
        f"<div><dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(text.plain_text(value))}</dd></div>"
        for name, value in values.items()
    )
    return f'<dl class="pairs">{items}</dl>'


def cell(value: TableCell | None) -> str:
    """A number with what stands next to it in small type."""
    if value is None:
        return '<span class="quiet">not measured</span>'
    shown = escape(value.text) if value.value is None else f'<data value="{value.value}">{escape(value.text)}</data>'
    return shown + (f"<small>{escape(value.detail)}</small>" if value.detail else "")


def sides(document: JobDocument) -> tuple[str, str]:
    """What the two networks are that are compared: those of a job of compression, or of teaching."""
    return ("before", "after") if document.teaching is None else ("teacher", "student")


def tiles(document: JobDocument) -> str:
    """The three or four numbers that matter, large."""
    rows = summary_rows(document)
    goal_runtime = str(document.goal.get("runtime", ""))
    there = [row for row in rows if row.what != "latency" or goal_runtime in ("", row.runtime)]
    first = {row.what: row for row in reversed(there)}
    order = ("latency", "score", "file_bytes", "macs")
    if size_limit(document) is not None:
        order = ("compact_bytes", "score", "latency", "macs")
    picked = [first[what] for what in order if what in first]
    shown = [_tile(row, _tone(document, row)) for row in picked if row.before and row.after]
    return f'<ul class="tiles">{"".join(shown)}</ul>' if shown else ""


def _tile(row: Row, tone: str) -> str:
    before, after = (c.text if c else "" for c in (row.before, row.after))
    return (
        f'<li class="{tone}"><span>{escape(row.name)}</span><strong>{escape(row.change.text)}</strong>'
        f"<small>{escape(before)} → {escape(after)}</small></li>"
    )


def _tone(document: JobDocument, row: Row) -> str:
    """The verdict to colour a row with: accuracy that was allowed to be lost is no alarm."""
    allowed, lost = document.goal.get("max_drop"), row.change.value
    fine = row.what == "score" and allowed is not None and lost is not None and lost <= float(allowed)
    return "" if fine else row.verdict


def goal_section(document: JobDocument) -> str:
    """What was asked and what came of it."""
    words = {
        True: '<b class="met">met</b>',
        False: '<b class="missed">missed</b>',
        None: '<b class="quiet">unknown</b>',
    }
    rows = [(escape(p.name), escape(p.asked), escape(p.got), words[p.met]) for p in clauses(document)]
    return section("The goal", grid_of_pairs(("Asked for", "Limit", "Reached", "Verdict"), rows))


def asked_section(document: JobDocument) -> str:
    """The goal and what was tried for it; nothing where none was set."""
    return goal_section(document) + pareto_section(document) if document.goal else ""


def summary_section(document: JobDocument) -> str:
    """The headline table."""
    rows, (before, after) = summary_rows(document), sides(document)
    title = f"{before.capitalize()} and {after}"
    if not rows:
        return section(title, "", "Nothing was measured.")
    body = [
        (
            f"{escape(row.name)}<small>{escape(row.conditions)}</small>",
            cell(row.before),
            cell(row.after),
            f'<span class="verdict {_tone(document, row)}">{cell(row.change)}</span>',
        )
        for row in rows
    ]
    score = Score.of(document)
    unit = "in percent" if score.unit == PERCENT else f"in {score.unit}" if score.unit else ""
    better = "" if score.higher_is_better else " (lower is better)"
    name = " ".join(word for word in (escape(text.titled(score.name)), escape(unit)) if word)
    lead = f"{name}{better} with 95 % interval, latency as median with quartiles."
    if score.split == "validation":
        lead += f" <b>{escape(NO_TEST)}</b>"
    slow = [text.runtime(row.runtime) for row in rows if row.what == "latency" and row.verdict in ("same", "worse")]
    if slow:
        lead += f" <b>Not faster on {escape(' and '.join(dict.fromkeys(slow)))}.</b>"
    columns = ("", before.capitalize(), after.capitalize(), "Change")
    return section(title, grid_of_pairs(columns, body, "cards summary"), lead)


def latency_section(document: JobDocument) -> str:
    """Bars with quartiles per runtime: the original, and the result in every precision that was timed there."""
    rows = [row for row in summary_rows(document) if row.what == "latency"]
    records = [record for record in document.records if record.what == "latency"]
    if not rows:
        return ""
    top = 1.02 * max(record.value if record.high is None else record.high for record in records)
    items = []
    for row in rows:
        place = (row.runtime, row.batch)
        here = [r for r in records if tuple(str(r.conditions.get(k, "")) for k in ("runtime", "batch")) == place]
        items.append(
            f'<div class="runtime"><h3>{escape(text.runtime(row.runtime))} <small>{escape(row.conditions)}</small></h3>'
            f'<span class="verdict {row.verdict}">{escape(row.change.text)}</span>'
            f"{''.join(_latency_bar(record, top) for record in here)}</div>"
        )
    key = f'<p class="key">{_swatches(document)}<span><i class="whisker"></i>quartiles</span></p>'
    return section("Time on each runtime", key + "".join(items))


def _swatches(document: JobDocument) -> str:
    names = zip(("before", "after"), sides(document))
    return "".join(f'<span><i class="{css}"></i>{name}</span>' for css, name in names)


def _latency_bar(record: Record, top: float) -> str:
    css = "before" if record.subject == ORIGINAL else "after"
    whisker = ""
    if record.low is not None and record.high is not None:
        left, right = 100 * record.low / top, 100 * record.high / top
        whisker = f'<u style="left:{left:.2f}%;width:{right - left:.2f}%"></u>'
    return (
        f'<span class="dtype">{escape(record.conditions.get("dtype", record.subject))}</span>'
        f'<div class="track" aria-hidden="true"><i class="{css}" style="width:{100 * record.value / top:.2f}%"></i>'
        f'{whisker}</div><span class="ms">{cell(TableCell(text=show(record).text, value=record.value))}</span>'
    )


def pareto_section(document: JobDocument) -> str:
    """Every state that was tried."""
    document, score = with_final_times(document), Score.of(document)
    plots = pareto(document)
    if not document.states:
        return section("What was tried", "", "No state was recorded.")
    rows = [
        (
            escape(s.name),
            "–" if s.score is None else score.text(s.score),
            "–" if s.drop is None else text.points(s.drop),
            "<br>".join(f"{text.milliseconds(ms)} {escape(text.runtime(name))}" for name, ms in s.latency_ms.items())
            or "–",
            text.large(s.macs),
            text.count(s.params),
            "–" if s.file_bytes is None else text.size(s.file_bytes),
            standing(s) + (f"<small>{escape(s.note)}</small>" if s.note else ""),
        )
        for s in document.states
    ]
    columns = ("State", text.titled(score.name), "Drop", "Latency", "MACs", "Parameters", "File", "Verdict")
    table = grid_of_pairs(columns, rows)
    listing = f"<details><summary>{text.plural(len(rows), 'state')} as a table</summary>{table}</details>"
    marks = {"original": "◆ original", "accepted": "● accepted", "rejected": "✕ rejected"}
    marks |= {"brief": "○ after a brief training"} if any(s.brief for s in document.states) else {}
    key = " ".join(f'<span class="k {css}">{shown}</span>' for css, shown in marks.items())
    key = f'<p class="key">{key} <span><i class="front"></i>best of the accepted</span></p>'
    body = (tabs("pareto", plots) + key if plots else "") + listing
    return section("What was tried", body, "One mark per network that was judged, always on the validation split.")


def layers_section(document: JobDocument) -> str:
    """Bars per layer."""
    tables = layer_tables(document)
    if not tables:
        return section("Layer by layer", "", "No layer was listed.")
    key = f'<p class="key">{_swatches(document)}</p>'
    return section("Layer by layer", tabs("layers", tables) + key)


def edits_section(document: JobDocument) -> str:
    """The history with proofs."""
    edits = document.edits
    if not edits:
        return section("History of edits", "", "The network was not edited.")
    proofs = [edit.proof for edit in edits if edit.proof is not None]
    lead = f"{text.plural(len(edits), 'edit')}."
    if proofs:
        lead += (
            f" {len(proofs)} of them proven on the example input: the changed network gave the outputs of the original "
            "with the cut parts masked, largest relative difference "
            f'<b><data value="{max(proofs)}">{text.proof(max(proofs))}</data></b>.'
        )
    columns = ("Target", "Edit", "Change", "Proof")
    body = grid_of_pairs(columns, [_edit(edit) for edit in edits[:_SHOWN_EDITS]])
    if len(edits) > _SHOWN_EDITS:
        rest = grid_of_pairs(columns, [_edit(edit) for edit in edits[_SHOWN_EDITS:]])
        body += f"<details><summary>{len(edits) - _SHOWN_EDITS} more</summary>{rest}</details>"
    return section("History of edits", body, lead)


def _edit(edit: Edit) -> tuple[str, ...]:
    proof = '<span class="quiet">training followed</span>'
    if edit.proof is not None:
        proof = f'<data value="{edit.proof}">{text.proof(edit.proof)}</data>'
    note = f"<small>{escape(edit.note)}</small>" if edit.note else ""
    return (
        f"<code>{escape(edit.target)}</code>{note}",
        f"{escape(edit.kind)}<small><code>{escape(edit.method)}</code></small>",
        f'{escape(edit.before)} <span class="quiet">→</span> {escape(edit.after)}',
        proof,
    )


def int8_section(document: JobDocument) -> str:
    """The int8 fallback sequence, tried only as far as needed."""
    steps, score = document.int8_steps, Score.of(document)
    if not steps:
        return section("Steps to int8", "", "The network was not quantized.")
    rows = [
        (
            f"{i}. {escape(step.name)}" + (f"<small>{escape(step.note)}</small>" if step.note else ""),
            f'<data value="{step.score}">{score.text(step.score)}</data>',
            f'<data value="{step.drop}">{text.points(step.drop)} points</data>',
            '<b class="met">accepted</b>' if step.accepted else '<b class="missed">rejected</b>',
        )
        for i, step in enumerate(steps, 1)
    ]
    lead = "Climbed only as far as needed, judged on the validation split."
    return section("Steps to int8", grid_of_pairs(("Step", text.titled(score.name), "Drop", "Verdict"), rows), lead)


def files_section(document: JobDocument) -> str:
    """What lies in the folder."""
    if not document.files:
        return section("Files", "", "No file was written.")
    rows = [
        (
            f"<code>{escape(name)}</code><small>{escape(_PURPOSE.get(name, ''))}</small>",
            f'<data value="{size}">{text.size(size)}</data>',
            f"{text.count(size)}",
        )
        for name, size in document.files.items()
    ]
    return section("Files", grid_of_pairs(("File", "Size", "Bytes"), rows, "narrow"))


def making_section(document: JobDocument) -> str:
    """Command, data, time, environment: all that is needed to make it again."""
    body = f'<pre class="command"><code>{escape(document.command)}</code></pre>'
    seconds = {name: text.duration(value) for name, value in document.seconds.items()}
    if seconds:
        seconds["together"] = text.duration(sum(document.seconds.values()))
    goal = {name: value for name, value in document.goal.items() if value is not None}
    for title, values in (
        ("Goal", goal),
        ("Data", document.task),
        ("Time spent", seconds),
        ("Environment", document.environment),
    ):
        if values:
            body += f"<h3>{title}</h3>{pairs(values)}"
    return section("How it was made", body)


def records_section(document: JobDocument) -> str:
    """Every measured number with its conditions."""
    if not document.records:
        return ""
    rows = []
    for record in document.records:
        shown = show(record)
        conditions = ", ".join(f"{k.replace('_', ' ')} {text.plain_text(v)}" for k, v in record.conditions.items())
        rows.append(
            (
                f"{escape(record.what.replace('_', ' '))}<small>{escape(record.subject)}</small>",
                cell(shown),
                "" if record.n is None else text.count(record.n),
                escape(conditions),
            )
        )
    table = grid_of_pairs(("What", "Value", "n", "Conditions"), rows)
    return section(
        "All measurements", f"<details><summary>{text.plural(len(rows), 'record')}</summary>{table}</details>"
    )
