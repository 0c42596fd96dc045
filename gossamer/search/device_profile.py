"""Times of another device, out of a profile that `bench_on_device.py` wrote there.

The profile has whole networks and their nodes. What timing adds to each node is found from both and taken off. A node
that the profile knows costs what it did there. Of others of the same kind, the time follows from multiply-adds, from
the numbers that are read and written and from the places of the output: a fit to the nodes of that kind. Sums of nodes
are scaled to the whole networks of the profile, and checked against them.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls
from torch import Tensor

from gossamer.core.goal import Goal
from gossamer.errors import BadInput
from gossamer.runtime.profiling import node_rows

FORMAT = 2
FARTHEST = 0.35  # a predicted whole network from its time in the profile, in parts of that time
SUMS = (0.4, 2.0)  # all nodes of a network over its own time
LEAST_RATED = 3  # different nodes of a kind, for a fit of its own
KEPT = 0.1  # of a node's time, at least, when what timing adds is taken off
HEAVY = ("Conv", "Gemm", "MatMul", "LSTM", "GRU", "Attention")  # parts of operators' names whose time must be known
RECURRENT = ("LSTM", "GRU")
Node = Mapping[str, Any]
Rates = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """What a device takes for nodes. table: milliseconds of known ones; rates: of a kind, for one node, a multiply-add,
    a number and a place; small: the same of all nodes that do not multiply matrices; scale: whole networks over the
    sums of their nodes."""

    device: Mapping[str, Any]
    version: str
    threads: int
    batch: int
    table: Mapping[str, float]
    rates: Mapping[str, Rates]
    small: Rates
    scale: float

    @property
    def label(self) -> str:
        """The device and its runtime, in words."""
        return f"{self.device.get('processor', 'unnamed')}, onnxruntime {self.version}, from its profile"

    def predict(self, nodes: Sequence[Mapping[str, Any]]) -> float:
        """Milliseconds of one call.

        Args:
            nodes: of the network, as the runtime here runs it (`gossamer.runtime.profiling.node_rows`).

        Returns:
            The time.

        Raises:
            BadInput: the profile knows nothing like a node that takes much of the time.
        """
        return self.scale * sum(map(self.node_ms, nodes))

    def node_ms(self, node: Mapping[str, Any]) -> float:
        """Milliseconds of one node, before they are scaled."""
        if (known := self.table.get(_key(node))) is not None:
            return known
        rates = self.rates.get(_kind(node), None if _is_heavy(node) else self.small)
        if rates is None:
            raise BadInput(
                f"the profile of {self.device.get('processor', 'the device')} has no node like {_kind(node)}; run "
                "bench_on_device.py with this network, too, in float32 and in int8"
            )
        return float(np.dot(rates, _features(node)))


def read_profile(path: Path | str) -> DeviceProfile:
    """A profile, checked.

    Args:
        path: of the JSON that `bench_on_device.py` wrote.

    Returns:
        The profile.

    Raises:
        BadInput: it is none, is of another version of the runtime, or its nodes do not explain its whole networks.
    """
    path = Path(path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != FORMAT or raw["runtime"] != "onnxruntime":
            raise BadInput(f"{path}: a profile of format {FORMAT} and of onnxruntime is expected")
        profile = _of_networks(raw)
    except OSError as error:
        raise BadInput(f"{path}: no such profile of a device") from error
    except BadInput:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise BadInput(f"{path} is no profile of bench_on_device.py: {type(error).__name__}: {error}") from error
    if profile.version != (here := version("onnxruntime")):
        raise BadInput(
            f"{path}: measured with onnxruntime {profile.version}, here is {here}, which may run other nodes; install "
            f"onnxruntime=={profile.version} here, or measure again there"
        )
    _check_whole(profile, raw["networks"], path)
    return profile


def profile_of(goal: Goal) -> DeviceProfile | None:
    """The profile that a goal names; None where it names none. BadInput where it was measured in another way."""
    if goal.device_profile is None:
        return None
    profile = read_profile(goal.device_profile)
    for name in ("threads", "batch"):
        there, asked = getattr(profile, name), getattr(goal, name)
        if there != asked:
            raise BadInput(
                f"{goal.device_profile}: measured with {name} {there}, the goal asks for {asked}",
                shell=f"{goal.device_profile}: measured with {name} {there}; add --{name} {there}",
            )
    return profile


def predicted_ms(profile: DeviceProfile, path: Path, inputs: tuple[Tensor, ...], *, threads: int) -> float:
    """Milliseconds of one call of a network on the device."""
    return profile.predict(node_rows(path, inputs, threads=threads))


def _of_networks(raw: Mapping[str, Any]) -> DeviceProfile:
    wholes, networks = _without_overhead(raw["networks"])
    table: dict[str, list[float]] = {}
    kinds: dict[str, list[Node]] = {}
    for node in (nodes := [node for network in networks for node in network]):
        table.setdefault(_key(node), []).append(node["ms"])
        kinds.setdefault(_kind(node), []).append(node)
    light = [node for node in nodes if not _is_heavy(node)]
    usual = float(np.median([node["ms"] for node in light or nodes]))
    small = _rates(light) if _differ(light) else (usual, 0.0, 0.0, 0.0)
    ratios = [whole / math.fsum(node["ms"] for node in network) for whole, network in zip(wholes, networks)]
    return DeviceProfile(
        device=raw["device"],
        version=str(raw["version"]),
        threads=int(raw["threads"]),
        batch=int(raw["batch"]),
        table={key: float(np.median(times)) for key, times in table.items()},
        rates={k: _rates(some) if _differ(some) else _rates_of_few(some, small, usual) for k, some in kinds.items()},
        small=small,
        scale=float(np.median(ratios)),
    )


def _without_overhead(networks: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[list[Node]]]:
    """The times of whole networks, and their nodes without what timing adds to each: as much as the nodes together take
    longer than their network."""
    wholes = [float(network["median_ms"]) for network in networks]
    times = [[float(node["ms"]) for node in network["nodes"]] for network in networks]
    known = [math.isfinite(whole) and whole > 0 and math.fsum(some) > 0 for whole, some in zip(wholes, times)]
    if not known or not all(known):
        raise ValueError("it has no network with times")
    over = [(math.fsum(some) - whole) / len(some) for whole, some in zip(wholes, times)]
    added = max(0.0, float(np.median(over)))
    return wholes, [
        [{**node, "ms": max(ms - added, KEPT * ms)} for node, ms in zip(network["nodes"], some)]
        for network, some in zip(networks, times)
    ]


def _check_whole(profile: DeviceProfile, networks: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Refuse a table that does not give the whole networks again."""
    for network in networks:
        found, measured = profile.predict(network["nodes"]), float(network["median_ms"])
        if abs(found / measured - 1) > FARTHEST or not SUMS[0] < 1 / profile.scale < SUMS[1]:
            raise BadInput(
                f"{path}: the nodes of {network['file']} make {found:.3g} ms, the whole network takes {measured:.3g}; "
                "measure again while nothing else runs there"
            )


def _key(node: Mapping[str, Any]) -> str:
    """What two nodes have in common that take the same time."""
    return json.dumps([node["op"], node["inputs"], node["outputs"]])


def _kind(node: Node) -> str:
    weight = _weight(node)
    grouped = weight is not None and len(weight) > 2 and weight[1] == 1
    return f"{node['op']}, depthwise" if grouped else str(node["op"])


def _is_heavy(node: Node) -> bool:
    return any(part in node["op"] for part in HEAVY)


def _weight(node: Node) -> Sequence[int] | None:
    """The shape of the weights of a convolution or product; None where a node has none."""
    return next((shape for shape in node["inputs"][1:] if len(shape) >= 2), None) if _is_heavy(node) else None


def _features(node: Node) -> tuple[float, float, float, float]:
    """One node, its multiply-adds, the numbers that it reads and writes, and the places at which it has outputs."""
    weight, made = _weight(node), sum(math.prod(shape) for shape in node["outputs"])
    numbers = float(made + sum(math.prod(shape) for shape in node["inputs"] if shape))
    if weight is None:
        return 1.0, 0.0, numbers, 0.0
    first = node["inputs"][0]
    if any(part in node["op"] for part in RECURRENT):
        places = math.prod(first[:2])
        return (
            1.0,
            float(places * sum(math.prod(shape) for shape in node["inputs"][1:] if len(shape) == 3)),
            numbers,
            places,
        )
    inner, outputs = (math.prod(weight[1:]), weight[0]) if len(weight) > 2 else (first[-1], node["outputs"][0][-1])
    return 1.0, float(made * inner), numbers, made / max(1, outputs)


def _rates(nodes: Sequence[Node]) -> Rates:
    """What a node, a multiply-add, a number and a place of it take: none less than nothing, nearest in relative
    terms."""
    times = np.array([max(node["ms"], 1e-4) for node in nodes])
    rows = np.array([_features(node) for node in nodes])
    found, _ = nnls(rows / times[:, None] / (unit := rows.max(0).clip(1)), np.ones(len(nodes)))
    one, mac, number, place = (float(value) for value in found / unit)
    return one, mac, number, place


def _rates_of_few(nodes: Sequence[Node], small: Rates, usual: float) -> Rates:
    """The same of nodes that do not tell what they take by themselves from what they do: numbers take what they do in
    small nodes, the rest is the node's own, but not more than is usual, and what is left goes by size.

    usual: what a small node takes as a rule.
    """
    size, ms = (float(np.mean([value(node) for node in nodes])) for value in (_size, lambda node: node["ms"]))
    one = min(max(ms - small[2] * size, 0.0), usual)
    each = (ms - one) / max(1.0, size)
    return one, each, each, 0.0


def _differ(nodes: Sequence[Node]) -> bool:
    """Whether they are enough for a fit."""
    return len({_features(node) for node in nodes}) >= LEAST_RATED


def _size(node: Node) -> float:
    """Multiply-adds and numbers of a node."""
    return sum(_features(node)[1:3])
