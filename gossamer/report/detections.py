"""Detectors: precision and recall, the parts of the score, and detections before and after drawn on example images."""

from collections.abc import Mapping

from gossamer.core.detector_rows import DetectedImage, DetectorRows, DrawnBox
from gossamer.core.record import JobDocument
from gossamer.report import text
from gossamer.report.plot import Frame, axes, curve, figure
from gossamer.report.score import Score
from gossamer.report.sections import grid_of_pairs, section, sides
from gossamer.report.table import ORIGINAL
from gossamer.report.text import escape

NEAR = 0.1  # of an image: so near to its edge a label stands on the other side of a box


def detector_sections(document: JobDocument) -> str:
    """All that there is to see of detectors; nothing for other networks."""
    rows = document.detectors
    if rows is None:
        return ""
    before, after = sides(document)
    subjects = list(dict.fromkeys(subject for values in rows.numbers.values() for subject in values))
    named = {subject: before if subject == ORIGINAL else after for subject in subjects}
    split = Score.of(document).split
    return _images(rows, named, split) + _curves(rows, named, split) + _numbers(rows, named, split)


def _images(rows: DetectorRows, named: Mapping[str, str], split: str) -> str:
    """Detections drawn on images."""
    if not rows.images:
        return ""
    lead = (
        f"The first images of the {escape(split)} data with objects, and those on which the networks differ most. "
        f"Drawn are detections with a score of at least {rows.shown_from:g}; right ones are of the true class, at the "
        "lowest overlap that counts. Dashed: objects that are missed."
    )
    key = '<p class="key"><span><i class="box right"></i>right</span><span><i class="box wrong"></i>wrong</span>'
    key += '<span><i class="box missed"></i>missed</span></p>'
    shown = "".join(_image(one, named) for one in rows.images)
    return section("Detections", f'{key}<div class="attention">{shown}</div>', lead)


def _image(one: DetectedImage, named: Mapping[str, str]) -> str:
    figures = []
    for subject, boxes in one.drawn.items():
        name = named.get(subject, subject)
        counts = {kind: sum(box.outcome == kind for box in boxes) for kind in ("right", "wrong", "missed")}
        said = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "nothing"
        alt = f"image {one.place}, {name}: {said}"
        figures.append(
            f'<figure><div class="boxes"><img src="data:image/png;base64,{escape(one.image)}" alt="{escape(alt)}">'
            f"{''.join(map(_box, boxes))}</div><figcaption>{escape(name)}<small>{escape(said)}</small></figcaption>"
            "</figure>"
        )
    return f'<div><h3>image {one.place}</h3><div class="row">{"".join(figures)}</div></div>'


def _box(box: DrawnBox) -> str:
    left, top, right, bottom = box.corners
    place = f"left:{100 * left:.2f}%;top:{100 * top:.2f}%;width:{100 * (right - left):.2f}%;"
    score = "" if box.score is None else f" {box.score:.2f}"
    turned = (" low" if top < NEAR else "") + (" end" if left > 1 - 2 * NEAR else "")
    return (
        f'<i class="box {escape(box.outcome)}{turned}" style="{place}height:{100 * (bottom - top):.2f}%">'
        f"<b>{escape(box.label)}{score}</b></i>"
    )


def _curves(rows: DetectorRows, named: Mapping[str, str], split: str) -> str:
    """Precision over recall, a curve for each network and overlap."""
    if not rows.curves:
        return ""
    frame = Frame(0, 100, 0, 100, height=320)
    body = [axes(frame, "recall, %", "precision, %", x_ticks=5, y_ticks=5)]
    overlaps = list(dict.fromkeys(one.overlap for one in rows.curves))
    keys = []
    for one in rows.curves:
        last = len(one.precision) - 1
        points = [(100 * at / last, value) for at, value in enumerate(one.precision)]
        css = "before" if named.get(one.subject) == "before" or one.subject == ORIGINAL else "after"
        css += " thin" if overlaps.index(one.overlap) else ""
        name = f"{named.get(one.subject, one.subject)}, overlap {one.overlap:g}"
        area = sum(one.precision) / len(one.precision)
        body.append(curve(frame, points, f"curve pr-{css}", [name, f"average precision {text.percent(area)}"]))
        keys.append(f'<span><i class="pr-{css}"></i>{escape(name)}</span>')
    label = f"Precision over recall on {split}, mean over classes"
    drawn = figure("".join(body), frame, label) + f'<p class="key">{"".join(keys)}</p>'
    lead = f"{escape(label)}: at each recall the largest precision there or above."
    return section("Precision and recall", drawn, lead)


def _numbers(rows: DetectorRows, named: Mapping[str, str], split: str) -> str:
    """The numbers that are usual for the metric."""
    body = []
    for name, values in rows.numbers.items():
        cells = [_percent(values.get(subject)) for subject in named]
        known = [value for subject in named if (value := values.get(subject)) is not None]
        cells += [_change(known[-1] - known[0]) if len(known) == len(named) else ""] if len(named) > 1 else []
        body.append((escape(name), *cells))
    columns = ["", *(text.titled(name) for name in named.values()), *(["Change"] if len(named) > 1 else [])]
    lead = f"On {escape(split)} data. Small objects have up to 32 x 32 pixels, medium ones up to 96 x 96."
    return section("By size and number", grid_of_pairs(columns, body), lead if len(rows.numbers) > 1 else "")


def _percent(value: float | None) -> str:
    return (
        '<span class="quiet">no object</span>'
        if value is None
        else f'<data value="{value}">{text.percent(value)}</data>'
    )


def _change(points: float) -> str:
    sign = "+" if points > 0 else ""
    return f'<data value="{points}">{sign}{text.points(points)}</data>'
