"""The part of the page on detectors: all of its numbers, boxes where they belong, names that stay text."""

import html
from dataclasses import replace

from sample_document import sample

from gossamer.core.detector_rows import DetectedImage, DetectorRows, DrawnBox, PrecisionCurve
from gossamer.core.record import ClassRow, JobDocument
from gossamer.report.detections import detector_sections
from gossamer.report.page import render

HOSTILE = "<script>alert('x')</script>\"onload=&"


def detected() -> JobDocument:
    """Two networks on one image."""
    boxes = {
        "original": [DrawnBox(corners=[0.25, 0.5, 0.75, 1.0], label=HOSTILE, outcome="right", score=0.87)],
        "result int8": [
            DrawnBox(corners=[0.25, 0.5, 0.75, 1.0], label="cat", outcome="missed"),
            DrawnBox(corners=[0.9, 0.0, 1.0, 0.2], label="dog", outcome="wrong", score=0.41),
        ],
    }
    rows = DetectorRows(
        numbers={"AP": {"original": 61.25, "result int8": 60.5}, "AP large": {"original": None, "result int8": None}},
        curves=[PrecisionCurve(subject=subject, overlap=0.5, precision=[100.0, 50.0, 0.0]) for subject in boxes],
        images=[DetectedImage(place=7, image="aGVsbG8=", drawn=boxes)],
    )
    classes = [ClassRow(name="cat", samples=3, top1={"original": 61.25, "result int8": 60.5})]
    return replace(sample(), detectors=rows, classes=classes)


def test_the_numbers_the_boxes_and_the_curves_of_detectors_are_shown() -> None:
    source = detector_sections(detected())
    for shown in ("61.25 %", "60.50 %", "−0.75", "no object", "1 right", "1 wrong, 1 missed", "dog 0.41"):
        assert shown in source, shown
    assert "left:25.00%;top:50.00%;width:50.00%;height:50.00%" in source
    assert 'class="box wrong low end"' in source and source.count("average precision 50.00 %") == 4
    assert "Average precision of each class" in render(detected()) and "3 objects" in render(detected())


def test_names_in_drawn_boxes_are_no_markup_and_other_documents_have_no_such_part() -> None:
    source = render(detected())
    assert "<script>alert" not in source and html.escape(HOSTILE) in source
    assert detector_sections(sample()) == ""


def test_a_document_with_detectors_is_read_as_it_was_written() -> None:
    document = detected()
    assert JobDocument.parse(document.dump()) == document
