"""The Markdown table of `compare.py` and the verdict on its targets, from the JSON alone."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev
from typing import Any

RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "torch": "torch (exported graph)"}


@dataclass(frozen=True)
class Target:
    """Speed-ups against the dense float32 network on the same runtime: on the better of ONNX Runtime and OpenVINO, on
    the other; against the best hand combination. minutes: of the whole job, None where nothing is asked."""

    better: float
    other: float
    hand: float
    minutes: float | None


TARGETS = {"resnet20": Target(5.0, 3.5, 1.3, 30.0)}
WIDER = Target(8.0, 5.0, 1.5, None)
INT8_DROP = 0.1


@dataclass(frozen=True)
class Row:
    """One network in one form on one runtime: the rows of all seeds, by seed."""

    by: str
    network: str
    deployment: str
    runtime: str
    precision: str
    seeds: Mapping[int, Mapping[str, Any]]

    def values(self, get: Callable[[Mapping[str, Any]], float]) -> list[float]:
        return [get(row) for row in self.seeds.values()]

    @property
    def top1(self) -> float:
        return mean(self.values(lambda row: row["test"]["top1"]))

    @property
    def drop(self) -> float:
        return mean(self.values(lambda row: row["test"]["drop"]["points"]))

    @property
    def latency(self) -> float:
        return mean(self.values(lambda row: row["latency"]["median_ms"]))

    @property
    def speedup(self) -> float:
        return mean(self.values(lambda row: row["speedup"]))

    @property
    def label(self) -> str:
        return f"{network_name(self.network)}, {form(self)}"


def collect(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The rows of the JSON, one for all seeds together, in the order in which they come."""
    groups: dict[tuple[str, ...], dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for row in rows:
        key = tuple(str(row[name]) for name in ("by", "network", "deployment", "runtime", "precision"))
        groups[key][row["seed"]] = row
    return [Row(*names, seeds) for names, seeds in groups.items()]


def network_name(network: str) -> str:
    """In words."""
    if network.count(":") != 2:
        return network.replace("-", " ")
    divisor, cap, round_to = network.split(":")
    widths = "" if round_to == "1" else f", widths / {round_to}"
    return f"Torch-Pruning, MACs / {divisor}, cap {cap}{widths}"


def form(row: Row) -> str:
    """What is in the file, and what the rest is computed in where that is OpenVINO's own choice."""
    if row.precision != "default":
        return row.deployment
    rest = str(next(iter(row.seeds.values()))["latency"]["computes_in"]).removesuffix(" (default)")
    rest = {"bf16": "bfloat16", "f32": "float32"}.get(rest, rest)
    return f"{rest} (OpenVINO's default)" if row.deployment == "float32" else f"{row.deployment}, rest {rest}"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean +- standard deviation over the seeds."""
    text = f"{mean(values):.{digits}f}"
    return f"{text} +- {stdev(values):.{digits}f}" if len(values) > 1 else text


def runtime_table(rows: Sequence[Row]) -> list[str]:
    """All networks on one runtime, the fastest first."""
    lines = [
        "| network | deployed as | test top-1 % | drop, test | drop, validation | latency ms | speed-up | M MACs "
        "| k parameters | file kB | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row.latency):
        bold = "**" if row.by == "gossamer" else ""
        cells = [
            f"{bold}{network_name(row.network)}{bold}",
            form(row),
            spread(row.values(lambda r: r["test"]["top1"])),
            spread(row.values(lambda r: r["test"]["drop"]["points"])),
            spread(row.values(lambda r: r["validation"]["drop"]["points"])),
            spread(row.values(lambda r: r["latency"]["median_ms"])),
            spread(row.values(lambda r: r["speedup"])),
            f"{mean(row.values(lambda r: r['macs'])) / 1e6:.2f}",
            f"{mean(row.values(lambda r: r['params'])) / 1e3:.1f}",
            f"{mean(row.values(lambda r: r['file_bytes'])) / 1e3:.0f}",
            str(len(row.seeds)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def ratio(hand: Row, own: Row) -> list[float]:
    """Latency of the hand's over ours, seed by seed: both were measured in the same process."""
    return [hand.seeds[s]["latency"]["median_ms"] / own.seeds[s]["latency"]["median_ms"] for s in own.seeds]


def fastest_hand(rows: Sequence[Row], own: Row, fits: Callable[[Row], bool]) -> Row | None:
    """The fastest hand combination, on any runtime but torch, that was measured on all seeds of ours."""
    found = [
        row
        for row in rows
        if row.by == "hand" and row.runtime != "torch" and own.seeds.keys() <= row.seeds.keys() and fits(row)
    ]
    return min(found, key=lambda row: row.latency, default=None)


def line(what: str, wanted: str, got: str, reached: bool | None) -> str:
    return f"| {what} | {wanted} | {got} | {'-' if reached is None else 'reached' if reached else 'NOT reached'} |"


def judge_job(rows: Sequence[Row], network: str, target: Target, document: Mapping[str, Any]) -> list[str]:
    """The targets, for one job of gossamer."""
    budget = document["conditions"]["max_drop"]
    deployed = [r for r in rows if r.by == "gossamer" and r.network == network and r.runtime != "torch"]
    best = {
        name: min((r for r in deployed if r.runtime == name), key=lambda r: r.latency) for name in list(RUNTIMES)[:2]
    }
    other, better = sorted(best.values(), key=lambda row: row.speedup)
    lines = [
        line(
            f"drop on test data, {RUNTIMES[r.runtime]}", f"at most {budget:g} points", f"{r.drop:.2f}", r.drop <= budget
        )
        for r in (better, other)
    ]
    for which, row, wanted in (("better", better, target.better), ("other", other, target.other)):
        what = f"speed-up, the {which} runtime ({RUNTIMES[row.runtime]}, {form(row)})"
        got = spread(row.values(lambda r: r["speedup"]))
        lines.append(line(what, f"at least {wanted:g}", got, row.speedup >= wanted))
    own = min(best.values(), key=lambda row: row.latency)
    equal = partial(at_least, own.top1)
    lines.append(against_hand(rows, own, "of equal or better accuracy", equal, target.hand))
    for runtime, row in best.items():
        words = f"of equal or better accuracy on {RUNTIMES[runtime]}"
        lines.append(against_hand([r for r in rows if r.runtime == runtime], row, words, partial(at_least, row.top1)))
    lines.append(against_hand(rows, own, f"within {budget:g} points", lambda row: row.drop <= budget))
    return lines + judge_time([job for job in document["jobs"] if job["name"] == network], target)


def at_least(top1: float, row: Row) -> bool:
    return row.top1 >= top1


def judge_time(jobs: Sequence[Mapping[str, Any]], target: Target) -> list[str]:
    """How long the jobs took; a job that was cut off is counted by its parts."""
    if not jobs:
        return []
    slowest = max(max(job["wall_seconds"], sum(job["steps_seconds"].values())) / 60 for job in jobs)
    asked = "-" if target.minutes is None else f"at most {target.minutes:g} min"
    reached = None if target.minutes is None else slowest <= target.minutes
    met = f"{sum(job['met'] for job in jobs)} of {len(jobs)}"
    return [
        line("the whole job, slowest seed", asked, f"{slowest:.1f} min", reached),
        line("jobs that met their own goal (validation data)", "-", met, None),
    ]


def against_hand(
    rows: Sequence[Row], own: Row, words: str, fits: Callable[[Row], bool], wanted: float | None = None
) -> str:
    """Our fastest against the hand's fastest."""
    what, asked = f"against the fastest hand combination {words}", "-" if wanted is None else f"at least {wanted:g}x"
    rival = fastest_hand(rows, own, fits)
    if rival is None:
        return line(what, asked, "there is none", None)
    ratios = ratio(rival, own)
    got = (
        f"{spread(ratios)}x: {own.latency:.2f} ms at {own.top1:.2f} % ({RUNTIMES[own.runtime]}, {form(own)}) against "
        f"{rival.latency:.2f} ms at {rival.top1:.2f} % ({rival.label}, {RUNTIMES[rival.runtime]})"
    )
    return line(what, asked, got, None if wanted is None else mean(ratios) >= wanted)


def judge_int8(rows: Sequence[Row]) -> list[str]:
    """int8 alone, by gossamer, on the dense network."""
    alone = [r for r in rows if r.by == "gossamer" and r.network == "dense" and r.precision == "int8"]
    return [
        line(
            f"int8 alone: drop on test data, {RUNTIMES[row.runtime]}",
            f"at most {INT8_DROP:g} points",
            spread(row.values(lambda r: r["test"]["drop"]["points"])),
            row.drop <= INT8_DROP,
        )
        for row in alone
    ]


def render(document: Mapping[str, Any]) -> str:
    """The whole page."""
    conditions, rows = document["conditions"], collect(document["rows"])
    target = TARGETS.get(conditions["model"], WIDER)
    lines = [f"# Speed: {conditions['model']} on {conditions['data']}", "", *describe(document), ""]
    head = ["| target | asked for | measured | |", "|---|---|---|---|"]
    jobs = list(dict.fromkeys(r.network for r in rows if r.by == "gossamer" and r.network != "dense"))
    lines += ["## Targets", "", *head, *judge_int8(rows), ""]
    for network in jobs:
        lines += [f"### {network_name(network)}", "", *head, *judge_job(rows, network, target, document), ""]
    for runtime, name in RUNTIMES.items():
        here = [row for row in rows if row.runtime == runtime]
        if here:
            lines += [f"## {name}", "", *runtime_table(here), ""]
    if document["missing"]:
        lines += ["Missing: " + "; ".join(document["missing"]) + ".", ""]
    return "\n".join(lines)


def describe(document: Mapping[str, Any]) -> list[str]:
    """The conditions, without which no number means anything."""
    c, machine, first = document["conditions"], document["environment"], document["rows"][0]
    versions = {**{k: v for k, v in machine.items() if k in ("gossamer", "torch", "onnxruntime", "openvino")}}
    versions |= {k: v for k, v in document["peers_versions"].items() if k not in versions}
    return [
        f"Batch {c['batch']}, {c['threads']} threads; {machine['processor']}, {machine['cores']} cores, "
        f"load before measuring at most {max(document['load_before'].values()):.1f}. Seeds: "
        f"{', '.join(map(str, c['seeds']))}; mean +- standard deviation over them. Every latency is the median of "
        f"{first['latency']['runs']} runs; all networks of a seed are timed in one process, in random order. "
        "Speed-up: against the dense float32 network on the same runtime. Drop: points of top-1 against it on the same "
        f"samples, n = {first['test']['n']} (test), {first['validation']['n']} (validation). Recovery: {c['epochs']} "
        "epochs for all. " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".",
        "",
        f"Made by `{document['command']}`.",
    ]
