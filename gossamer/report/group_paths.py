"""Groups of weights that became zero while a network was trained: how many were left, layer by layer."""

from gossamer.core.edit_details import GroupPath
from gossamer.core.record import Edit, JobDocument
from gossamer.report import text
from gossamer.report.plot import Frame, axes, curve, figure
from gossamer.report.sections import section
from gossamer.report.text import escape

_NAMED = 3  # layers that have a colour: those that lost most


def paths_section(document: JobDocument) -> str:
    """A plot for each training that emptied groups; nothing where none did."""
    found = [(edit, edit.path) for edit in document.edits if edit.path is not None and len(edit.path.steps) > 1]
    if not found:
        return ""
    lead = (
        "A group is all that is removed together: what makes a channel, one tap of one input channel, a block. What "
        "has become zero stays zero and was removed. The strength of the penalty followed from the target."
    )
    return section("Groups that became zero", "".join(_plot(edit, path) for edit, path in found), lead)


def _plot(edit: Edit, path: GroupPath) -> str:
    """The share of the groups that is left against the steps, one curve for each layer."""
    frame = Frame(0.0, float(path.steps[-1]), 0.0, 100.0)
    body = [axes(frame, "step of the training", "groups that are not zero, %")]
    lost = {name: 1 - counts[-1] / max(counts[0], 1) for name, counts in path.alive.items()}
    order = sorted(lost, key=lambda name: -lost[name])
    for rank, name in reversed(list(enumerate(order))):
        counts = path.alive[name]
        css = f"curve named-{rank}" if rank < _NAMED else "curve"
        tip = [name, f"{counts[0]} groups, {counts[-1]} left"]
        body.append(curve(frame, [(x, 100 * n / max(counts[0], 1)) for x, n in zip(path.steps, counts)], css, tip))
    key = "".join(f'<span><i class="named-{i}"></i>{escape(name)}</span>' for i, name in enumerate(order[:_NAMED]))
    said = (
        f"{escape(edit.method)}: {escape(edit.before)}, {escape(edit.after)}; cost {text.large(path.cost[0])} to "
        f"{text.large(path.cost[-1])}; strength {text.significant(path.strength[0])} to "
        f"{text.significant(path.strength[-1])} at the end."
    )
    label = f"Groups that are not zero against steps, one curve for each layer, {edit.method}"
    return f'<p class="note">{said}</p>{figure("".join(body), frame, label)}<p class="key">{key}</p>'
