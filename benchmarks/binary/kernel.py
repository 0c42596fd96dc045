"""Layers that count bits against the same layers in int8, and VGG-small as a whole.

Weights are random: only time counts. Every shape is run by all ways in one process, one after the other in every round;
a ratio is that of one round. Each way is called twice, and the second call counts: it finds in the caches what fits of
its own weights. "inside" means as in the middle of a network: uint8 to uint8, or bits to bits with batch norm and sign
as limits. Everything else goes from float32 to float32, so that quantizing and packing are included. "operators" are
those of `gossamer export --target onnx-binary`, in ONNX Runtime, always from float32 to float32.

    python -m benchmarks.binary.kernel
"""

import argparse
import json
import os
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.binary._layers import (
    Call,
    Shape,
    given,
    int8_layer,
    on_bits,
    on_onnxruntime,
    on_openvino,
    on_operators,
    with_operators,
)
from benchmarks.common import paths
from benchmarks.common.conditions import run_conditions, with_run
from benchmarks.common.progress import Lines
from benchmarks.common.tables import write_table
from gossamer.compact.writing import save
from gossamer.core.record import environment, write_text
from gossamer.methods.quantize.uniform import UniformQuantization
from gossamer.modules.binary import BinaryConv2d
from gossamer.modules.cost import dense_bytes
from gossamer.ptq.isolated_layers import quantize_for_timing
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.runners import open_runner

RESULTS = paths.RESULTS / "binary_kernel.json"
SHAPES = {
    "1x4096x4096": Shape(1, 4096, 1, 4096, 1),
    "64x4096x4096": Shape(64, 4096, 1, 4096, 1),
    "3x3, 64 to 64 at 56x56": Shape(1, 64, 56, 64, 3),
    "3x3, 128 to 128 at 28x28": Shape(1, 128, 28, 128, 3),
    "3x3, 256 to 256 at 14x14": Shape(1, 256, 14, 256, 3),
    "3x3, 512 to 512 at 7x7": Shape(1, 512, 7, 512, 3),
}
ASKED = {"1x4096x4096": 10.0, "64x4096x4096": 4.0}  # times ONNX Runtime int8; convolutions: 2
WIDTHS = (128, 128, 256, 256, 512, 512)
BATCHES = (1, 64)
EXTENSIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx512_vpopcntdq": "VPOPCNTDQ",
    "amx_int8": "AMX",
}
OPERATORS = "operators of ONNX Runtime"
HEAD = "| bits | operators | ORT int8 | OpenVINO int8 | x ORT | operators x ORT | asked | x OpenVINO |"


def rounds(ways: Mapping[str, Call], *, most: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of every way in every round, in an order of each round's own.

    Of two calls the second one counts, which finds in the caches what fits of its own weights.
    """
    random, found = np.random.default_rng(0), {name: list[float]() for name in ways}
    for call in ways.values():
        for _ in range(3):
            call()
    began = time.monotonic()
    while len(next(iter(found.values()))) < most and time.monotonic() - began < seconds:
        for name in random.permutation(list(ways)):
            ways[name]()
            start = time.perf_counter()
            ways[name]()
            found[name].append(1000 * (time.perf_counter() - start))
    return found


def summary(values: Any) -> dict[str, float]:
    """Median, quartiles and number."""
    q1, median, q3 = np.percentile(values, (25, 50, 75))
    return {"median": float(median), "q1": float(q1), "q3": float(q3), "n": len(values)}


def compared(times: Mapping[str, list[float]], pairs: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Times of every way, and the ratios of pairs round by round: how many times as fast the second one is."""
    ratios = {name: np.array(times[slow]) / np.array(times[fast]) for name, (slow, fast) in pairs.items()}
    return {
        "ms": {name: summary(values) for name, values in times.items()},
        "times_as_fast": {name: summary(values) for name, values in ratios.items()},
    }


def layer(name: str, folder: Path, seconds: float) -> dict[str, Any]:
    shape = SHAPES[name]
    outer, inner = (given(shape, quantized=quantized) for quantized in (False, True))
    whole = int8_layer(shape, folder / "whole.onnx", quantized=False)
    inside = int8_layer(shape, folder / "inside.onnx", quantized=True)
    ways = {
        "ONNX Runtime int8": on_onnxruntime(whole, outer, 1),
        "OpenVINO int8": on_openvino(whole, outer, 1),
        "ONNX Runtime int8, inside": on_onnxruntime(inside, inner, 1),
        "OpenVINO int8, inside": on_openvino(inside, inner, 1),
        **on_bits(shape, outer, 1),
        OPERATORS: on_operators(shape, outer, folder / "bits.onnx"),
    }
    pairs = {name: (name, "bits, inside" if name.endswith("inside") else "bits") for name in list(ways)[:4]}
    pairs["int8 over operators"] = ("ONNX Runtime int8", OPERATORS)
    return {"layer": name, "macs": shape.macs} | compared(rounds(ways, most=400, seconds=seconds), pairs)


def vgg_small(*, binary: bool) -> nn.Module:
    """Six 3x3 convolutions, the first of them real, three pools, one fully connected layer; for 28x28 images."""
    layers: list[nn.Module] = []
    channels = 1
    for number, width in enumerate(WIDTHS):
        on_bits = binary and number > 0
        kind = BinaryConv2d(channels, width, 3, padding=1, bias=False, norm="batch") if on_bits else None
        layers.append(kind or nn.Conv2d(channels, width, 3, padding=1, bias=False))
        layers += [nn.MaxPool2d(2)] if number % 2 else []
        layers += [] if binary else [nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    layers += [nn.BatchNorm2d(channels), nn.Hardtanh()] if binary else []
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(9 * channels, 10))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert values is not None
                values.copy_(torch.rand_like(values) + 0.1)
        if isinstance(module, BinaryConv2d):
            scales = torch.rand(len(module.weight)) + 0.1
            module.weight.data = torch.randn_like(module.weight).sign() * scales.view(-1, 1, 1, 1)
    return network.eval()


def network(threads: int, batch: int, folder: Path, seconds: float) -> dict[str, Any]:
    torch.manual_seed(0)
    x = torch.randn(batch, 1, 28, 28)
    exported = export_onnx(vgg_small(binary=False), (x[:1],), folder / "vgg.onnx")
    quantize_for_timing(exported, folder / "vgg.int8.onnx", (x,), threads=threads)
    compact = save(vgg_small(binary=True), folder / "vgg.gsr", (x[:1],))
    runners = {
        "ONNX Runtime int8": open_runner("onnxruntime", folder / "vgg.int8.onnx", threads=threads, precision="int8"),
        "OpenVINO int8": open_runner("openvino", folder / "vgg.int8.onnx", threads=threads, precision="int8"),
        "ONNX Runtime float32": open_runner("onnxruntime", exported, threads=threads),
        "bits": open_runner("binary", compact, threads=threads),
        OPERATORS: open_runner(
            "onnxruntime", with_operators(vgg_small(binary=True), x[:1], folder / "bits.onnx"), threads=threads
        ),
    }
    prepared = {name: runner.prepare((x,)) for name, runner in runners.items()}
    ways: dict[str, Call] = {name: lambda name=name: runners[name].raw(prepared[name]) for name in runners}  # type: ignore[misc]
    pairs = {name: (name, "bits") for name in list(ways)[:3]} | {
        "int8 over operators": ("ONNX Runtime int8", OPERATORS)
    }
    return {"network": "VGG-small", "batch": batch, "threads": threads} | compared(
        rounds(ways, most=200, seconds=seconds), pairs
    )


def file_size(folder: Path) -> dict[str, Any]:
    """Bytes of the binary network; its first and last layer, which are real, in 8 bits."""
    torch.manual_seed(0)
    model = vgg_small(binary=True)
    ends = tuple(name for name, layer in model.named_modules() if type(layer) in (nn.Conv2d, nn.Linear))
    coded = UniformQuantization(bits=8, layers=ends)(model).model
    size = save(coded, folder / "coded.gsr", (torch.randn(2, 1, 28, 28),), fold=True).stat().st_size
    dense = dense_bytes(model)
    return {"network": "VGG-small", "bytes": size, "float32_bytes": dense, "times_smaller": dense / size}


def render(document: dict[str, Any]) -> str:
    """The tables of every kind of processor."""
    lines = ["# Layers that count bits against int8", ""]
    for kind, found in document["processors"].items():
        machine = found["measured"][-1]
        lines += [f"## {kind}", "", found["conditions"], "", f"{machine['cores']} cores, {machine['date']}.", ""]
        lines += tables(found)
    return "\n".join([*lines, ""])


def tables(found: dict[str, Any]) -> list[str]:
    """The lines of one processor."""
    lines = [f"| layer, one thread {HEAD}"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for inside in ("", ", inside"):
        for row in found["layers"]:
            peers = [f"ONNX Runtime int8{inside}", f"OpenVINO int8{inside}"]
            ms = [f"{row['ms'][name]['median']:.3f}" for name in (f"bits{inside}", *peers)]
            first, second = (_spread(row["times_as_fast"][name]) for name in peers)
            has = not inside and OPERATORS in row["ms"]
            asked = f"{ASKED.get(row['layer'], 2.0):g}"
            own = [f"{row['ms'][OPERATORS]['median']:.3f}", _spread(_operators(row))] if has else ["", ""]
            cells = [f"{row['layer']}{inside}", ms[0], own[0], *ms[1:], first, own[1], asked, second]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Milliseconds: medians. Ratios: median (quartiles) of the rounds.", ""]
    lines += [f"| VGG-small {HEAD}"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for row in found["networks"]:
        peers = ["ONNX Runtime int8", "OpenVINO int8"]
        names = ("bits", OPERATORS, *peers)
        ms = " | ".join(f"{row['ms'][name]['median']:.2f}" if name in row["ms"] else "" for name in names)
        first, second = (_spread(row["times_as_fast"][name]) for name in peers)
        what = f"batch {row['batch']}, {row['threads']} threads"
        own = _spread(_operators(row)) if OPERATORS in row["ms"] else ""
        lines.append(f"| {what} | {ms} | {first} | {own} | 1.5 | {second} |")
    file = found["file"]
    lines += ["", f"The `.gsr` of the binary VGG-small, first and last layer in 8 bits: {file['bytes']:,} bytes, "]
    lines[-1] += f"{file['times_smaller']:.1f} times smaller than its float32 parameters (asked: 28)."
    return [*lines, ""]


def _operators(row: Mapping[str, Any]) -> Mapping[str, float]:
    ratio: Mapping[str, float] = row["times_as_fast"]["int8 over operators"]
    return ratio


def _spread(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="at most, for a layer or a network")
    parser.add_argument("--table", action="store_true", help="only make the table again")
    options = parser.parse_args()
    if not options.table:
        measure(options.seconds)
    text = render(json.loads(RESULTS.read_text()))
    write_table(RESULTS, text)
    print(text)


def measure(seconds: float) -> None:
    torch.set_num_threads(1)
    say = Lines().say
    document: dict[str, Any] = {"format": 2, "processors": {}}
    if RESULTS.exists():
        document = json.loads(RESULTS.read_text())
    kind = processor()
    found: dict[str, Any] = {
        "conditions": "Random weights; every way in every round, in one process; the second of two calls counts. "
        f"Processes that were ready to run when this began: {os.getloadavg()[0]:.1f}.",
        "layers": [],
        "networks": [],
        "measured": with_run(document["processors"].get(kind, {}), run_conditions([0], 1)),
    }
    with tempfile.TemporaryDirectory() as work:
        found["file"] = file_size(Path(work))
        for name in SHAPES:
            found["layers"].append(layer(name, Path(work), seconds))
            say(f"{name}: {found['layers'][-1]['times_as_fast']}")
        for threads in (1, 2):
            for batch in BATCHES:
                found["networks"].append(network(threads, batch, Path(work), seconds))
                say(f"batch {batch}, {threads} threads: {found['networks'][-1]['times_as_fast']}")
    document["processors"][kind] = found
    write_text(RESULTS, json.dumps(document, indent=1))


def processor() -> str:
    """The processor at hand, with what decides the speed of int8 and of counted bits."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    has = [name for flag, name in EXTENSIONS.items() if re.search(rf"\b{flag}\b", flags)]
    return ", ".join([environment()["processor"], *has])


if __name__ == "__main__":
    main()
