"""How networks learned, and what they get right class by class."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gossamer.core.record import ClassRow, Curve, JobDocument
from gossamer.core.units import PERCENT
from gossamer.report import text
from gossamer.report.plot import Frame, axes, curve, figure, line
from gossamer.report.score import Score
from gossamer.report.sections import grid_of_pairs, section
from gossamer.report.table import AFTER, ORIGINAL
from gossamer.report.text import escape

BY_SHARE = "Percent of the test samples of each class that are right."
BY_AP = "Average precision of each class on test data, percent."


@dataclass(frozen=True)
class Line:
    """A curve as it is drawn. name: what it is called; hue: the number of its colour."""

    name: str
    hue: int
    curve: Curve


def job_curves_section(document: JobDocument) -> str:
    """The trainings that the result went through; nothing where there was none."""
    times, seen = Counter(one.name for one in document.curves), Counter[str]()
    lines = []
    for number, one in enumerate(document.curves):
        seen[one.name] += 1  # a shape that competed was trained several times under one name
        name = one.name if times[one.name] == 1 else f"{one.name}, {seen[one.name]} of {times[one.name]}"
        lines.append(Line(name, number % 3, one))
    return learning_section(document, "How the score came back", lines, reference="original")


def job_classes_section(document: JobDocument) -> str:
    """What was lost class by class."""
    subjects = list(dict.fromkeys(subject for row in document.classes for subject in row.top1))
    named = {subject: "original" if subject == ORIGINAL else "result" for subject in subjects}
    note = "points of the result over the original"
    if document.detectors is None:
        return classes_section(document.classes, named, against=ORIGINAL, note=note)
    return classes_section(document.classes, named, against=ORIGINAL, note=note, lead=BY_AP, noun="object")


def learning_section(
    document: JobDocument, title: str, lines: Sequence[Line], *, reference: str, more: str = ""
) -> str:
    """The score on validation data after each epoch, and that of the original or teacher as a line."""
    points = {one.name: [(epoch, y) for epoch, y in enumerate(one.curve.score, 1) if y is not None] for one in lines}
    lines = [one for one in lines if points[one.name]]
    if not lines:
        return ""
    goal, score = _validation_score(document), Score.of(document)
    low, high = _range([points[one.name] for one in lines], goal, score)
    last = max(x for one in lines for x, _ in points[one.name])
    frame = Frame(0, last, low, high, height=300)
    unit = f", {score.unit}" if score.unit else ""
    body = [axes(frame, "epoch", x_ticks=min(8, last), y_title=f"{score.name} on validation{unit}")]
    if goal is not None:
        body.append(line(frame, (0, goal), (last, goal), "budget"))
    for one in lines:
        worst = max if score.sign > 0 else min
        shown = [(x, worst(y, low)) for x, y in points[one.name]]
        tip = [one.name, f"epoch {shown[-1][0]}: {score.text(points[one.name][-1][1])}"]
        shown = shown if len(shown) > 1 else [(0, shown[0][1]), *shown]
        body.append(curve(frame, shown, f"curve named-{one.hue}", tip))
    key = "".join(f'<span><i class="named-{one.hue}"></i>{escape(one.name)}</span>' for one in lines)
    key += f'<span><i class="dashed"></i>{escape(reference)}</span>' if goal is not None else ""
    listing = grid_of_pairs(
        ("Training", "Last epoch", "Best", "One epoch"), [_row(one, points[one.name], score) for one in lines]
    )
    what = text.titled(score.name)
    label = f"{what} on validation data after each epoch"
    page = figure("".join(body), frame, label) + f'<p class="key">{key}</p>' + listing
    return section(title, page, f"{escape(label)}.{more}")


def _range(curves: Sequence[Sequence[tuple[int, float]]], goal: float | None, score: Score) -> tuple[float, float]:
    """The worst and the best value of the axis. The first epochs may be far worse than all others; what matters is
    where the curves end."""
    sign = score.sign  # the larger the better from here on
    values = [sign * y for points in curves for _, y in points]
    best, last = max([*values, *([sign * goal] if goal is not None else [])]), min(sign * p[-1][1] for p in curves)
    if score.unit == PERCENT:
        high = min(100.0, best + 1) if sign > 0 else min(0.0, best + 1)
        low = max(min(min(values), high - 2), last - 15)
        return sign * (max(0.0, low) if sign > 0 else low), sign * high
    span = max(best - last, 0.02 * abs(best), 1e-9)
    return sign * max(min(values), last - 5 * span), sign * (best + 0.1 * span)


def _row(one: Line, points: Sequence[tuple[int, float]], score: Score) -> tuple[str, ...]:
    best = max if score.higher_is_better else min
    seconds = one.curve.seconds
    return (
        escape(one.name),
        score.text(points[-1][1]),
        score.text(best(y for _, y in points)),
        text.duration(sum(seconds) / len(seconds)) if seconds else "–",
    )


def _validation_score(document: JobDocument) -> float | None:
    """Of the original or the teacher."""
    rows = (r for r in document.records if r.what == "score" and r.subject == ORIGINAL)
    found = next((r.value for r in rows if r.conditions.get("split") == "validation"), None)
    return found if found is not None or not document.states else document.states[0].score


def classes_section(
    rows: Sequence[ClassRow],
    named: Mapping[str, str],
    *,
    against: str,
    note: str,
    lead: str = BY_SHARE,
    noun: str = "sample",
) -> str:
    """What share of each class is right, or another number of each class.

    named: what subjects are called, in the order of the columns. against: the subject that the gain of the result is
    over, note: what that is; empty for none. lead: what the numbers are, noun: what is counted of each class.
    """
    if not rows:
        return ""
    result = next((s for s in AFTER if s in rows[0].top1), "")
    gains = {row.name: row.top1[result] - row.top1[against] for row in rows} if against and result else {}
    most = max([1.0, *(abs(gain) for gain in gains.values())])
    # The gain first: a phone shows the columns on the left.
    head = '<th scope="col">gain</th>' if gains else ""
    head += "".join(f'<th scope="col">{escape(name)}</th>' for name in named.values())
    body = []
    for row in sorted(rows, key=lambda r: -gains.get(r.name, 0.0)):
        cells = _gain(gains[row.name], most) if gains else ""
        cells += "".join(f'<td><data value="{row.top1[s]}">{text.points(row.top1[s])}</data></td>' for s in named)
        label = f"{escape(row.name)}<small>{text.plural(row.samples, noun)}</small>"
        body.append(f'<tr><th scope="row">{label}</th>{cells}</tr>')
    lead += f" Gain: {escape(note)}." if gains else ""
    return section("Class by class", heat_table("accuracy by class", "Class", head, body), lead)


def _gain(gain: float, most: float) -> str:
    css = "won" if gain >= 0 else "lost"
    sign = "+" if gain > 0 else ""
    return (
        f'<td class="{css}" style="--share:{60 * abs(gain) / most:.0f}%"><data value="{gain}">{sign}{text.points(gain)}'
        "</data></td>"
    )


def heat_table(label: str, first: str, head: str, rows: Sequence[str]) -> str:
    """A table whose cells are coloured by their value; it scrolls on a narrow page."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table class="heat"><thead><tr>'
        f'<th scope="col">{escape(first)}</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )
