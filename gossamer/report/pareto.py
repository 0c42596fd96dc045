"""Score against cost of every state that the job tried."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from gossamer.core.record import JobDocument, Trial
from gossamer.core.units import PERCENT
from gossamer.report import text
from gossamer.report.plot import (
    Frame,
    Point,
    axes,
    figure,
    line,
    mark,
    path,
)
from gossamer.report.score import Score
from gossamer.report.table import AFTER, ORIGINAL, drop_record, summary_rows
from gossamer.report.text import escape

_SIZE = "File size"
_FAR = 10  # times from the smallest to the largest file: on a linear axis the small ones would lie on one another


@dataclass(frozen=True)
class Axis:
    """One cost to plot against. unit: what one unit of the axis is worth in the state's own numbers. far: whether
    the axis is logarithmic where costs lie far apart."""

    name: str
    title: str
    value: Callable[[Trial], float | None]
    show: Callable[[float], str]
    unit: float = 1.0
    far: bool = False


def pareto(document: JobDocument) -> list[tuple[str, str]]:
    """(name, plot as HTML) for each cost that at least two states have; what the goal is about first."""
    states = [state for state in document.states if state.score is not None]
    plots = []
    for axis in _axes(document, states):
        shown = [
            (state, cost, state.score)
            for state in states
            if (cost := axis.value(state)) is not None and state.score is not None
        ]
        if len({cost for _, cost, _ in shown}) >= 2:
            plots.append((axis.name, _plot(document, axis, shown)))
    return plots


def compact_sizes(document: JobDocument) -> tuple[float, float] | None:
    """Bytes of the original in float32 and of the compact file; None where these were not measured."""
    sizes = {r.subject: r.value for r in document.records if r.what == "compact_bytes"}
    after = next((sizes[subject] for subject in AFTER if subject in sizes), None)
    return None if after is None or ORIGINAL not in sizes else (sizes[ORIGINAL], after)


def size_limit(document: JobDocument) -> float | None:
    """How many bytes the goal allows the compact file; None where it asks for no size."""
    goal, sizes = document.goal, compact_sizes(document)
    limits = [float(goal["file_bytes"])] if goal.get("file_bytes") else []
    if goal.get("compression_ratio") and sizes is not None:
        limits.append(sizes[0] / float(goal["compression_ratio"]))
    return min(limits, default=None)


def final_state(document: JobDocument) -> Trial | None:
    """The network that the job ended with: the state with the drop of the result, else the last that was accepted."""
    tried = document.states[1:]
    drop = drop_record(document, "validation")
    same = [s for s in tried if drop is not None and s.drop is not None and abs(s.drop - drop.value) < 1e-9]
    return next(reversed(same or [state for state in tried if state.accepted]), None)


def with_final_times(document: JobDocument) -> JobDocument:
    """The original and the result as the summary has them: they were timed again at the end, in the same rounds, while
    each state was timed at the moment when it was tried."""
    states, final = list(document.states), final_state(document)
    batch = str(document.goal.get("batch", ""))
    rows = [row for row in summary_rows(document) if row.what == "latency" and row.batch in ("", batch)]
    for i, state in enumerate(states):
        found = {row.runtime: row.before if i == 0 else row.after for row in rows} if i == 0 or state is final else {}
        times = {name: cell.value for name, cell in found.items() if cell is not None and cell.value is not None}
        known = {name: times.get(name, ms) for name, ms in state.latency_ms.items()}
        states[i] = replace(state, latency_ms=known)
    return replace(document, states=states)


def standing(state: Trial) -> str:
    """What became of a state; one without accuracy was never judged."""
    if state.accepted:
        return "accepted"
    if state.brief:
        return "after a brief training"
    return "rejected" if state.score is not None else "cost measured, not judged"


def describe_trial(state: Trial, score: Score) -> list[str]:
    """All that is known of a state, line by line."""
    lines = [state.name if state.accepted else f"{state.name} ({standing(state)})"]
    if state.score is not None:
        lines.append(f"{score.text(state.score)} on validation")
    if state.drop is not None:
        lines.append(f"{text.points(abs(state.drop))} points {'lost' if state.drop >= 0 else 'gained'}")
    lines += [f"{text.milliseconds(ms)} on {text.runtime(name)}" for name, ms in state.latency_ms.items()]
    lines += [f"{text.large(state.macs)} MACs", f"{text.count(state.params)} parameters"]
    if state.file_bytes is not None:
        lines.append(f"{text.size(state.file_bytes)} file")
    return [*lines, state.note] if state.note else lines


def _axes(document: JobDocument, states: Sequence[Trial]) -> list[Axis]:
    runtimes = list(dict.fromkeys(name for state in states for name in state.latency_ms))
    runtimes.sort(key=lambda name: name != document.goal.get("runtime"))
    latency = [
        Axis(text.runtime(name), f"latency on {text.runtime(name)}, ms", partial(_latency, name), text.milliseconds)
        for name in runtimes
    ]
    size = Axis(_SIZE, "file, kB", lambda s: s.file_bytes, text.size, 1e3, far=True)
    others = [
        *latency,
        Axis("MACs", "multiply-adds, millions", lambda s: s.macs, text.large, 1e6),
        Axis("Parameters", "parameters, thousands", lambda s: s.params, text.count, 1e3),
    ]
    return [*others, size] if size_limit(document) is None else [size, *others]


def _latency(name: str, state: Trial) -> float | None:
    return state.latency_ms.get(name)


def _plot(document: JobDocument, axis: Axis, shown: Sequence[tuple[Trial, float, float]]) -> str:
    original = document.states[0]
    allowed = document.goal.get("max_drop")
    score = Score.of(document)
    floor = None if allowed is None or original.score is None else score.worse(original.score, float(allowed))
    final = final_state(document)
    limit = _limit(document, axis, original)
    frame = _frame(axis, shown, floor, limit, score)
    title = f"{axis.title}, logarithmic" if frame.log_x else axis.title
    what = f"{score.name} on validation"
    body = [
        axes(frame, title, f"{what}, {score.unit}" if score.unit else what),
        _goal_region(frame, floor, limit and limit / axis.unit),
    ]
    body.append(path(frame, _front([(c / axis.unit, t) for s, c, t in shown if s.accepted], score.sign), "front"))
    low = 0
    # Rejected states first: what was accepted lies on top where dots meet.
    for state, cost, value in sorted(shown, key=lambda row: (row[0].accepted, row[0] is final)):
        x = cost / axis.unit
        if score.sign * value < score.sign * frame.y_low:
            low += 1
            css = "brief" if state.brief else "rejected"
            body.append(mark(frame, (x, frame.y_low), css, describe_trial(state, score), "below"))
        elif state is original:
            body.append(mark(frame, (x, value), "original", describe_trial(state, score), "diamond"))
        elif state is final:
            body.append(mark(frame, (x, value), "accepted final", describe_trial(state, score), "star"))
        elif state.accepted:
            body.append(mark(frame, (x, value), "accepted", describe_trial(state, score), "dot"))
        elif state.brief:
            body.append(mark(frame, (x, value), "brief", describe_trial(state, score), "dot"))
        else:
            body.append(mark(frame, (x, value), "rejected", describe_trial(state, score), "cross"))
    for state, cost, value in shown:
        if state in (original, final) and score.sign * value >= score.sign * frame.y_low:
            body.append(_label(frame, (cost / axis.unit, value), "original" if state is original else "result"))
    label = f"{text.titled(what)} against {axis.title}, one mark per state that was tried"
    plot = figure("".join(body), frame, label)
    verb = "lies" if low == 1 else "lie"
    return plot + (f'<p class="note">{text.plural(low, "state")} {verb} below this axis (▼).</p>' if low else "")


def _frame(
    axis: Axis, shown: Sequence[tuple[Trial, float, float]], floor: float | None, limit: float | None, score: Score
) -> Frame:
    """x from 0, or logarithmic; y around what was accepted and the budget: one that collapsed must not flatten all."""
    sign = score.sign  # the larger the better from here on
    every = [sign * value for _, _, value in shown]
    accepted = [sign * value for state, _, value in shown if state.accepted] or every
    high, low = max(every), min([*accepted, *([sign * floor] if floor is not None else [])])
    least = 0.2 if score.unit == PERCENT else 0.01 * max(abs(high), abs(low), 1e-9)
    low = min([low, *(value for value in every if value >= low - 1.6 * max(high - low, least))])
    pad = 0.12 * max(high - low, least)
    low, high = low - pad, high + pad
    if min(value for _, _, value in shown) >= 0:  # no axis beyond what there can be
        low, high = (max(low, 0.0), high) if sign > 0 else (low, min(high, 0.0))
    low, high = sign * low, sign * high
    costs = [cost / axis.unit for _, cost, _ in shown]
    if axis.far and max(costs) > _FAR * min(costs) > 0:
        left = min([*costs, limit / axis.unit] if limit else costs)
        return Frame(left / 1.6, max(costs) * 1.25, low, high, log_x=True)
    return Frame(0.0, max(costs) * 1.06, low, high)


def _limit(document: JobDocument, axis: Axis, original: Trial) -> float | None:
    """What the goal asks on this axis, in the state's numbers; None where it asks nothing."""
    goal = document.goal
    if axis.name == text.runtime(goal.get("runtime", "")):
        base = axis.value(original)
        limits = [goal["latency_ms"]] if goal.get("latency_ms") else []
        if goal.get("speedup") and base is not None:
            limits.append(base / float(goal["speedup"]))
        return min(limits, default=None)
    if axis.name == _SIZE:
        return size_limit(document)
    name = {"MACs": "macs", "Parameters": "params"}.get(axis.name, "")
    return float(goal[name]) if goal.get(name) is not None else None


def _goal_region(frame: Frame, floor: float | None, limit: float | None) -> str:
    """The budget as a dashed line, and where the gain is reached too as a shaded area."""
    parts = []
    if floor is not None:
        parts.append(line(frame, (frame.x_low, floor), (frame.x_high, floor), "budget"))
        parts.append(f'<text class="budget" x="100%" y="{frame.y(floor)}" dy="15" text-anchor="end">budget</text>')
    if limit is not None and limit > 0:
        bottom = frame.y_low if floor is None else floor
        height = float(frame.y(bottom))
        width = frame.x(min(limit, frame.x_high))
        parts.append(f'<rect class="goal" x="0" y="0" width="{width}" height="{height:.1f}"/>')
        parts.append('<text class="goal" x="0" dx="8" y="18">goal</text>')
    return "".join(parts)


def _front(points: Sequence[Point], sign: float) -> list[Point]:
    """The staircase of points that no other one beats in both score and cost. sign: -1 where lower is better."""
    front: list[Point] = []
    for x, y in sorted(points, key=lambda p: (p[0], -sign * p[1])):
        if front and sign * y <= sign * front[-1][1]:
            continue
        if front:
            front.append((x, front[-1][1]))
        front.append((x, y))
    return front


def _label(frame: Frame, at: Point, name: str) -> str:
    """The name below the mark: what is better lies above it, what is worse far below."""
    share = frame.share(at[0])
    anchor, dx = ("end", 10) if share > 0.85 else ("start", -10) if share < 0.1 else ("middle", 0)
    place = f'x="{frame.x(at[0])}" y="{frame.y(at[1])}" dx="{dx}" dy="28" text-anchor="{anchor}"'
    return f'<text class="label" {place}>{escape(name)}</text>'
