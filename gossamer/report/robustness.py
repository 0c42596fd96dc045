"""Scores of networks under distortions: the plot of `gossamer analyze --robustness`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from gossamer.core.record import write_text
from gossamer.errors import BadInput
from gossamer.report import text
from gossamer.report.page import shell
from gossamer.report.plot import Frame, axes, curve, figure
from gossamer.report.text import escape

# (what is distorted, projection, points lost)
Distortion = tuple[str, str, float]
_COLOURS = 3  # that the style sheet has


def write_robustness(networks: Mapping[str, Sequence[Distortion]], path: str | Path, *, title: str) -> Path:
    """Write points lost under each projection as one self-contained HTML page, a curve for each network.

    Args:
        networks: rows by the name of the network, with the same projections for all: (what, projection, drop).
        path: of the page.
        title: its heading.

    Returns:
        The path.

    Raises:
        BadInput: there are no rows, or networks have different ones.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows = {"plain": [("weights", "sign", 3.2)]}
        ...     write_robustness(rows, f"{folder}/page.html", title="tiny").stat().st_size > 1000
        True
    """
    keys = [[(what, projection) for what, projection, _ in rows] for rows in networks.values()]
    if not keys or not keys[0] or any(one != keys[0] for one in keys):
        raise BadInput("robustness: give at least one network with rows, and the same projections for all")
    plots = "".join(_plot(networks, what) for what in dict.fromkeys(what for what, _ in keys[0]))
    lead = "Weights, or inputs of layers, under projections; nothing retrained, batch norms estimated again."
    body = (
        f'<header><p class="brand">gossamer<span>robustness</span></p><h1 class="met">{escape(title)}</h1>'
        f'<p class="lead">{lead}</p></header><main>{plots}</main>'
    )
    target = Path(path)
    write_text(target, shell(f"gossamer: {title}", body))
    return target


def _plot(networks: Mapping[str, Sequence[Distortion]], what: str) -> str:
    """Points lost against the number of the projection, and the table that has the numbers."""
    drops = {name: [(p, drop) for kind, p, drop in rows if kind == what] for name, rows in networks.items()}
    every = [drop for rows in drops.values() for _, drop in rows]
    low, high, count = min(0.0, *every), max(1.0, *every), len(next(iter(drops.values())))
    frame = Frame(0.0, count + 1.0, low - 0.02 * (high - low), high * 1.05)
    body = [axes(frame, "number of the projection", "points lost")]
    for rank, (name, rows) in enumerate(drops.items()):
        tip = [name, *(f"{projection}: {text.points(drop)} points" for projection, drop in rows)]
        points = [(float(i), drop) for i, (_, drop) in enumerate(rows, start=1)]
        body.append(curve(frame, points, f"curve named-{rank}" if rank < _COLOURS else "curve", tip))
    key = "".join(
        f'<span><i class="named-{rank}"></i>{escape(name)}</span>' for rank, name in enumerate(list(drops)[:_COLOURS])
    )
    label = f"Points lost under distorted {what}, one curve per network"
    drawn = figure("".join(body), frame, label) + f'<p class="key">{key}</p>'
    return f"<section><h2>Distorted {escape(what)}</h2>{drawn}{_table(drops, max(1.0, *every))}</section>"


def _table(drops: Mapping[str, Sequence[tuple[str, float]]], top: float) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in drops)
    rows = []
    for number, cells in enumerate(zip(*drops.values()), start=1):
        shown = "".join(
            f'<td style="--share:{60 * (max(drop, 0.0) / top) ** 0.5:.0f}%">'
            f'<data value="{drop}">{text.points(drop)}</data></td>'
            for _, drop in cells
        )
        rows.append(f'<tr><th scope="row">{number} {escape(cells[0][0])}</th>{shown}</tr>')
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="points lost, by projection and network">'
        f'<table class="heat"><thead><tr><th scope="col">Projection</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
