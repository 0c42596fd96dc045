"""The page of an architecture search: what was tried, its cost and score, and the front."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gossamer.core.record import write_text
from gossamer.errors import BadInput
from gossamer.report.page import shell
from gossamer.report.plot import Frame, axes, figure, line, mark, path
from gossamer.report.text import escape


@dataclass(frozen=True, kw_only=True)
class SearchRow:
    """One architecture of the page.

    Attributes:
        name: its number and what it is.
        cost: in the unit of the axis.
        score: in the unit of the metric.
        best: whether it lies on the front.
        chosen: whether it is what the search gives.
        detail: lines to show beside the mark.

    Example:
        >>> SearchRow(name="trial 1", cost=1.2, score=88.0).best
        False
    """

    name: str
    cost: float
    score: float
    best: bool = False
    chosen: bool = False
    detail: tuple[str, ...] = ()


def write_search(
    rows: Sequence[SearchRow],
    target: str | Path,
    *,
    title: str,
    lead: str,
    cost_title: str,
    score_title: str,
    limit: float | None = None,
) -> Path:
    """Write the plot and the table of a search as one self-contained HTML page.

    Args:
        rows: what was trained; the front and the choice are marked.
        target: of the page.
        title: its heading.
        lead: the sentence below it.
        cost_title: of the horizontal axis, with its unit.
        score_title: of the vertical axis, with its unit.
        limit: of the cost, drawn as a line.

    Returns:
        The path.

    Raises:
        BadInput: there are no rows.

    Example:
        >>> import tempfile
        >>> rows = [SearchRow(name="1", cost=1.0, score=80.0, best=True), SearchRow(name="2", cost=2.0, score=79.0)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = write_search(rows, f"{folder}/a.html", title="t", lead="l", cost_title="ms", score_title="%")
        ...     page.stat().st_size > 1000
        True
    """
    if not rows:
        raise BadInput("the page of a search needs at least one trained architecture")
    costs, scores = [row.cost for row in rows], [row.score for row in rows]
    room = 0.08 * (max(scores) - min(scores)) or 1.0
    frame = Frame(0.0, 1.05 * max([*costs, limit or 0.0]), min(scores) - room, max(scores) + room)
    front = sorted((row.cost, row.score) for row in rows if row.best)
    body = [axes(frame, cost_title, score_title)]
    if limit is not None:
        body.append(line(frame, (limit, frame.y_low), (limit, frame.y_high), "budget"))
    body.append(path(frame, front, "front"))
    for row in rows:
        style = ("accepted final", "star") if row.chosen else ("accepted", "dot") if row.best else ("brief", "ring")
        body.append(mark(frame, (row.cost, row.score), style[0], (row.name, *row.detail), style[1]))
    page = (
        f'<header><p class="brand">gossamer<span>search</span></p><h1 class="met">{escape(title)}</h1>'
        f'<p class="lead">{escape(lead)}</p></header>'
        f"<main>{figure(''.join(body), frame, f'{score_title} over {cost_title}')}"
        f"<section><h2>What was trained</h2>{_table(rows, cost_title, score_title)}</section></main>"
    )
    write_text(Path(target), shell(f"gossamer: {title}", page))
    return Path(target)


def _table(rows: Sequence[SearchRow], cost_title: str, score_title: str) -> str:
    """The best first."""
    lines = "".join(
        f'<tr><th scope="row">{escape(row.name)}</th><td>{row.cost:.4g}</td><td>{row.score:.2f}</td>'
        f"<td>{'chosen' if row.chosen else 'front' if row.best else ''}</td></tr>"
        for row in sorted(rows, key=lambda row: -row.score)
    )
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in ("Architecture", cost_title, score_title, ""))
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'
