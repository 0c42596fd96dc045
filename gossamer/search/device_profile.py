"""Times of another device, out of a profile that `bench_on_device.py` wrote there.

The profile has whole networks and their nodes. A node that it knows costs what it did there. Of others of the same
kind, the time follows from multiply-adds and from the numbers that are read and written: a fit to the nodes of that
kind. Sums of nodes are scaled to the whole networks of the profile, and checked against them.
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

FORMAT = 1
FARTHEST = 0.35  # a predicted whole network from its time in the profile, in parts of that time
SUMS = (0.4, 2.0)  # all nodes of a network over its own time
LEAST_RATED = 3  # nodes of a kind, for a fit of three numbers
HEAVY = ("Conv", "Gemm", "MatMul", "LSTM", "GRU", "Attention")  # parts of operators' names whose time must be known
Shapes = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """What a device takes for nodes. table: milliseconds of known ones; rates: of a kind, for one node, a multiply-add
    and a number; scale: whole networks over the sums of their nodes."""

    device: Mapping[str, Any]
    version: str
    threads: int
    batch: int
    table: Mapping[str, float]
    rates: Mapping[str, tuple[float, float, float]]
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
        if (rates := self.rates.get(_kind(node))) is not None:
            return float(np.dot(rates, _features(node)))
        if any(part in node["op"] for part in HEAVY):
            raise BadInput(
                f"the profile of {self.device.get('processor', 'the device')} has no node like {_kind(node)}; run "
                "bench_on_device.py with this network, too, in float32 and in int8"
            )
        return 0.0  # small nodes: the scale has their time


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
    table: dict[str, list[float]] = {}
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    ratios = []
    for network in raw["networks"]:
        total = math.fsum(float(node["ms"]) for node in network["nodes"])
        ratios.append(float(network["median_ms"]) / total)
        for node in network["nodes"]:
            table.setdefault(_key(node), []).append(float(node["ms"]))
            kinds.setdefault(_kind(node), []).append(node)
    if not ratios or not all(math.isfinite(one) and one > 0 for one in ratios):
        raise ValueError("it has no network with times")
    return DeviceProfile(
        device=raw["device"],
        version=str(raw["version"]),
        threads=int(raw["threads"]),
        batch=int(raw["batch"]),
        table={key: float(np.median(times)) for key, times in table.items()},
        rates={kind: _rates(nodes) for kind, nodes in kinds.items()},
        scale=float(np.median(ratios)),
    )


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


def _kind(node: Mapping[str, Any]) -> str:
    weight = _weight(node)
    grouped = weight is not None and len(weight) > 2 and weight[1] == 1
    return f"{node['op']}, depthwise" if grouped else str(node["op"])


def _weight(node: Mapping[str, Any]) -> Sequence[int] | None:
    """The shape of the weights of a convolution or product; None where a node has none."""
    first, *others = node["inputs"] or [[]]
    return next((shape for shape in others if len(shape) >= 2 and len(shape) in (len(first), 2)), None)


def _features(node: Mapping[str, Any]) -> tuple[float, float, float]:
    """One node, its multiply-adds, and the numbers that it reads and writes."""
    weight, made = _weight(node), sum(math.prod(shape) for shape in node["outputs"])
    first = node["inputs"][0] if node["inputs"] else []
    inner = 0 if weight is None else math.prod(weight[1:]) if len(weight) > 2 else (first[-1] if first else 1)
    return 1.0, float(made * inner), float(made + sum(math.prod(shape) for shape in node["inputs"]))


def _rates(nodes: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
    """What a node, a multiply-add and a number of it take: none less than nothing, nearest in relative terms."""
    times = np.array([max(float(node["ms"]), 1e-4) for node in nodes])
    rows = np.array([_features(node) for node in nodes])
    if len(nodes) < LEAST_RATED:  # in proportion to the numbers, of which each node has some
        return 0.0, 0.0, float(times.sum() / max(1.0, rows[:, 2].sum()))
    found, _ = nnls(rows / times[:, None] / (unit := rows.max(0).clip(1)), np.ones(len(nodes)))
    one, mac, number = (float(value) for value in found / unit)
    return one, mac, number
