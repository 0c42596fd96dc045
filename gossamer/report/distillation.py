"""What came of teaching a student: how it learned, whom it agrees with, how sure it is, where it looks."""

from gossamer.core.record import Example, JobDocument, Reliability, Teaching
from gossamer.report import text
from gossamer.report.curves import BY_AP, Line, classes_section, heat_table, learning_section
from gossamer.report.plot import Frame, axes, line
from gossamer.report.sections import section
from gossamer.report.table import ORIGINAL
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
        (
            _curves(document, taught),
            _classes(document, taught),
            _agreement(taught),
            _confidence(document, taught),
            _attention_maps(taught),
        )
    )


def _curves(document: JobDocument, taught: Teaching) -> str:
    """How the student learned, with and without a teacher."""
    asked = next(
        (r for r in document.records if r.what == "teacher_time" and r.conditions.get("student") == "result"), None
    )
    more = ""
    if asked is not None:
        more = (
            f' The teacher takes <data value="{asked.value}">{text.milliseconds(asked.value)}</data> for a batch of '
            f"{escape(asked.conditions.get('batch', ''))} ({escape(asked.conditions.get('mode', ''))})."
        )
    hues = {"result": 1, ALONE: 0}
    lines = [Line(named_networks(c.name), hues.get(c.name, 2), c) for c in taught.curves]
    return learning_section(document, "How the student learned", lines, reference="teacher", more=more)


def _classes(document: JobDocument, taught: Teaching) -> str:
    """Class by class, and what the teacher was worth there."""
    against = ALONE if any(ALONE in row.top1 for row in taught.classes) else ""
    note = "points of the taught student over the same student trained alone"
    columns = {subject: named_networks(subject) for subject in taught.networks}
    if document.detectors is None:
        return classes_section(taught.classes, columns, against=against, note=note)
    columns = {subject: name for subject, name in columns.items() if all(subject in row.top1 for row in taught.classes)}
    return classes_section(taught.classes, columns, against="", note="", lead=BY_AP, noun="object")


def named_networks(subject: str) -> str:
    """What a network of the records is called."""
    return _KNOWN.get(subject, subject)


def _agreement(taught: Teaching) -> str:
    """Who names the same class as whom."""
    if not taught.agreement:
        return ""
    subjects = list(taught.networks)
    head = "".join(f'<th scope="col">{escape(named_networks(s))}</th>' for s in subjects)
    rows = []
    for subject, shares in zip(subjects, taught.agreement, strict=True):
        cells = "".join(
            '<td class="quiet">–</td>'
            if other == subject
            else f'<td class="won" style="--share:{max(0.0, share - 50):.0f}%"><data value="{share}">'
            f"{text.percent(share)}</data></td>"
            for other, share in zip(subjects, shares, strict=True)
        )
        rows.append(f'<tr><th scope="row">{escape(named_networks(subject))}</th>{cells}</tr>')
    lead = "Share of test samples for which two networks name the same class, right or wrong."
    return section("Who agrees with whom", heat_table("agreement", "", head, rows), lead)


def _confidence(document: JobDocument, taught: Teaching) -> str:
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
            f"<figure><figcaption>{escape(named_networks(one.subject))}<small>{', '.join(said)}</small></figcaption>"
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
    label = f"Reliability diagram of the {named_networks(one.subject)}"
    return f'<svg role="group" aria-label="{escape(label)}" width="100%" height="{_SIDE}">{"".join(body)}</svg>'


def _attention_maps(taught: Teaching) -> str:
    """Attention maps side by side."""
    if not taught.examples:
        return ""
    layers = ", ".join(
        f"{escape(named_networks(s))}: <code>{escape(layer)}</code>" for s, layer in taught.layers.items()
    )
    lead = f"Mean square over the channels of layers of one resolution, bright is much. {layers}."
    return section(
        "Attention maps", f'<div class="attention">{"".join(map(_attention_map, taught.examples))}</div>', lead
    )


def _attention_map(example: Example) -> str:
    figures = [("", example.image, "image")]
    figures += [
        (named_networks(s), image, f"attention of the {named_networks(s)}") for s, image in example.maps.items()
    ]
    shown = "".join(
        f'<figure><img src="data:image/png;base64,{escape(image)}" alt="{escape(alt)}">'
        f"<figcaption>{escape(name) or '&nbsp;'}<small>{_said(example, name)}</small></figcaption></figure>"
        for name, image, alt in figures
    )
    return f'<div><h3>{escape(example.label)}</h3><div class="row">{shown}</div></div>'


def _said(example: Example, name: str) -> str:
    """The class that a network names, where it is the wrong one."""
    said = next((y for subject, y in example.said.items() if named_networks(subject) == name), example.label)
    return f'<span class="missed">{escape(said)}</span>' if said != example.label else ""
