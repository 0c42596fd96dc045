"""docs/reproduction.md, from the JSON of the rows alone."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

from benchmarks.common import paths
from benchmarks.common.tables import wrapped

PAGE = paths.ROOT / "docs" / "reproduction.md"
SIGN = {"at most": 1.0, "at least": -1.0}
HEAD = """# The papers' numbers, measured again

What the papers of the survey report, and what gossamer reaches in their settings, on MNIST unless a
row says otherwise. `python -m benchmarks.papers table` writes this page from
`benchmarks/results/papers/*.json` alone; `python -m benchmarks.papers run ROW` measures a row.

Means of the seeds, ± the standard deviation between them. Errors are of the 10,000 test images, in
percent. Their standard error near 1 % is 0.10 points, so a difference of 0.2 between one seed and a
paper is noise. "Missed by" is what lies beyond the tolerance as well as within it: the whole
distance from the paper's number. Networks that are compared with each other have equal numbers of
epochs, equal data, and the same rule for the epoch that is kept, which validation images decide and
never test images. Rows with fewer than three seeds say so.
"""


def page(documents: Sequence[Mapping[str, Any]]) -> str:
    """The whole page."""
    measured = [one for one in documents if one["by_seed"]]
    waiting = [one for one in documents if not one["by_seed"]]
    verdicts = [judged for one in measured for judged in judgements(one)]
    met = sum(judged.endswith("met") for *_, judged in verdicts)
    parts = [
        HEAD,
        f"{len(measured)} of {len(documents)} rows are measured. Of their {len(verdicts)} numbers and orders, "
        f"{met} are "
        f"met and {len(verdicts) - met} are missed.",
        "",
        "| row | paper's number | paper | ours | result |",
        "|---|---|---:|---:|---|",
    ]
    for one in measured:
        parts += [f"| [{one['row']}](#{anchor(one)}) | {' | '.join(judged)} |" for judged in judgements(one)]
    parts += ["", "## Not run", "", "Complete commands, for a machine that has the data or the time.", ""]
    parts += ["| row | paper's numbers | command | takes |", "|---|---|---|---|"]
    parts += [not_run(one) for one in waiting]
    for one in measured:
        parts += section(one)
    return wrapped("\n".join(parts).rstrip() + "\n")


def anchor(document: Mapping[str, Any]) -> str:
    """The link to a section."""
    return "row-" + str(document["row"])


def values(document: Mapping[str, Any], name: str) -> list[float]:
    """A number of all seeds."""
    return [one["numbers"][name] for one in document["by_seed"].values() if name in one["numbers"]]


def shown(numbers: Sequence[float]) -> str:
    """Mean and spread."""
    if not numbers:
        return "none"
    largest = max(map(abs, numbers))
    digits = 0 if largest >= 1000 else 1 if largest >= 20 else 2
    spread = f" ± {stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{mean(numbers):,.{digits}f}{spread}"


def judgements(document: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(what, the paper's, ours, met or missed by how much) for every number and order of a row."""
    enough = len(document["by_seed"]) >= 3 or document["exact"]
    few = "" if enough else f", {len(document['by_seed'])} seed(s)"
    found = []
    for one in document["numbers"]:
        ours = values(document, one["name"])
        what = f"{one['name']} ({one['where']})"
        found.append((what, f"{one['paper']:g} {one['unit']}", shown(ours) + few, distance(one, mean(ours))))
    for one in document["orders"]:
        means = [mean(values(document, name)) for name in one["names"]]
        pairs = zip(one["names"], distinct(one["names"]), strict=True)
        listed = ", ".join(f"{shown(values(document, name))} ({short})" for name, short in pairs)
        found.append((f"{one['says']} ({one['where']})", "this order", listed + few, ordered(one, means)))
    return found


def distinct(names: Sequence[str]) -> list[str]:
    """Names without the parts, between commas, that all of them have."""
    parts = [name.split(", ") for name in names]
    same = set(parts[0]).intersection(*parts[1:])
    return [", ".join(part for part in one if part not in same) for one in parts]


def distance(number: Mapping[str, Any], ours: float) -> str:
    """Whether a number is met; how far a missed one is from the paper's."""
    off = ours - number["paper"]
    wrong = abs(off) if number["side"] == "about" else SIGN[number["side"]] * off
    if wrong <= number["tolerance"] + 1e-9:
        return "met"
    return f"**missed by {abs(off):.2f}** {number['unit']}"


def ordered(order: Mapping[str, Any], means: Sequence[float]) -> str:
    """Whether an order holds; by how much the worst pair contradicts it."""
    sign = -1.0 if order["higher"] else 1.0
    behind = max(sign * (better - worse) for better, worse in pairwise(means))
    if behind <= order["tolerance"] + 1e-9:
        return "met"
    if behind <= 0:
        return f"**leads by {-behind:.2f}** {order['unit']}, {-order['tolerance']:g} are expected"
    return f"**contradicted by {behind:.2f}** {order['unit']}"


def not_run(document: Mapping[str, Any]) -> str:
    """Its line in the table of what was not run."""
    asked = [f"{one['name']} {one['paper']:g} {one['unit']} ({one['where']})" for one in document["numbers"]]
    asked += [f"{one['says']} ({one['where']})" for one in document["orders"]]
    takes = document["needs"] or f"about {document['minutes']:g} minutes a seed"
    return f"| {document['row']} | {document['title']}: {'; '.join(asked)} | `{document['command']}` | {takes} |"


def section(document: Mapping[str, Any]) -> list[str]:
    """What was done, and the reason of a miss."""
    missed = [judged for judged in judgements(document) if judged[-1] != "met"]
    seeds = document["by_seed"]
    lines = ["", f"## Row {document['row']}", "", f"{document['title']}. {document['paper']}.", ""]
    lines += [f"- The paper's setting: {document['setting']}", f"- Ours: {document['ours']}"]
    for what, paper, ours, result in missed:
        lines.append(f"- {result}: {what}; paper: {paper}; ours: {ours}.")
    if missed:
        lines.append(f"- Why it is missed: {document['reason'] or 'not looked for.'}")
    compared = {one["name"] for one in document["numbers"]} | {n for one in document["orders"] for n in one["names"]}
    others = [name for name in next(iter(seeds.values()))["numbers"] if name not in compared]
    if others:
        lines.append("- Also measured: " + "; ".join(f"{n}: {shown(values(document, n))}" for n in others) + ".")
    if document["taken"]:
        return [*lines, f"- Seeds {', '.join(seeds)}; taken from `{document['taken']}`, of `{document['command']}`."]
    seconds = [one["processor_seconds"] for one in seeds.values()]
    runs = [
        f"seed{'s' * (len(one['seeds']) > 1)} {', '.join(map(str, one['seeds']))} on {one['threads']} thread of "
        f"{one['processor']}, {one['date']}"
        for one in document["measured"]
    ]
    time = (
        f"{mean(seconds):.0f} seconds of processor time a seed; " if mean(seconds) >= 1 else ""
    )  # else from another JSON
    lines.append(f"- `{document['command']}`; {time}{'; '.join(runs)}.")
    return lines
