"""Was the goal met, and by how much, in plain words."""

from dataclasses import dataclass

from gossamer.core.record import JobDocument
from gossamer.report import text
from gossamer.report.score import Score
from gossamer.report.table import Row, drop_record, summary_rows

# Points. A loss is far too large when its whole 95 % interval on test lies above: what the goal allows, or FAR where no
# goal says so. Students are smaller than their teachers by design: they are set against their training alone by FAR.
FAR = 2.0
BEHIND_TEACHER = 10.0
NO_TEST = "There are no test data: results are those on the validation data, which also chose the network."
WIDE = 0.25  # of the median: quartiles further apart are those of a machine that does something else, too


@dataclass(frozen=True, kw_only=True)
class Clause:
    """One thing that was asked for. met: None where it was not measured. short: how far a missed one is away."""

    name: str
    asked: str
    got: str
    met: bool | None
    short: str = ""


def warnings(document: JobDocument) -> list[str]:
    """What went far worse than random fluctuation explains, in words with the numbers."""
    taught = document.teaching is not None
    budget = document.goal.get("max_drop")
    split = Score.of(document).split
    bound = float(budget) if budget is not None else BEHIND_TEACHER if taught else FAR
    alone = next((r for r in document.records if r.what == "drop" and r.conditions.get("against") == "alone"), None)
    found = []
    for drop, limit, than in (
        (drop_record(document, split), bound, "the teacher" if taught else "the original"),
        (alone, FAR, "the same student trained alone"),
    ):
        if drop is not None and drop.low is not None and drop.high is not None and drop.low > limit:
            span = f"95 % interval {text.points(drop.low)} to {text.points(drop.high)}"
            found.append(
                f"{text.points(drop.value)} points worse on {split} than {than} ({span}): more than chance explains "
                f"above {limit:g}"
            )
    return found


def unsteady(document: JobDocument) -> str:
    """That times scattered so much that something else ran on the machine; "" where none did."""
    wide = [
        f"{row.subject} on {text.runtime(str(row.conditions.get('runtime', '')))}"
        for row in document.records
        if row.what == "latency" and row.low is not None and row.high is not None
        if row.high - row.low > WIDE * row.value
    ]
    if not wide:
        return ""
    return f"the machine was busy: quartiles further apart than {WIDE:.0%} of the median for {', '.join(wide)}"


def sentence(document: JobDocument) -> str:
    """`Goal met: 4.06× faster on ONNX Runtime (at least 4× asked), 0.32 points of top-1 lost on test.`"""
    without = f" {NO_TEST}" if Score.of(document).split == "validation" else ""
    return _sentence(document) + without


def _sentence(document: JobDocument) -> str:
    if document.teaching is not None:
        return _taught(document)
    if not document.goal:
        return _without_goal(document)
    budget, *gains = clauses(document)
    said = [f"{part.got} ({part.asked} asked{part.short})" for part in gains if part.met is not None]
    if budget.met is False:
        said.append(f"{budget.got} ({budget.asked})")
    else:
        said += _lost(document)
    state = "Goal met" if document.met else "Goal missed"
    return f"{state}: {', '.join(said)}." if said else f"{state}."


def _taught(document: JobDocument) -> str:
    """`Student: 93.10 % on test, 1.20 points better than alone, 0.40 points below its teacher, 16.0× fewer MACs.`"""
    rows = {row.what: row for row in summary_rows(document)}
    score, split = rows.get("score"), Score.of(document).split
    said = [f"{score.after.text} on {split}"] if score and score.after else []
    gap = next((r for r in document.records if r.what == "drop" and r.conditions.get("against") == "alone"), None)
    if gap is not None:
        said.append(f"{text.points(abs(gap.value))} points {'below' if gap.value > 0 else 'above'} training alone")
    drop = drop_record(document, split)
    if drop is not None:
        said.append(f"{text.points(abs(drop.value))} points {'below' if drop.value > 0 else 'above'} its teacher")
    macs = rows.get("macs")
    if macs is not None and macs.ratio is not None and macs.ratio > 1:
        said.append(f"{text.times(macs.ratio)} fewer MACs")
    state = "Student taught, but far too weak" if warnings(document) else "Student taught"
    return f"{state}: {', '.join(said)}." if said else f"{state}."


def _without_goal(document: JobDocument) -> str:
    row = next((r for r in summary_rows(document) if r.what == "latency" and r.ratio is not None), None)
    said = [f"{row.change.text} on {text.runtime(row.runtime)}"] if row else []
    said += _lost(document)
    state = "Recipe done, but far too much is lost" if warnings(document) else "Recipe done"
    return f"{state}: {', '.join(said)}." if said else f"{state}."


def _lost(document: JobDocument) -> list[str]:
    score = Score.of(document)
    drop = drop_record(document, score.split)
    if drop is None:
        return []
    became = "lost" if drop.value >= 0 else "gained"
    return [f"{text.points(abs(drop.value))} points of {score.name} {became} on {score.split}"]


def clauses(document: JobDocument) -> list[Clause]:
    """The budget of the metric first, then every gain that was asked for; nothing where no goal was set."""
    if not document.goal:
        return []
    rows = summary_rows(document)
    gains = [name for name in _MEASURED if document.goal.get(name) is not None]
    return [_budget(document), *(_gain(document, rows, name) for name in gains)]


def _budget(document: JobDocument) -> Clause:
    allowed = document.goal.get("max_drop")
    split = "validation" if drop_record(document, "validation") else Score.of(document).split
    drop, name = drop_record(document, split), text.titled(Score.of(document).name)
    if drop is None:
        return Clause(name=name, asked=_allowed(allowed), got="not measured", met=None)
    lost = f"{text.points(abs(drop.value))} points {'lost' if drop.value >= 0 else 'gained'} on {split}"
    return Clause(
        name=name,
        asked=_allowed(allowed),
        got=lost,
        met=None if allowed is None else drop.value <= float(allowed),
    )


def _allowed(allowed: float | None) -> str:
    return "no limit" if allowed is None else f"at most {float(allowed):.3g} points lost"


_MEASURED = {
    "speedup": "latency",
    "latency_ms": "latency",
    "macs": "macs",
    "params": "params",
    "file_bytes": "compact_bytes",
    "compression_ratio": "compact_bytes",
    "peak_memory": "peak_memory",
}


def _gain(document: JobDocument, rows: list[Row], name: str) -> Clause:
    asked = float(document.goal[name])
    row = next((r for r in rows if r.what == _MEASURED[name] and _on_goal_runtime(document, r)), None)
    where = f" on {text.runtime(document.goal['runtime'])}" if row and row.what == "latency" and row.runtime else ""
    if name in ("speedup", "compression_ratio"):
        title = "Speed-up" if name == "speedup" else "Compression ratio"
        wanted = f"at least {asked:g}×"
        if row is None or row.ratio is None:
            return Clause(name=title, asked=wanted, got="not measured", met=None)
        got = row.change.text if row.verdict != "same" else f"not faster ({text.times(row.ratio)})"
        return Clause(
            name=title,
            asked=wanted,
            got=got + where,
            met=row.ratio >= asked,
            short="" if row.ratio >= asked else f", {text.significant(100 - 100 * row.ratio / asked, 2)} % short",
        )
    title, unit = _TITLES[name]
    wanted = f"at most {_amount(name, asked)}"
    if row is None or row.after is None or row.after.value is None:
        return Clause(name=title, asked=wanted, got="not measured", met=None)
    got = f"{_amount(name, row.after.value)}{unit}{where}"
    over = row.after.value / asked - 1
    return Clause(
        name=title,
        asked=wanted,
        got=got,
        met=over <= 0,
        short="" if over <= 0 else f", {text.significant(100 * over, 2)} % over",
    )


_TITLES = {
    "latency_ms": ("Latency", ""),
    "macs": ("MACs", " MACs"),
    "params": ("Parameters", " parameters"),
    "file_bytes": ("Compact file", " on disk"),
    "peak_memory": ("Peak memory", " of peak memory"),
}


def _amount(name: str, value: float) -> str:
    match name:
        case "latency_ms":
            return text.milliseconds(value)
        case "file_bytes" | "peak_memory":
            return text.size(value)
        case "params":
            return text.count(value)
        case _:
            return text.large(value)


def _on_goal_runtime(document: JobDocument, row: Row) -> bool:
    """Is this the row that the goal speaks of? Other costs than latency have one row each."""
    goal = document.goal
    return row.what != "latency" or (
        row.runtime == str(goal.get("runtime", row.runtime)) and row.batch in ("", str(goal.get("batch", row.batch)))
    )
