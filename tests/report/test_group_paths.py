"""The plot of groups of weights that became zero."""

import html
from dataclasses import replace
from html.parser import HTMLParser

from sample_document import sample

from gossamer.core.edit_details import GroupPath
from gossamer.core.record import Edit, EditKind, JobDocument
from gossamer.report.group_paths import paths_section
from gossamer.report.page import render

PATH = GroupPath(
    steps=[10, 20, 30],
    strength=[0.5, 1.0, 0.25],
    cost=[4e6, 3e6, 2e6],
    alive={"conv1": [8, 8, 6], "conv2": [16, 8, 4], "fc1": [10, 10, 10], "fc2": [4, 3, 3]},
)


def document(path: GroupPath) -> JobDocument:
    edit = Edit(
        method="prune.ssl", kind=EditKind.TRAIN, target="groups", before="38 groups", after="23 left", path=path
    )
    whole = sample()
    whole.edits = [edit]
    return whole


def labels(source: str) -> list[str]:
    found: list[str] = []

    class Labels(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend(value for name, value in attrs if name == "aria-label" and value)

    Labels().feed(source)
    return found


def test_every_layer_has_a_curve_and_the_most_emptied_ones_a_colour() -> None:
    source = paths_section(document(PATH))
    told = [label for label in labels(source) if "groups," in label]
    assert sorted(told) == [
        "conv1, 8 groups, 6 left",
        "conv2, 16 groups, 4 left",
        "fc1, 10 groups, 10 left",
        "fc2, 4 groups, 3 left",
    ]
    key = source.split('class="key"')[1]
    assert key.index("conv2") < key.index("conv1") and "fc1" not in key
    assert "cost 4.00 M to 2.00 M; strength 0.500 to 0.250 at the end" in source
    assert source in render(document(PATH))


def test_without_a_path_there_is_no_section_and_names_stay_text() -> None:
    assert paths_section(sample()) == ""
    hostile = "<script>alert('x')</script>"
    source = paths_section(document(replace(PATH, alive={hostile: [2, 1, 1]})))
    assert "<script>" not in source and html.escape(hostile) in source
