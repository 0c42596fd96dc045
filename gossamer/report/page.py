"""A job document as one self-contained HTML page that opens offline.

The plots are SVG written here, with percentages for widths, instead of Plotly's: its script alone is 4.6 MB for every
page and draws nothing without it. This page weighs about 120 kB, reflows from 1280 to 390 pixels without a script,
prints, follows the reader's light or dark setting, and all in it is text that can be searched, copied and read aloud.
The short script only shows the tooltips; what they say is also in the table below the plot.
"""

from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from string import Template

from gossamer.core.kinds import checked_arguments
from gossamer.core.record import JobDocument, write_text
from gossamer.report import sections, text
from gossamer.report.curves import job_classes_section, job_curves_section
from gossamer.report.detections import detector_sections
from gossamer.report.distillation import teaching_sections
from gossamer.report.file_bytes import bytes_section
from gossamer.report.group_paths import paths_section
from gossamer.report.pareto import size_limit
from gossamer.report.replacements import swaps_section
from gossamer.report.verdict import sentence, warnings
from gossamer.report.weights import weights_section


@checked_arguments
def write_report(document: JobDocument, path: str | Path) -> Path:
    """Write the page of a job; only the document is read.

    Args:
        document: of the job.
        path: of the page.

    Returns:
        The path.

    Raises:
        OSError: the file cannot be written; an old page is then left as it was.

    Example:
        >>> import tempfile, gossamer
        >>> from gossamer.methods.prune import Magnitude
        >>> model, task = gossamer.data.tiny_network(), gossamer.data.tiny_task()
        >>> recipe = gossamer.Recipe(name="zeros", steps=(Magnitude(sparsity=0.5),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = gossamer.compress(model, task, recipe=recipe, out=folder, verbose=False)
        ...     page = write_report(done.document, Path(folder) / "again.html")
        ...     page.read_text() == (Path(folder) / "report.html").read_text()
        True
    """
    target = Path(path)
    write_text(target, render(document))
    return target


_BYTES = (bytes_section, weights_section)
_COMPRESSED = (
    detector_sections,
    job_curves_section,
    paths_section,
    sections.layers_section,
    swaps_section,
    job_classes_section,
    sections.edits_section,
    sections.int8_section,
)
_MADE = (sections.files_section, sections.making_section, sections.records_section)


def _order(document: JobDocument) -> Iterator[Callable[[JobDocument], str]]:
    """The sections from the top of the page. Bytes come first where they were asked for."""
    yield sections.summary_section
    if document.teaching is not None:
        yield from (
            sections.asked_section,
            detector_sections,
            teaching_sections,
            sections.latency_section,
            sections.edits_section,
        )
    else:
        first = size_limit(document) is not None
        yield from (sections.goal_section, sections.latency_section, sections.pareto_section)
        yield from _BYTES if first else ()
        yield from _COMPRESSED
        yield from () if first else _BYTES
    yield from _MADE


def render(document: JobDocument) -> str:
    """The page as HTML."""
    subject = " on ".join(text.escape(document.task[key]) for key in ("model", "name") if document.task.get(key))
    if date := document.environment.get("date"):
        subject += f", <time>{text.escape(date)}</time>"
    body = "".join(
        (
            f'<header><p class="brand">gossamer<span>{subject}</span></p>',
            f'<h1 class="{"missed" if document.missed or warnings(document) else "met"}">{_heading(document)}</h1>',
            _listed(_reasons(document)),
            sections.tiles(document),
            "</header><main>",
            *(build(document) for build in _order(document)),
            "</main>",
        )
    )
    return shell(f"gossamer: {sentence(document)}", body)


def shell(title: str, body: str) -> str:
    """A complete HTML page around a body, with style and script in it."""
    files = resources.files("gossamer.report")
    style, script, page = (files.joinpath(name).read_text("utf-8") for name in ("style.css", "script.js", "page.html"))
    return Template(page).substitute(title=text.escape(title), style=style, script=script, body=body)


def _heading(document: JobDocument) -> str:
    """The verdict, a number never parted from its percent sign."""
    return text.escape(sentence(document)).replace(" %", "&nbsp;%")


def _reasons(document: JobDocument) -> list[str]:
    """Why the verdict is red."""
    return [*document.missed, *document.why, *warnings(document)]


def _listed(reasons: list[str]) -> str:
    if not reasons:
        return ""
    return f'<ul class="reasons">{"".join(f"<li>{text.escape(reason)}</li>" for reason in reasons)}</ul>'
