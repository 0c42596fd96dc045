"""What came of teaching a student: how it learned, whom it agrees with, how sure it is, where it looks."""

from collections.abc import Sequence

from gossamer.record import Example, JobDocument, Reliability, Teaching
from gossamer.report import text
from gossamer.report.plot import Frame, axes, curve, figure, line
from gossamer.report.sections import grid, section
from gossamer.report.table import ORIGINAL, measure
from gossamer.report.text import escape

ALONE = "alone"
_KNOWN = {ORIGINAL: "teacher", "result": "student", ALONE: "student alone"}
_SIDE = 150  # pixels of a reliability diagram


def teaching_sections(document: JobDocument) -> str:
    """All of them, as far as the document has something to show; nothing where no student was taught."""
    taught = document.teaching
    if taught is None:
        return ""
    return "".join(
        (_curves(document, taught), _classes(taught), _agreement(taught), _sureness(document, taught), _looks(taught))
    )


def named(subject: str) -> str:
    """What a network of the records is called."""
    return _KNOWN.get(subject, subject)


def _top1(document: JobDocument, subject: str, split: str) -> float | None:
    rows = (r for r in document.records if r.what == "top1" and r.subject == subject)
    return next((r.value for r in rows if r.conditions.get("split") == split), None)


def _curves(document: JobDocument, taught: Teaching) -> str:
    """Accuracy on validation after each epoch, and the teacher's as a line."""
    lines = {one.name: [(epoch, y) for epoch, y in enumerate(one.top1, 1) if y is not None] for one in taught.curves}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return ""
    goal = _top1(document, ORIGINAL, "validation")
    values = [y for points in lines.values() for _, y in points]
    high = min(100.0, max([*values, goal or 0.0]) + 1)
    # The first epochs may be far below all others; what matters is where the curves end.
    low = max(0.0, min(min(values), high - 2), min(points[-1][1] for points in lines.values()) - 15)
    last = max(x for points in lines.values() for x, _ in points)
    frame = Frame(0, last, low, high, height=300)
    body = [axes(frame, "epoch", x_ticks=min(8, last), y_title=f"{measure(document)} on validation, %")]
    if goal is not None:
        body.append(line(frame, (0, goal), (last, goal), "budget"))
    for name, points in lines.items():
        shown = [(x, max(y, low)) for x, y in points]
        shown = shown if len(shown) > 1 else [(0, shown[0][1]), *shown]
        tip = [named(name), f"epoch {points[-1][0]}: {text.percent(points[-1][1])}"]
        body.append(curve(frame, shown, f"curve {_hue(name)}", tip))
    key = "".join(f'<span><i class="{_hue(name)}"></i>{escape(named(name))}</span>' for name in lines)
    key += '<span><i class="dashed"></i>teacher</span>' if goal is not None else ""
    seconds = {one.name: sum(one.seconds) / len(one.seconds) for one in taught.curves if one.seconds}
    listing = grid(
        ("Network", "Last epoch", "Best", "One epoch"),
        [
            (
                escape(named(n)),
                text.percent(p[-1][1]),
                text.percent(max(y for _, y in p)),
                text.duration(seconds[n]) if n in seconds else "–",
            )
            for n, p in lines.items()
        ],
    )
    label = f"{text.titled(measure(document))} on validation data after each epoch, with and without a teacher"
    asked = next(
        (r for r in document.records if r.what == "teacher_time" and r.conditions.get("pupil") == "result"), None
    )
    lead = f"{escape(text.titled(measure(document)))} on validation data after each epoch."
    if asked is not None:
        lead += (
            f' The teacher takes <data value="{asked.value}">{text.milliseconds(asked.value)}</data> for a batch of '
            f"{escape(asked.conditions.get('batch', ''))} ({escape(asked.conditions.get('mode', ''))})."
        )
    page = figure("".join(body), frame, label) + f'<p class="key">{key}</p>' + listing
    return section("How the student learned", page, lead)


def _hue(name: str) -> str:
    return {"result": "named-1", ALONE: "named-0"}.get(name, "named-2")


def _classes(taught: Teaching) -> str:
    """Accuracy class by class, and what the teacher was worth there."""
    if not taught.classes:
        return ""
    subjects = list(taught.networks)
    gains = {row.name: row.top1["result"] - row.top1[ALONE] for row in taught.classes if ALONE in row.top1}
    most = max([1.0, *(abs(gain) for gain in gains.values())])
    # The gain first: a phone shows the columns on the left.
    head = '<th scope="col">gain</th>' if gains else ""
    head += "".join(f'<th scope="col">{escape(named(s))}</th>' for s in subjects)
    rows = []
    for row in sorted(taught.classes, key=lambda r: -gains.get(r.name, 0.0)):
        cells = _gain(gains[row.name], most) if gains else ""
        cells += "".join(f'<td><data value="{row.top1[s]}">{text.points(row.top1[s])}</data></td>' for s in subjects)
        label = f"{escape(row.name)}<small>{text.plural(row.samples, 'sample')}</small>"
        rows.append(f'<tr><th scope="row">{label}</th>{cells}</tr>')
    lead = "Percent of the test samples of each class that are right."
    if gains:
        lead += " Gain: points of the taught student over the same student trained alone."
    return section("Class by class", _heat("accuracy by class", "Class", head, rows), lead)


def _gain(gain: float, most: float) -> str:
    css = "won" if gain >= 0 else "lost"
    sign = "+" if gain > 0 else ""
    return (
        f'<td class="{css}" style="--share:{60 * abs(gain) / most:.0f}%"><data value="{gain}">{sign}{text.points(gain)}'
        "</data></td>"
    )


def _heat(label: str, first: str, head: str, rows: Sequence[str]) -> str:
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table class="heat"><thead><tr>'
        f'<th scope="col">{escape(first)}</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _agreement(taught: Teaching) -> str:
    """Who names the same class as whom."""
    if not taught.agreement:
        return ""
    subjects = list(taught.networks)
    head = "".join(f'<th scope="col">{escape(named(s))}</th>' for s in subjects)
    rows = []
    for subject, shares in zip(subjects, taught.agreement, strict=True):
        cells = "".join(
            '<td class="quiet">–</td>'
            if other == subject
            else f'<td class="won" style="--share:{max(0.0, share - 50):.0f}%"><data value="{share}">'
            f"{text.percent(share)}</data></td>"
            for other, share in zip(subjects, shares, strict=True)
        )
        rows.append(f'<tr><th scope="row">{escape(named(subject))}</th>{cells}</tr>')
    lead = "Share of test samples for which two networks name the same class, right or wrong."
    return section("Who agrees with whom", _heat("agreement", "", head, rows), lead)


def _sureness(document: JobDocument, taught: Teaching) -> str:
    """A reliability diagram for each network."""
    if not taught.reliability:
        return ""
    measured = {(r.subject, r.what): r for r in document.records if r.what in ("ece", "nll")}
    plots = []
    for one in taught.reliability:
        ece, nll = measured.get((one.subject, "ece")), measured.get((one.subject, "nll"))
        said = [f'error <data value="{ece.value}">{100 * ece.value:.2f} %</data>'] if ece else []
        said += [f'NLL <data value="{nll.value}">{nll.value:.3f}</data>'] if nll else []
        plots.append(
            f"<figure><figcaption>{escape(named(one.subject))}<small>{', '.join(said)}</small></figcaption>"
            f'<div class="plot">{_diagram(one)}</div></figure>'
        )
    lead = (
        "How often a network is right when it is so sure of its class, on test: on the dashed line it is as sure as it "
        "is right; below it, too sure. Dots grow with the number of samples. Error: expected calibration error."
    )
    return section("Sure and right", f'<div class="weights">{"".join(plots)}</div>', lead)


def _diagram(one: Reliability) -> str:
    frame = Frame(0, 100, 0, 100, height=_SIDE)
    body = [axes(frame, "sure, %", "right, %", x_ticks=4, y_ticks=4), line(frame, (0, 0), (100, 100), "front")]
    whole = max(1, sum(one.samples))
    for n, sure, right in zip(one.samples, one.confidence, one.accuracy, strict=True):
        if n:
            radius = 2.5 + 8 * (n / whole) ** 0.5
            tip = f"sure {100 * sure:.1f} %\nright {100 * right:.1f} %\n{text.plural(n, 'sample')}"
            body.append(
                f'<g class="mark"><g tabindex="0" role="img" aria-label="{escape(tip)}" data-tip="{escape(tip)}">'
                f'<circle cx="{frame.x(100 * sure)}" cy="{frame.y(100 * right)}" r="{radius:.1f}"/></g></g>'
            )
    label = f"Reliability diagram of the {named(one.subject)}"
    return f'<svg role="group" aria-label="{escape(label)}" width="100%" height="{_SIDE}">{"".join(body)}</svg>'


def _looks(taught: Teaching) -> str:
    """Attention maps side by side."""
    if not taught.examples:
        return ""
    layers = ", ".join(f"{escape(named(s))}: <code>{escape(layer)}</code>" for s, layer in taught.layers.items())
    lead = f"Mean square over the channels of layers of one resolution, bright is much. {layers}."
    return section("Where they look", f'<div class="looks">{"".join(map(_look, taught.examples))}</div>', lead)


def _look(example: Example) -> str:
    figures = [("", example.image, "image")]
    figures += [(named(s), image, f"attention of the {named(s)}") for s, image in example.maps.items()]
    shown = "".join(
        f'<figure><img src="data:image/png;base64,{escape(image)}" alt="{escape(alt)}">'
        f"<figcaption>{escape(name) or '&nbsp;'}<small>{_said(example, name)}</small></figcaption></figure>"
        for name, image, alt in figures
    )
    return f'<div><h3>{escape(example.label)}</h3><div class="row">{shown}</div></div>'


def _said(example: Example, name: str) -> str:
    """The class that a network names, where it is the wrong one."""
    said = next((y for subject, y in example.said.items() if named(subject) == name), example.label)
    return f'<span class="missed">{escape(said)}</span>' if said != example.label else ""
