"""Low rank without data: speed of the survey's networks at its compression, time to decompose, and tensorly-torch.

python -m benchmarks.lowrank.compare --stages build      # the survey's networks, exported to out/lowrank
python -m benchmarks.lowrank.compare --stages speed      # latencies, interleaved in one process
python -m benchmarks.lowrank.compare --stages decompose  # VGG-16, every scheme with its rank search
python -m benchmarks.lowrank.compare --stages peer       # needs tensorly and tensorly-torch
python -m benchmarks.lowrank.compare --table
"""

import argparse
import json
import time
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from benchmarks.common import paths
from benchmarks.common.tables import write_table
from gossamer.core.context import Context
from gossamer.core.goal import Goal
from gossamer.core.record import environment, write_text
from gossamer.core.task import Task
from gossamer.edits.swap import swap
from gossamer.measure import latency
from gossamer.methods.lowrank._chain import chain_params, kernel_of, make_chain
from gossamer.methods.lowrank._common import LowRank
from gossamer.methods.lowrank._norms import with_norms
from gossamer.methods.lowrank.channel import ChannelDecomposition
from gossamer.methods.lowrank.cp import CP
from gossamer.methods.lowrank.spatial import SpatialDecomposition
from gossamer.methods.lowrank.svd import SVD
from gossamer.methods.lowrank.tensor_train import TensorTrain
from gossamer.methods.lowrank.tucker import Tucker
from gossamer.models.zoo import build
from gossamer.modules.cost import layer_costs
from gossamer.runtime.onnx_export import export_onnx
from gossamer.runtime.runners import open_runner

RESULTS = paths.RESULTS / "lowrank.json"
# The survey's Table 2: compression and speed-up of BN low-rank and of CP.
SURVEY = {
    "alexnet_one_tower": {"BN low-rank": (4.94, 1.09), "CP": (5.0, 1.82)},
    "vgg16": {"BN low-rank": (2.72, 1.53), "CP": (2.75, 2.05)},
    "googlenet": {"BN low-rank": (2.79, 1.08), "CP": (2.84, 1.20)},
}
BY_TIME = "CP, by time"
WAYS = ("dense", "BN low-rank", "CP", "CP, kernels whole", BY_TIME)
SWEEPS = 1  # the kernels are random numbers: it only matters which layers get the ranks
PEER_LAYERS = {
    "64-64 3x3, 56": (64, 64, 3, 56),
    "128-128 3x3, 28": (128, 128, 3, 28),
    "96-256 5x5, 27": (96, 256, 5, 27),
}


def task(x: Tensor) -> Task:
    return Task(name="random", train=[], validation=[], test=[], calibration=[x], example_inputs=(x,))


def weighted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d))


def at_rate(model: nn.Module, schemes: list[LowRank], rate: float, layers: Collection[str] | None = None) -> nn.Module:
    """Every layer, or these, by the first scheme that is for it, at the largest rank with `rate` times fewer weights.
    The factors are random, as the network's weights are: neither its time nor its size depends on them."""
    made = {}
    for name, layer in weighted(model):
        if layers is not None and name not in layers:
            continue
        scheme = next((one for one in schemes if not one.refusal(layer)), None)
        if scheme is None:
            continue
        kernel = kernel_of(layer)
        rank = int(layer.weight.numel() / rate / chain_params(scheme.chain(layer, (1,)), kernel))
        if rank:
            factors = scheme.chain(layer, (rank,))
            values = [torch.randn(f.size(kernel)) * (f.size(kernel) / f.outputs) ** -0.5 for f in factors]
            chain = make_chain(layer, factors, values)
            made[name] = with_norms(chain) if scheme.norm else chain
    return swap(model, made)


def product(chain: nn.Sequential) -> Tensor:
    """The kernel that four factors of CP are."""
    first, rows, columns, last = (
        factor.weight[:, :, 0, 0] if n in (0, 3) else factor.weight[:, 0] for n, factor in enumerate(chain)
    )
    return torch.einsum("or,rha,rbw,ri->oihw", last, rows, columns, first)


@torch.no_grad()
def by_time(model: nn.Module, x: Tensor, rate: float) -> tuple[nn.Module, float]:
    """The k x k convolutions by CP in 1 / `rate` of their time, by the scheme's own rule, which leaves layers whole
    that gain too little; all others by SVD at one rate, so that the network has `rate` times fewer weights. Also the
    share of the energy of the decomposed kernels that is lost."""
    kernels = {n: m for n, m in weighted(model) if not CP().refusal(m)}
    small = CP(time=1 / rate, sweeps=SWEEPS, layers=tuple(kernels))(
        model, task(x), Context(goal=Goal(speedup=1, threads=1, batch=1))
    ).model
    chains = {n: m for n in kernels if isinstance(m := small.get_submodule(n), nn.Sequential)}
    print({n: chains[n][0].out_channels if n in chains else "whole" for n in kernels}, flush=True)
    errors = {n: kernels[n].weight - product(chain) for n, chain in chains.items()}
    lost = sum(float(e.square().sum()) for e in errors.values()) / sum(
        float(kernels[n].weight.square().sum()) for n in chains
    )
    others = {n: m.weight.numel() for n, m in weighted(model) if n not in kernels}
    kept = weights(small, convolutions=False) - sum(others.values())
    room = weights(model, convolutions=False) / rate - kept
    return at_rate(small, [SVD()], sum(others.values()) / room, others), lost


def weights(model: nn.Module, *, convolutions: bool) -> int:
    return sum(m.weight.numel() for _, m in weighted(model) if not convolutions or isinstance(m, nn.Conv2d))


def macs(model: nn.Module, x: Tensor) -> int:
    return sum(row.macs for row in layer_costs(model, (x,)))


def build_survey(folder: Path, names: list[str], ways: list[str]) -> list[dict[str, Any]]:
    rows = []
    for name in names:
        torch.manual_seed(0)
        x = torch.randn(1, 3, 224, 224)
        dense = build(name, classes=1000, input_size=224).eval()
        schemes: dict[str, list[LowRank]] = {
            "BN low-rank": [SpatialDecomposition(norm=True), SVD(norm=True)],
            "CP": [CP(), SVD()],
            "CP, kernels whole": [CP(apart=False), SVD()],
        }
        for way in ways:
            rate, lost = SURVEY[name].get(way.split(",")[0], (1.0, 1.0))[0], None
            model = at_rate(dense, schemes[way], rate) if way in schemes else dense
            if way == BY_TIME:
                model, lost = by_time(dense, x, rate)
            model = model.eval()
            export_onnx(model, (x,), folder / f"{name}-{way}.onnx")
            row = {"network": name, "way": way, "macs": macs(model, x)} | ({} if lost is None else {"lost": lost})
            rows.append(
                row
                | {
                    k: weights(model, convolutions=k == "convolution_weights")
                    for k in ("weights", "convolution_weights")
                }
            )
            print(rows[-1], flush=True)
    return rows


def speed(folder: Path, names: list[str], repeats: int, seconds: float) -> list[dict[str, Any]]:
    x, rows = torch.randn(1, 3, 224, 224), list[dict[str, Any]]()
    for name in names:
        runners = {way: open_runner("onnxruntime", folder / f"{name}-{way}.onnx", threads=1) for way in WAYS}
        found = latency(runners, (x,), repeats=repeats, warmup=2, seconds=seconds)
        rows += [
            {
                "network": name,
                "way": way,
                "ms": t.median_ms,
                "q1": t.q1_ms,
                "q3": t.q3_ms,
                "min": t.min_ms,
                "runs": t.runs,
            }
            for way, t in found.items()
        ]
    return rows


def decompose() -> list[dict[str, Any]]:
    """VGG-16 of random weights: the linear layers by SVD, the convolutions by each scheme, ranks found without data."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 224, 224)
    model = build("vgg16", classes=1000, input_size=224).eval()
    rows = []
    schemes = (
        SVD(params=0.3),
        SpatialDecomposition(macs=0.4),
        ChannelDecomposition(macs=0.4),
        TensorTrain(macs=0.4),
        Tucker(macs=0.4),
    )
    for scheme in schemes:
        start = time.perf_counter()
        small = scheme(model, task(x), Context()).model
        row = {"scheme": type(scheme).__name__, "seconds": time.perf_counter() - start}
        rows.append(row | {"macs": macs(small, x), "weights": weights(small, convolutions=False)})
        print(rows[-1], flush=True)
    return rows


def planted(inputs: int, outputs: int, size: int) -> nn.Conv2d:
    """A layer whose kernel is of low rank and noise: its channels have falling energy, as those of trained kernels."""
    torch.manual_seed(0)
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    spread = torch.linspace(0, 4, min(inputs, outputs)).neg().exp()
    basis = torch.linalg.qr(torch.randn(inputs, inputs)).Q * spread[:inputs]
    with torch.no_grad():
        layer.weight.mul_(spread.repeat(-(-outputs // len(spread)))[:outputs, None, None, None])
        layer.weight.copy_(torch.einsum("oikl,ij->ojkl", layer.weight, basis))
    return layer


def cases(layer: nn.Conv2d) -> dict[str, tuple[Any, tuple[int, ...], Any]]:
    """Scheme of tensorly-torch -> ours, its ranks, and the ranks as tensorly-torch takes them."""
    outputs, inputs, size, _ = layer.weight.shape
    few, many, train = inputs // 3, outputs // 3, (inputs // 3, 2 * (inputs // 3), outputs // 3)
    return {
        "cp": (CP(), (inputs,), inputs),
        "tucker": (Tucker(), (many, few), (many, few, size, size)),
        # Its train runs over the kernel's axes before the outputs: (I, k, k, O) as ours.
        "tt": (TensorTrain(), train, (1, *train, 1)),
    }


def factorized(layer: nn.Conv2d, scheme: str, rank: Any) -> nn.Module:
    """The layer by tensorly-torch."""
    from tltorch import FactorizedConv

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: nn.Module = FactorizedConv.from_conv(
            layer, rank=rank, factorization=scheme, implementation="factorized", decompose_weights=True
        )
    return made.eval()


def exported(module: nn.Module, x: Tensor, path: Path) -> Path:
    """A module of tensorly-torch as a checked file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), str(path), dynamo=True, verbose=False)
    onnx.checker.check_model(str(path))
    return path


def peer(folder: Path, seconds: float) -> list[dict[str, Any]]:
    """The same kernels at the same ranks, decomposed by both."""
    rows = []
    for label, (inputs, outputs, size, side) in PEER_LAYERS.items():
        layer = planted(inputs, outputs, size)
        dense, x = layer.weight.detach(), torch.randn(1, inputs, side, side)
        files, found = {"dense": export_onnx(layer, (x,), folder / "dense.onnx")}, list[dict[str, Any]]()
        for scheme, (ours, ranks, theirs) in cases(layer).items():
            start = time.perf_counter()
            chain = type(ours)(ranks={"0": ranks})(nn.Sequential(layer), task(x), Context()).model
            between = time.perf_counter()
            other = factorized(layer, scheme, theirs)
            took = {"gossamer": between - start, "tensorly-torch": time.perf_counter() - between}
            files[f"{scheme}, gossamer"] = export_onnx(chain, (x,), folder / f"{scheme}.onnx")
            for by, module in {"gossamer": chain[0], "tensorly-torch": other}.items():
                row = {"layer": label, "scheme": scheme, "ranks": ranks, "side": by, "seconds": took[by]}
                found.append(row | {"error": float((impulse(module, layer) - dense).norm() / dense.norm())})
            try:
                files[f"{scheme}, tensorly-torch"] = exported(other, x, folder / f"{scheme}-peer.onnx")
            except Exception as error:
                found[-1]["note"] = f"{type(error).__name__}: {error}"[:200]
        runners = {way: open_runner("onnxruntime", file, threads=1) for way, file in files.items()}
        for way, t in latency(runners, (x,), repeats=200, warmup=5, seconds=seconds).items():
            scheme, _, by = way.partition(", ")
            row = {"layer": label, "scheme": scheme, "side": by}
            found.append(row | {"ms": t.median_ms, "q1": t.q1_ms, "q3": t.q3_ms})
        print(*found, sep="\n", flush=True)
        rows += found
    return rows


@torch.no_grad()
def impulse(module: nn.Module, layer: nn.Conv2d) -> Tensor:
    """The kernel that a module is, from its answer to unit impulses."""
    _, inputs, height, width = layer.weight.shape
    bias = layer.bias
    assert bias is not None
    x = torch.zeros(inputs, inputs, 2 * height - 1, 2 * width - 1)
    x[torch.arange(inputs), torch.arange(inputs), height - 1, width - 1] = 1
    y = module(x) - bias[:, None, None]
    middle = y[:, :, height // 2 : height // 2 + height, width // 2 : width // 2 + width]
    return middle.flip(2, 3).transpose(0, 1)


def render(document: dict[str, Any]) -> str:
    lines = ["# Low rank without data, measured", ""]
    if "speed" in document and "build" in document:
        lines += [
            "Random weights, 224 x 224, batch 1, ONNX Runtime float32, 1 thread, interleaved in one process.",
            "Every layer at the survey's rate: k x k convolutions by the scheme, all others by SVD. By time: the rule",
            "`time` of CP chooses. It gives the k x k convolutions together 1 / rate of their time as measured alone,",
            "leaves those whole that gain too little, and all others share what is left of the network's weights, by",
            "SVD; so the network is as small as in the row above, its layers are not. Lost: the share of the energy of",
            "the decomposed kernels, after one sweep; they are random numbers here, of which any scheme loses most.",
            "",
            "| network | scheme | compression, survey | here | speed-up, survey | here | ms (quartiles) | MACs "
            "| convolutions' weights | lost |",
            "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        built = {(row["network"], row["way"]): row for row in document["build"]}
        times = {(row["network"], row["way"]): row for row in document["speed"]}
        for (network, way), row in times.items():
            dense, small = built[network, "dense"], built[network, way]
            table = SURVEY[network].get(way.split(",")[0])
            cells = ["", "1", "", "1"]
            if table:
                ratios = dense["weights"] / small["weights"], times[network, "dense"]["ms"] / row["ms"]
                cells = [f"{table[0]}", f"{ratios[0]:.2f}", f"{table[1]}", f"{ratios[1]:.2f}"]
            spread = f"{row['ms']:.2f} ({row['q1']:.2f} - {row['q3']:.2f})"
            counts = f"{small['macs'] / 1e6:,.0f} M | {small['convolution_weights'] / 1e6:.2f} M"
            lost = f"{small['lost']:.2f}" if "lost" in small else ""
            lines.append(f"| {network} | {way} | {' | '.join(cells)} | {spread} | {counts} | {lost} |")
        lines.append("")
    if "decompose" in document:
        lines += [
            "VGG-16 decomposed without data, ranks found for 40 % of the convolutions' MACs and 30 % of the linear",
            "layers' weights; one thread.",
            "",
            "| scheme | layers | seconds | weights of the network | MACs |",
            "|---|---|---:|---:|---:|",
        ]
        for row in document["decompose"]:
            layers = "linear" if row["scheme"] == "SVD" else "convolutions"
            counts = f"{row['weights'] / 1e6:.1f} M | {row['macs'] / 1e6:,.0f} M"
            lines.append(f"| {row['scheme']} | {layers} | {row['seconds']:.1f} | {counts} |")
        lines.append("")
    if "peer" in document:
        lines += [
            "One convolution and its factors at the same ranks: relative error of the kernel, seconds to decompose,",
            "and the time of a batch of 1 on ONNX Runtime, 1 thread, interleaved.",
            "",
            "| layer | scheme | ranks | side | error | seconds | ms (quartiles) |",
            "|---|---|---|---|---:|---:|---:|",
        ]
        found: dict[tuple[str, str, str], dict[str, Any]] = {}
        for row in document["peer"]:
            found.setdefault((row["layer"], row["scheme"], row["side"]), {}).update(row)
        for (layer, scheme, side), row in found.items():
            error = f"{row['error']:.3f} | {row['seconds']:.1f}" if "error" in row else " | "
            ms = f"{row['ms']:.2f} ({row['q1']:.2f} - {row['q3']:.2f})" if "ms" in row else row.get("note", "")
            ranks = ", ".join(map(str, row.get("ranks", [])))
            lines.append(f"| {layer} | {scheme} | {ranks} | {side} | {error} | {ms} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--stages", nargs="+", choices=("build", "speed", "decompose", "peer"), default=["build", "speed", "decompose"]
    )
    parser.add_argument("--networks", nargs="+", choices=tuple(SURVEY), default=list(SURVEY))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="that are built; all are timed")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=40.0, help="at most, for the latencies of a network")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only make the table again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(__file__).parent.parent / "out" / "lowrank"
    folder.mkdir(parents=True, exist_ok=True)
    document = json.loads(options.out.read_text()) if options.out.exists() else {"format": 1}
    for stage in () if options.table else options.stages:
        match stage:
            case "build":
                rows = build_survey(folder, options.networks, options.ways)
            case "speed":
                rows = speed(folder, options.networks, options.repeats, options.seconds)
            case "decompose":
                rows = decompose()
            case _:
                rows = peer(folder, options.seconds / 20)
        new = {(r["network"], r["way"]) for r in rows if "way" in r}
        kept = [r for r in document.get(stage, []) if "way" in r and (r["network"], r["way"]) not in new]
        document[stage], document["environment"] = kept + rows, environment()
        write_text(options.out, json.dumps(document, indent=1))
    write_table(options.out, render(document))


if __name__ == "__main__":
    main()
