"""The sections of a report on a taught student, as a browser shows them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sample_document import sample
from test_report import CHROMIUM, PROBE, Page, dump_dom

from gossamer.core.record import (
    ClassRow,
    Curve,
    Example,
    JobDocument,
    Record,
    Reliability,
    Teaching,
)
from gossamer.jobs.diagnostics import picture
from gossamer.report import write_report

LONG = "a_class_with_a_long_name_that_goes_on_" * 2
SUBJECTS = {"original": "Ensemble", "assistant 1": "ResNet", "result": "ResNet", "alone": "ResNet"}
LOADED = """<script>addEventListener("load", () => {
  document.body.dataset.images = [...document.images].filter(image => image.naturalWidth == 7).length;
});</script>"""


def taught() -> JobDocument:
    """Numbers that occur only once, so that each is looked for in its place."""
    classes = [
        ClassRow(name=LONG, samples=31, top1={"original": 97.1, "assistant 1": 93.2, "result": 90.3, "alone": 91.4}),
        ClassRow(name="<b>", samples=1, top1={"original": 96.5, "assistant 1": 92.6, "result": 89.7, "alone": 81.2}),
    ]
    agreement = [[100.0 if i == j else 60 + 10 * min(i, j) + max(i, j) + 0.25 for i in range(4)] for j in range(4)]
    bins = Reliability(subject="", samples=[0, 5, 27], confidence=[0.0, 0.5, 0.9], accuracy=[0.0, 0.4, 0.95])
    map_HW = torch.linspace(0, 1, 49).view(7, 7)
    example = Example(
        label=LONG, image=picture(map_HW[None]), said=dict.fromkeys(SUBJECTS, LONG) | {"alone": "<b>"},
        maps={subject: picture(map_HW) for subject in SUBJECTS},
    )  # fmt: skip
    curves = [
        Curve(name="result", loss=[2.0, 1.0], score=[71.5, 88.5], seconds=[1.0, 1.0]),
        Curve(name="alone", loss=[2.5, 1.5], score=[61.5, 85.5], seconds=[1.0, 1.0]),
    ]
    teaching = Teaching(
        method="distill.kd", networks=SUBJECTS, curves=curves, agreement=agreement, classes=classes,
        reliability=[replace(bins, subject=subject) for subject in SUBJECTS],
        layers=dict.fromkeys(SUBJECTS, "stages." * 20), examples=[example],
    )  # fmt: skip
    rows = [
        Record(subject=subject, what=what, value=0.001 * number + share, unit="", n=32)
        for number, subject in enumerate(SUBJECTS, 1)
        for what, share in (("ece", 0.02), ("nll", 0.7))
    ]
    return replace(sample(), records=[*sample().records, *rows], teaching=teaching)


def test_gains_come_first_and_by_size_and_names_are_no_markup(tmp_path: Path) -> None:
    source = write_report(taught(), tmp_path / "report.html").read_text("utf-8")
    table = source[source.index("Class by class") : source.index("Who agrees with whom")]
    assert table.index("&lt;b&gt;") < table.index(LONG) and "<b>" not in table
    assert table.index("+8.50") < table.index("96.5") and "\u22121.10" in table


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install chromium")
@pytest.mark.slow
def test_a_browser_shows_what_came_of_teaching_and_fits_a_phone(tmp_path: Path) -> None:
    source = write_report(taught(), tmp_path / "report.html").read_text("utf-8")
    probe = PROBE.replace("[data-tip]", "[data-tip*=sure]")
    (tmp_path / "probed.html").write_text(source.replace("</head>", f"{probe}{LOADED}</head>"), "utf-8")
    (tmp_path / "phone.html").write_text(
        """<body><script>addEventListener("message", (event) => { document.body.dataset.width = event.data; });</script>
        <iframe src="probed.html" style="width:390px;height:844px;border:0"></iframe>""",
        "utf-8",
    )
    dom = dump_dom(tmp_path / "probed.html", tmp_path / "profile", 1280)
    page, teaching = Page(dom), taught().teaching
    assert teaching is not None
    shown = {share for row in teaching.agreement for share in row if share < 100} | {88.5, 85.5}
    shown |= {value for row in teaching.classes for value in row.top1.values()}
    shown |= {row.value for row in taught().records if row.what in ("ece", "nll")}
    assert shown <= page.values | {88.5, 85.5} and {"88.50 %", "85.50 %"} <= set(page.words)
    for title in ("How the student learned", "Who agrees with whom", "Sure and right", "Attention maps"):
        assert title in page.words
    assert "sure 50.0 %" in dom[dom.index('id="tip"') :]
    assert 'data-images="5"' in dom and 'data-overflow="0"' in dom
    assert 'data-width="390 of 390"' in dump_dom(tmp_path / "phone.html", tmp_path / "profile", 800)
