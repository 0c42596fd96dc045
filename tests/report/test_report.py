"""The report: the numbers of the document are in it, nothing else gets in, and what is missing is said."""

import dataclasses
import html
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_document import bare, missed, replaced, sample, small

from gossamer.core.edit_details import BlockPart, SpectrumRow, SwapRecord
from gossamer.core.record import JobDocument, LayerCost, Record, Trial
from gossamer.errors import BadInput
from gossamer.report import markdown, summary_rows, text, write_report, write_robustness, write_sensitivity
from gossamer.report.file_bytes import byte_parts as parts_of_file
from gossamer.report.file_bytes import bytes_section
from gossamer.report.layers import layer_tables
from gossamer.report.page import render
from gossamer.report.pareto import final_state, pareto, size_limit, with_final_times
from gossamer.report.plot import Frame, log_ticks, ticks
from gossamer.report.replacements import spent, swaps_section
from gossamer.report.verdict import clauses, sentence
from gossamer.report.weights import weights_section

HOSTILE = "<script>alert('x')</script>\"onload=&"
FINITE = st.floats(min_value=1e-6, max_value=1e15)


class Page(HTMLParser):
    """Values of <data>, the text, and every tag, of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.values: set[float] = set()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        value = dict(attrs).get("value")
        if tag == "data" and value is not None:
            self.values.add(float(value))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def numbers(document: JobDocument) -> set[float]:
    """What a reader must be able to find."""
    found = {float(r.value) for r in document.records} | {float(size) for size in document.files.values()}
    found |= {edit.proof for edit in document.edits if edit.proof is not None}
    for swapped in (edit.swapped for edit in document.edits if edit.swapped):
        found |= {swapped.error} if swapped.error is not None else set()
        found |= {float(row.rank) for row in swapped.spectra}
    found |= {step.score for step in document.int8_steps} | {step.drop for step in document.int8_steps}
    for row in (*document.layers_before, *document.layers_after):
        found |= {float(row.params), float(row.macs), float(row.out_channels)}
        found |= {row.time_ms} if row.time_ms is not None else set()
    for stored in document.stored if document.records else []:
        found |= {float(stored.weights), stored.bytes, stored.density, stored.entropy_bytes, *stored.values}
    return found


def latency(subject: str, value: float, low: float, high: float, **conditions: object) -> Record:
    return Record(
        subject=subject,
        what="latency",
        value=value,
        unit="ms",
        low=low,
        high=high,
        conditions={"runtime": "onnxruntime", "batch": 64, "threads": 2, **conditions},
    )


def only(*records: Record) -> JobDocument:
    document = bare()
    document.records = list(records)
    return document


def test_every_number_of_the_document_is_on_the_page():
    page = Page(render(sample()))
    assert numbers(sample()) - page.values == set()
    words = " ".join(page.words)
    assert "3.2 · 10⁻⁶" in words
    for state in sample().states:
        assert state.name in words
        assert text.percent(state.score) in words


def test_the_document_survives_its_file_and_gives_the_same_page():
    for document in (sample(), replaced()):
        assert JobDocument.parse(document.dump()) == document
        assert render(JobDocument.parse(document.dump())) == render(document)


@pytest.mark.parametrize(
    "document",
    [sample(), small(), missed(), bare(), replaced()],
    ids=["met", "small", "missed", "bare", "replaced"],
)
def test_the_page_asks_for_nothing_from_outside(document):
    source = render(document)
    assert not re.search(r"https?://|//[a-z]+\.|url\(|@import|<link|<img|<iframe|fetch\(", source)
    assert not [tag for tag, attrs in Page(source).tags if "src" in attrs or "href" in attrs]
    assert len(source) < 1_000_000


def test_names_from_outside_stay_text():
    document = sample()
    document.command = document.task["name"] = document.task["model"] = HOSTILE
    document.environment[HOSTILE] = document.goal["runtime"] = HOSTILE
    document.missed, document.why = [HOSTILE], [HOSTILE]
    document.files[HOSTILE] = 1
    document.seconds[HOSTILE] = 1.0
    rows = (
        document.states,
        document.edits,
        document.layers_before,
        document.int8_steps,
        document.records,
        document.stored,
    )
    for field in rows:
        texts = {f.name: HOSTILE for f in dataclasses.fields(field[0]) if f.type in (str, "str") and f.name != "what"}
        field[-1] = dataclasses.replace(field[-1], **texts)
    document.records[1] = dataclasses.replace(document.records[1], conditions={HOSTILE: HOSTILE, "dtype": HOSTILE})
    document.records.append(latency("original", 1, 1, 1, runtime=HOSTILE, dtype=HOSTILE))
    source = render(document)
    tags = Page(source).tags
    assert "<script>alert" not in source
    assert [tag for tag, _ in tags].count("script") == 1
    assert not [attrs for _, attrs in tags if any(name.startswith("on") for name in attrs)]
    assert html.escape(HOSTILE) in source


def test_names_of_layers_and_modes_stay_text():
    document, kind = replaced(), BlockPart(kind=HOSTILE, inputs=1, outputs=2, stride=HOSTILE)
    row = SpectrumRow(mode=HOSTILE, what=HOSTILE, ranks=[0, 1, 2], values=[1.0, 0.5, 0.1], rank=1)
    shown = SwapRecord(before=[kind], after=[BlockPart(kind=HOSTILE)], spectra=[row])
    document.edits = [dataclasses.replace(document.edits[0], target=HOSTILE, method=HOSTILE, swapped=shown)]
    source = swaps_section(document)
    assert not [tag for tag, _ in Page(source).tags if tag == "script"]
    assert not [attrs for _, attrs in Page(source).tags if any(name.startswith("on") for name in attrs)]
    assert source.count(html.escape(HOSTILE)) >= 4


def test_a_layer_that_was_replaced_shows_what_stands_there_what_it_lost_and_what_it_takes():
    document = replaced()
    source = swaps_section(document)
    page = Page(source)
    old = next(row for row in document.layers_before if row.name == "layers.2.1.conv1")
    assert {0.1234, 0.31, 0.4, 20.0, 3.0, 8.0} <= page.values
    assert old.time_ms in page.values
    assert any(value == pytest.approx(0.06) for value in page.values)
    labels = [attrs["aria-label"] for _, attrs in page.tags if attrs.get("class") == "flow"]
    assert labels[0] == "3×3 64 to 64 became 1×1 64 to 16, 3×3 16 to 20, 1×1 20 to 64"
    assert labels[1].startswith("3×3 64 to 64, max pool 2d became")
    tips = [attrs["data-tip"] for _, attrs in page.tags if "data-tip" in attrs]
    assert tips[0] == "rank of outputs: 20 of 64\nthe largest left out is 0.122 of the largest"
    assert tips[1] == "rank of inputs: 3 of 3\nthe largest left out is 0 of the largest"
    assert tips[2] == "terms: 8 of 64\nrelative error 40.00 %"
    assert source.count('class="kept"') == 3 and source.count('class="left"') == 2
    assert swaps_section(sample()) == ""


def test_what_stands_in_a_place_is_all_below_its_name_and_nothing_beside_it():
    def layer(name: str, ms: float | None) -> LayerCost:
        costs = {"in_channels": 1, "out_channels": 1, "params": 1, "macs": 1, "bytes": 4}
        return LayerCost(name=name, kind="Linear", time_ms=ms, **costs)

    rows = [layer("a.1", 1.0), layer("a.1.0", 2.0), layer("a.1.0.x", None), layer("a.10", 4.0), layer("pool", 8.0)]
    assert spent(rows, ["a.1"], lambda row: row.time_ms) == 3.0
    assert spent(rows, ["a.1", "pool"], lambda row: row.time_ms) == 11.0
    assert spent(rows, ["a.1.0.x"], lambda row: row.time_ms) is None
    assert spent(rows, ["b"], lambda row: row.time_ms) is None


def test_what_is_missing_is_said():
    source = render(bare())
    for sentence_ in (
        "Nothing was measured.",
        "No state was recorded.",
        "No layer was listed.",
        "The network was not edited.",
        "The network was not quantized.",
        "No file was written.",
    ):
        assert sentence_ in source
    assert "no network inside the budget was found" in source


@pytest.mark.parametrize(
    "field", ["records", "states", "edits", "layers_before", "layers_after", "int8_steps", "stored"]
)
def test_a_page_without_one_part_has_all_others(field):
    document = sample()
    setattr(document, field, [])
    assert numbers(document) <= Page(render(document)).values


def test_a_job_without_a_goal_is_not_said_to_have_met_one():
    document = sample()
    document.goal = {}
    assert clauses(document) == []
    assert sentence(document).startswith("Recipe done: 4.06× faster on ONNX Runtime, 0.32 points")
    assert "Goal met" not in render(document)


def test_the_verdict_says_by_how_much():
    assert sentence(sample()) == (
        "Goal met: 4.06× faster on ONNX Runtime (at least 4× asked), 0.32 points of top-1 lost on test."
    )
    assert "4.06× faster on ONNX Runtime (at least 8× asked, 49 % short)" in sentence(missed())
    document = missed()
    document.goal = {"max_drop": 0.2, "params": 90_000, "file_bytes": 200_000}
    assert sentence(document) == (
        "Goal missed: 94,378 parameters (at most 90,000 asked, 4.9 % over), 71.3 kB on disk (at most 200 kB asked), "
        "0.28 points lost on validation (at most 0.2 points lost)."
    )
    assert [part.met for part in clauses(document)] == [False, False, True]


def test_the_goal_is_judged_on_its_own_runtime_and_batch():
    document = sample()
    document.records = [
        latency("original", 10, 9, 11, batch=1),
        latency("result", 5, 4, 6, batch=1),
        latency("original", 40, 39, 41, runtime="openvino"),
        latency("result", 1, 0.9, 1.1, runtime="openvino"),
        latency("original", 30, 29, 31),
        latency("result", 10, 9, 11),
    ]
    assert clauses(document)[1].got == "3.00× faster on ONNX Runtime"
    assert clauses(document)[1].met is False


@pytest.mark.parametrize(
    ("after", "said", "verdict"),
    [
        ((5.0, 4.0, 6.0), "2.00× faster", "better"),
        ((9.0, 8.0, 9.5), "not faster", "same"),
        ((10.0, 9.0, 11.0), "not faster", "same"),
        ((20.0, 18.0, 22.0), "2.00× slower", "worse"),
    ],
)
def test_what_did_not_get_faster_is_said_so(after, said, verdict):
    document = only(latency("original", 10.0, 9.0, 11.0), latency("result", *after))
    (row,) = summary_rows(document)
    assert (row.change.text, row.verdict) == (said, verdict)
    assert ("Not faster on ONNX Runtime." in render(document)) == (verdict != "better")


def test_only_equal_conditions_are_compared():
    rows = summary_rows(only(latency("original", 10, 9, 11, threads=1), latency("result", 5, 4, 6, threads=2)))
    assert [(row.before is None, row.after is None) for row in rows] == [(False, True), (True, False)]
    assert [row.change.text for row in rows] == ["not measured after", "not measured before"]


def test_the_deployed_network_is_the_int8_one_where_there_is_one():
    rows = {row.name: row for row in summary_rows(sample())}
    assert rows["Latency on ONNX Runtime"].after.value == 4.61
    assert rows["Latency on PyTorch"].after.value == 21.3
    assert rows["Top-1 on test"].after.value == 92.88


def test_a_gain_of_accuracy_has_its_interval_the_right_way_round():
    top1 = [Record(subject=s, what="score", value=v, unit="%") for s, v in (("original", 90.0), ("result", 91.0))]
    drop = Record(subject="result", what="drop", value=-1.0, unit="points", low=-1.5, high=-0.5)
    (row,) = summary_rows(only(*top1, drop))
    assert (row.change.text, row.change.detail, row.verdict) == ("1.00 points gained", "0.50 to 1.50", "better")


def test_the_original_and_the_result_are_drawn_with_the_times_of_the_summary():
    """Not with those of the moment when they were tried: the mark and the table must not contradict one another."""
    document = sample()
    tried = [
        replace(state, latency_ms={"onnxruntime": 3 * state.latency_ms["onnxruntime"]}) for state in document.states
    ]
    shown = with_final_times(replace(document, states=tried))
    final = final_state(shown)
    assert final is not None and final.name == "channels 29 % int8"
    assert (shown.states[0].latency_ms, final.latency_ms) == ({"onnxruntime": 18.7}, {"onnxruntime": 4.61})
    assert shown.states[2] == tried[2]


def test_markdown_is_one_line_per_row_and_keeps_bars_out_of_its_cells():
    document = sample()
    document.records.append(latency("original", 1, 1, 1, runtime="a|b"))
    lines = markdown(summary_rows(document)).splitlines()
    assert len(lines) == 2 + len(summary_rows(document))
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {5}
    assert (
        "| Latency on ONNX Runtime (float32 → int8, batch 64, 2 threads) "
        "| 18.7 ms (18.0 to 20.1) | 4.61 ms (4.40 to 5.02) | 4.06× faster |"
    ) in lines


def test_the_result_is_the_state_with_its_drop_else_the_last_accepted():
    document = sample()
    assert final_state(document).name == "channels 29 % int8"
    document.records = []
    document.states = document.states[:6]
    assert final_state(document).name == "channels 29 %"
    document.states = document.states[:1]
    assert final_state(document) is None


def test_states_that_only_have_a_price_are_not_called_rejected():
    document = bare()
    document.states = [
        Trial(name="priced", score=None, drop=None, latency_ms={}, macs=1, params=1, file_bytes=None, accepted=False)
    ]
    assert "cost measured, not judged" in render(document)
    assert "rejected" not in "".join(Page(render(document)).words).split("State")[-1]


def test_layers_that_came_and_went_stand_where_they_belong():
    def layer(name: str) -> LayerCost:
        return LayerCost(name=name, kind="Linear", in_channels=1, out_channels=1, params=1, macs=1, bytes=4)

    document = bare()
    document.layers_before = [layer("a"), layer("b"), layer("c"), layer("c")]
    document.layers_after = [layer("a"), layer("b.0"), layer("b.1"), layer("c"), layer("c")]
    tables = dict(layer_tables(document))
    names = re.findall(r'class="name">([^<]+)<', tables["Parameters"])
    assert names == ["a", "b.0", "b.1", "b", "c", "c"]
    assert tables["Parameters"].count(">gone<") == 1
    assert tables["Parameters"].count(">new<") == 2
    assert "Time" not in tables


def test_a_batch_norm_counts_to_the_layer_before_it():
    def layer(name: str, kind: str, outputs: int, ms: float | None) -> LayerCost:
        costs = {"params": 10, "macs": 100, "bytes": 40}
        return LayerCost(name=name, kind=kind, in_channels=1, out_channels=outputs, time_ms=ms, **costs)

    document = bare()
    rows = [("n", "BatchNorm2d", 4, 0.5), ("c", "Conv2d", 4, 2.0), ("d", "BatchNorm2d", 4, None), ("l", "Linear", 2, 1)]
    document.layers_before = document.layers_after = [layer(*row) for row in rows]
    tables = dict(layer_tables(document))
    named = re.findall(r'class="name">([^<]+)<small>([^<]+) \d', tables["Time"])
    assert named == [("n", "BatchNorm2d"), ("c", "Conv2d with norm"), ("l", "Linear")]
    assert '<data value="20">' in tables["Parameters"] and '<data value="2.0">' in tables["Time"]


def test_what_asked_for_bytes_has_them_before_the_layers_and_other_jobs_after_them():
    def order(document: JobDocument) -> list[str]:
        titles = re.findall(r"<h2>([^<]+)</h2>", render(document))
        return [title for title in titles if title in ("Where the bytes are", "Layer by layer")]

    assert order(small()) == ["Where the bytes are", "Layer by layer"]
    other = small()
    other.goal = {"max_drop": 0.5, "speedup": 2.0, "runtime": "onnxruntime"}
    assert order(other) == ["Layer by layer", "Where the bytes are"]


def test_the_page_says_which_network_when_and_what_the_files_are_for():
    words = " ".join(Page(render(sample())).words)
    assert "resnet20 on fashion-mnist" in words and "2026-11-29 12:00 UTC" in words
    assert "float32, for ONNX Runtime" in words and "fills a network of the class" in words


def test_a_brief_training_is_no_rejection_and_the_recovery_has_its_curve():
    page = render(sample())
    words = " ".join(Page(page).words)
    assert "after a brief training" in words and "How the score came back" in words and "distill.recover" in words
    assert 'class="mark brief"' in page


def test_gains_by_class_are_of_the_deployed_network_over_the_original():
    page = Page(render(sample()))
    words = " ".join(page.words)
    assert "points of the result over the original" in words
    assert {round(v, 6) for v in (78.9 - 80.1, 98.9 - 98.5)} <= {round(float(v), 6) for v in page.values}


@given(FINITE)
def test_rounding_keeps_three_digits(value):
    shown = text.significant(value)
    assert abs(float(shown.replace(",", "")) - value) <= max(0.0051 * value, 5e-10)
    digits = shown.replace(",", "").replace(".", "").lstrip("0")
    assert len(digits) <= 3 or "." not in shown


@given(st.floats(min_value=-1e6, max_value=1e6), st.floats(min_value=1e-3, max_value=1e6), st.integers(2, 10))
def test_ticks_are_round_inside_and_about_as_many_as_wanted(low, span, wanted):
    high = low + span
    found = ticks(low, high, wanted)
    assert all(low - 1e-6 * span - 1e-9 <= tick <= high + 1e-6 * span + 1e-9 for tick in found)
    assert wanted / 2.5 - 1 <= len(found) <= wanted + 2


def test_text():
    assert text.large(31_342_720) == "31.3 M"
    assert text.large(9_999) == "9,999"
    assert text.large(999_999) == "1.00 M"
    assert text.size(812) == "812 B"
    assert text.size(118_204) == "118 kB"
    assert text.proof(3.1e-7) == "3.1 · 10⁻⁷"
    assert text.proof(0.0) == "exact"
    assert text.points(-0.5) == "−0.50"
    assert [text.duration(s) for s in (8.2, 59.96, 812, 7500)] == ["8.2 s", "1 min 00 s", "13 min 32 s", "2 h 05 min"]


def test_frame_runs_upwards():
    frame = Frame(0, 10, 0, 1, height=100)
    assert (frame.x(5), frame.y(0), frame.y(1)) == ("50.00%", "100.0", "0.0")


def test_an_old_document_knows_nothing_of_the_compact_file():
    raw = json.loads(sample().dump())
    del raw["stored"]
    document = JobDocument.parse(json.dumps(raw))
    assert document.stored == []
    source = render(document)
    assert "Where the bytes are" not in source and "Weights and their values" not in source


def test_the_parts_of_the_bars_are_the_whole_network_and_the_whole_file():
    document = sample()
    found = parts_of_file(document, 1_088_744, 71_320)
    assert sum(part.before for part in found) == pytest.approx(1_088_744)
    assert sum(part.after for part in found) == pytest.approx(71_320)
    assert [part.name for part in found[-2:]] == ["everything else", "header and graph"]
    assert found[-1].after == pytest.approx(620)
    biggest = sorted(document.stored, key=lambda row: -row.bytes)[:3]
    assert {row.name.removesuffix(".weight") for row in biggest} <= {part.name for part in found}


def test_a_layer_that_is_gone_is_in_the_bar_before():
    document = sample()
    gone = document.stored.pop(-2)
    part = next(p for p in parts_of_file(document, 1_088_744, 71_320) if f"{p.name}.weight" == gone.name)
    assert (part.before, part.after) == (gone.dense_bytes, 0.0)


def test_a_file_that_is_hardly_smaller_needs_no_story():
    document = sample()
    document.records = [
        dataclasses.replace(r, value=0.91 * 1_088_744) if r.what == "compact_bytes" and r.subject != "original" else r
        for r in document.records
    ]
    assert "Where the bytes are" not in render(document)
    assert "Where the bytes are" in render(sample())


def test_the_table_of_deep_compression_adds_up():
    document = sample()
    row = document.stored[0]
    document.stored = [row]
    source = bytes_section(document)
    table = Page(source.partition("As Deep Compression would store it")[2].partition("All weights")[0])
    stored, book = row.as_gaps["stored"], 32 * 7
    fixed, coded = (stored * (3 + 5) + book) / 32 / row.weights, (stored * (2.4 + 3.1) + book) / 32 / row.weights
    wanted = [float(row.weights), 3.0, 2.4, 5.0, 3.1, fixed, coded, row.bytes / 4 / row.weights]
    assert sorted(table.values) == pytest.approx(sorted(wanted))
    assert f"{100 * coded:.2f} %" in table.words
    document.stored = [dataclasses.replace(row, density=1.0)]
    assert "Deep Compression" not in bytes_section(document)
    document.stored = [dataclasses.replace(row, as_gaps={})]
    assert "Deep Compression" not in bytes_section(document)


def test_a_plot_of_weights_has_a_stem_for_each_value_and_says_how_many_are_zero():
    document = sample()
    document.stored = document.stored[-1:]
    source = weights_section(document)
    assert source.count("<circle") == 5
    assert source.count("<rect") == 6
    assert f"{100 * (1 - document.stored[0].density):.1f} % zero" in source
    zero = re.search(r'class="zeros" x="([^"]+)"', source)
    assert zero and f'<line x1="{zero[1]}"' in source
    document.stored = sample().stored[-2:-1]
    assert weights_section(document).count("<line x1=") == 60
    assert "zero" not in Page(weights_section(document)).words


def test_a_goal_of_size_puts_the_size_first_with_its_limit():
    (name, plot), *others = pareto(small())
    assert name == "File size" and "file, kB, logarithmic" in plot
    assert [name for name, _ in others] == ["ONNX Runtime", "OpenVINO", "MACs", "Parameters"]
    assert pareto(sample())[0][0] == "ONNX Runtime"
    assert size_limit(small()) == pytest.approx(108_874.4)
    assert size_limit(sample()) is None
    frame = Frame(71.32 / 1.6, 1162.123 * 1.25, 0, 1, log_x=True)
    assert f'<rect class="goal" x="0" y="0" width="{frame.x(108.8744)}"' in plot
    assert Page(render(small())).words.index("Compact file (.gsr)") < Page(render(small())).words.index("Top-1 on test")


def test_a_logarithmic_frame_runs_in_equal_ratios():
    frame = Frame(1, 10_000, 0, 1, log_x=True)
    assert [frame.x(value) for value in (1, 10, 100, 10_000)] == ["0.00%", "25.00%", "50.00%", "100.00%"]


@given(st.floats(min_value=1e-4, max_value=1e6), st.floats(min_value=10, max_value=1e9), st.integers(3, 12))
def test_logarithmic_ticks_are_inside_and_not_too_many(low, factor, most):
    found = log_ticks(low, low * factor, most)
    assert found == sorted(found) and found
    assert all(low <= tick <= low * factor for tick in found)
    assert len(found) <= max(most, math.log10(factor) + 1)


def test_an_old_page_is_replaced_whole(tmp_path):
    target = tmp_path / "report.html"
    target.write_text("old")
    assert write_report(sample(), target) == target
    assert target.read_text("utf-8") == render(sample())
    assert list(tmp_path.iterdir()) == [target]


def test_sensitivity_puts_the_most_sensitive_group_first(tmp_path):
    rows = [("calm", 0.5, 0.1), (HOSTILE, 0.9, 60.0), (HOSTILE, 0.5, 20.0), ("calm", 0.9, 1.0)]
    source = write_sensitivity(rows, tmp_path / "s.html", title="lenet", budget=0.5).read_text("utf-8")
    page = Page(source)
    assert {0.1, 1.0, 20.0, 60.0} <= page.values
    assert source.index(f"<code>{html.escape(HOSTILE)}") < source.index("<code>calm")
    assert [tag for tag, _ in page.tags].count("script") == 1


@pytest.mark.parametrize("rows", [[], [("a", 1.0, 0.0)], [("a", 0.5, float("nan"))]], ids=["none", "all cut", "nan"])
def test_sensitivity_refuses_what_cannot_be_drawn(tmp_path, rows):
    with pytest.raises(BadInput):
        write_sensitivity(rows, tmp_path / "s.html", title="x")
    assert not list(tmp_path.iterdir())


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """<script>document.addEventListener("DOMContentLoaded", () => {
  document.querySelector("[data-tip]")?.dispatchEvent(new Event("pointerenter"));
  for (const details of document.querySelectorAll("details")) details.open = true;
  const page = document.documentElement;
  document.body.dataset.overflow = page.scrollWidth - page.clientWidth;
  parent.postMessage(page.scrollWidth + " of " + page.clientWidth, "*");
});</script>"""


def dump_dom(page: Path, profile: Path, width: int) -> str:
    assert CHROMIUM is not None
    flags = "--headless --hide-scrollbars --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    command = [CHROMIUM, *flags.split(), "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}"]
    run = subprocess.run(
        [*command, f"--window-size={width},900", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install chromium")
@pytest.mark.slow
def test_a_browser_shows_the_numbers_and_fits_a_phone(tmp_path):
    document, long = replaced(), "stages." + "block_with_a_long_name." * 5 + "conv"
    document.states[2] = dataclasses.replace(document.states[2], name=long, note=long)
    document.edits[0] = dataclasses.replace(document.edits[0], target=long, method=long, before=long)
    document.layers_after[0] = dataclasses.replace(document.layers_after[0], name=long)
    document.edits[-1] = dataclasses.replace(document.edits[-1], target=long, method=long)
    document.files[long] = 12
    document.environment[long] = long
    source = write_report(document, tmp_path / "report.html").read_text("utf-8")
    (tmp_path / "probed.html").write_text(source.replace("</head>", f"{PROBE}</head>"), "utf-8")
    # A headless window has a least width; a frame has none.
    (tmp_path / "phone.html").write_text(
        """<body><script>addEventListener("message", (event) => { document.body.dataset.width = event.data; });</script>
        <iframe src="probed.html" style="width:390px;height:844px;border:0"></iframe>""",
        "utf-8",
    )
    dom = dump_dom(tmp_path / "probed.html", tmp_path / "profile", 1280)
    page = Page(dom)
    assert numbers(replaced()) <= page.values
    assert "4.06× faster" in " ".join(page.words)
    tip = dom[dom.index('id="tip"') :]
    assert 'class="on"' in tip and "channels" in tip
    assert 'data-overflow="0"' in dom
    assert 'data-width="390 of 390"' in dump_dom(tmp_path / "phone.html", tmp_path / "profile", 800)


def test_the_plot_of_distortions_has_a_curve_and_a_column_for_each_network(tmp_path: Path) -> None:
    plain = [("weights", "sign", 12.5), ("weights", "noise", 0.0), ("activations", "sign", 3.0)]
    robust = [("weights", "sign", 0.5), ("weights", "noise", -0.25), ("activations", "sign", 1.0)]
    source = write_robustness({"plain": plain, "r<b": robust}, tmp_path / "r.html", title="x").read_text("utf-8")
    assert source.count("<svg") == 2 and source.count('class="curve') == 4
    assert "r&lt;b" in source and '<data value="12.5">' in source and "2 noise" in source
    for rows in ({}, {"a": []}, {"a": plain, "b": plain[:1]}):
        with pytest.raises(BadInput, match="robustness: give at least one network"):
            write_robustness(rows, tmp_path / "r.html", title="x")
