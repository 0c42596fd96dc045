"""Every classification network of torchvision, half of the channels cut: does it run, is it exact, how small, how long.

    python -m benchmarks.coverage.zoo                                          # all but the two giants
    python -m benchmarks.coverage.zoo resnet50 vit_b_16 --sparsity 0.37        # some
    python -m benchmarks.coverage.zoo --peers-python peers/bin/python          # Torch-Pruning too, in its Python
    python -m benchmarks.coverage.zoo --peers-python peers/bin/python --hints  # with what a user can tell it
    python -m benchmarks.coverage.zoo resnet18 --peers-python peers/bin/python --peer kirigami
    python -m benchmarks.coverage.zoo --table                                  # only the table again, from the results

Each network runs in a process of its own, one thread, batch 1, float32, on the CPU. Parameters that start constant and
the statistics of batch norms are randomized, or a wrong cut would not be seen. Results are written after every network.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import paths

RESULTS = paths.RESULTS / "coverage.json"
GIANTS = ("regnet_y_128gf", "vit_h_14")
PEERS = ("torch-pruning", "kirigami")
PEER_BYTES = 8 << 30  # more address space than this a peer does not get: on MaxViT it would fill the machine


def megabytes() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def build(name: str) -> tuple[Any, Any]:
    """A network with random weights, nothing constant, and an input."""
    import torch

    sys.path.insert(0, str(paths.TESTS))
    from zoo_shim import torchvision_models

    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision_models().get_model(name, weights=None, **options).eval()
    size = 299 if name == "inception_v3" else 224
    randomize(model)
    return model, torch.randn(1, 3, size, size)


def randomize(model: Any) -> None:
    """Nothing constant: norms, biases, layer scales and batch norm statistics are drawn."""
    import torch

    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
                if float(tensor.flatten()[0]) == 0 or key.endswith("running_mean"):
                    tensor.normal_(0, 0.1)
                else:
                    tensor.uniform_(0.5, 1.5)


def count(model: Any) -> int:
    """Parameters."""
    return sum(p.numel() for p in model.parameters())


def gossamer_row(name: str, sparsity: float, heads: bool) -> dict[str, Any]:
    """One network through gossamer."""
    import torch

    from gossamer.graph.groups import find_groups
    from gossamer.methods.prune.channels import prune_channels

    torch.set_num_threads(1)
    model, x = build(name)
    with torch.no_grad():
        model(x)
    before, memory = count(model), megabytes()
    find_groups(torch.nn.Linear(2, 2), torch.ones(1, 2))  # imports
    start = time.perf_counter()
    channels = find_groups(model, x, heads=heads)
    traced, memory_traced = time.perf_counter(), megabytes()
    result = prune_channels(model, x, sparsity, channels=channels)
    ended = time.perf_counter()
    assert result.proof is not None
    return {
        "params_before": before,
        "params_after": count(result.model),
        "proof": result.proof.max_relative,
        "skipped": dict(result.skipped),
        "patches": sum(len(v) for v in result.plan.attributes.values()),
        "learned": channels.solver.learned(),
        "statistics": len(result.proof.statistics),
        "scalars": len(result.proof.scalars),
        "groups": len(channels.prunable()),
        "pinned": sorted({g.reason for g in channels.groups if g.reason}),
        "seconds_trace": traced - start,
        "seconds_cut": ended - traced,
        "tries": channels.solver.tries,
        "mb_model": 4 * before / 2**20,
        "mb_run": memory,
        "mb_traced": memory_traced,
        "mb_peak": megabytes(),
        "widths": result.widths if len(name) < 0 else {},
        "notes": len(result.notes),
    }


def hints(model: Any) -> dict[str, Any]:
    """What Torch-Pruning's documentation asks a user to tell it: how many heads each attention has."""
    import torch

    heads: dict[Any, int] = {m: m.num_heads for m in model.modules() if isinstance(m, torch.nn.MultiheadAttention)}
    heads |= {m.qkv: m.num_heads for m in model.modules() if hasattr(m, "qkv") and hasattr(m, "num_heads")}
    return {"num_heads": heads}


def mend(model: Any) -> None:
    """What its examples change by hand afterwards: the width that torchvision's ViT writes into a reshape."""
    if hasattr(model, "hidden_dim") and hasattr(model, "conv_proj"):
        model.hidden_dim = model.conv_proj.out_channels


def peer_row(name: str, sparsity: float, hinted: bool = False) -> dict[str, Any]:
    """One network through Torch-Pruning: the same share of every group, by magnitude, the last linear layer kept."""
    import torch
    import torch_pruning as tp

    resource.setrlimit(resource.RLIMIT_AS, (PEER_BYTES, PEER_BYTES))
    torch.set_num_threads(1)
    model, x = build(name)
    before = count(model)
    last = [m for m in model.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    keep = [m for m in last if getattr(m, "out_features", getattr(m, "out_channels", 0)) == 1000]
    start = time.perf_counter()
    importance = tp.importance.MagnitudeImportance(p=1)
    more = hints(model) if hinted else {}
    pruner = tp.pruner.MagnitudePruner(
        model, x, importance=importance, pruning_ratio=sparsity, ignored_layers=keep, **more
    )
    list(pruner.DG.get_all_groups(ignored_layers=keep))
    traced = time.perf_counter()
    pruner.step()
    ended = time.perf_counter()
    if hinted:
        mend(model)
    with torch.no_grad():
        model.eval()(x)
    return peers_numbers(before, model, traced - start, ended - traced)


def peers_numbers(before: int, model: Any, trace: float, cut: float) -> dict[str, Any]:
    """What is kept of a peer: parameters, seconds, memory."""
    return {
        "params_before": before,
        "params_after": count(model),
        "seconds_trace": trace,
        "seconds_cut": cut,
        "mb_peak": megabytes(),
    }


def kirigami_row(name: str, sparsity: float) -> dict[str, Any]:
    """One network through torch-kirigami: the same share of every axis that it finds, by magnitude."""
    import torch
    from torch_kirigami import DependencyGraph
    from torch_kirigami.pruning import ChannelRatio, Greedy, GroupMagnitude, Pruner

    resource.setrlimit(resource.RLIMIT_AS, (PEER_BYTES, PEER_BYTES))
    torch.set_num_threads(1)
    model, x = build(name)
    before = count(model)
    start = time.perf_counter()
    pruner = Pruner(model, graph=DependencyGraph.build(model, args=(x,)))
    candidates = pruner.discover_candidates()
    traced = time.perf_counter()
    model, _ = pruner.prune(candidates, budget=ChannelRatio(sparsity), strategy=Greedy(GroupMagnitude(p=1)))
    ended = time.perf_counter()
    with torch.no_grad():
        model.eval()(x)
    return peers_numbers(before, model, traced - start, ended - traced)


def in_process(python: str, tool: str, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """A worker's row, or what went wrong."""
    command = [python, "-m", "benchmarks.coverage.zoo", name, "--worker", tool, "--sparsity", str(args.sparsity)]
    command += ["--heads"] if args.heads else []
    command += ["--hints"] if args.hints else []
    environ = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=args.timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"no end in {args.timeout} s"}
    if done.returncode != 0:
        return {"error": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:300]}
    row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def table(document: dict[str, Any]) -> str:
    """The Markdown table."""
    peers = any("peer" in row for row in document["rows"].values())
    head = ["network", "params left", "proof", "put back", "learned", "trace s", "cut s", "peak / run MB"]
    head += ["Torch-Pruning: params left", "its trace s", "its cut s"] if peers else []
    hinted = any("hinted peer" in row for row in document["rows"].values())
    head += ["with hints: params left"] if hinted else []
    kirigami = any("kirigami" in row for row in document["rows"].values())
    head += ["torch-kirigami: params left"] if kirigami else []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, row in sorted(document["rows"].items()):
        own = row["gossamer"]
        if "error" in own:
            cells = [name, own["error"], *[""] * 6]
        else:
            cells = [
                name,
                f"{own['params_after'] / own['params_before']:.3f}",
                f"{own['proof']:.1e}",
                str(len(own["skipped"]) or ""),
                str(len(own["learned"]) or ""),
                f"{own['seconds_trace']:.2f}",
                f"{own['seconds_cut']:.2f}",
                f"{own['mb_peak']:.0f} / {own['mb_run']:.0f}",
            ]
        peer = row.get("peer", {})
        if peers and "params_after" in peer:
            left = f"{peer['params_after'] / peer['params_before']:.3f}"
            cells += [left, f"{peer['seconds_trace']:.2f}", f"{peer['seconds_cut']:.2f}"]
        elif peers:
            cells += [str(peer.get("error", ""))[:40], "", ""]
        if hinted:
            cells.append(_left(row.get("hinted peer", {})))
        if kirigami:
            cells.append(_left(row.get("kirigami", {})))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _left(row: dict[str, Any]) -> str:
    """Share of the parameters that are left, or what went wrong."""
    if "params_after" in row:
        return f"{row['params_after'] / row['params_before']:.3f}"
    return str(row.get("error", ""))[:40]


def conditions(args: argparse.Namespace) -> dict[str, Any]:
    """What the numbers refer to."""
    from gossamer.core.record import environment

    return {"sparsity": args.sparsity, "threads": 1, "batch": 1, "dtype": "float32", "environment": environment()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="names of torchvision; none: all but the giants")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--heads", action="store_true", help="cut whole attention heads")
    parser.add_argument("--hints", action="store_true", help="tell Torch-Pruning what a user can: heads, and a width")
    parser.add_argument("--timeout", type=float, default=300)
    parser.add_argument("--peers-python", default="", help="a Python with torch-pruning and torchvision")
    parser.add_argument("--peer", choices=PEERS, default=PEERS[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print the table of --out")
    parser.add_argument("--worker", choices=["gossamer", *PEERS], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name = args.networks[0]
        rows: dict[str, Callable[[], dict[str, Any]]] = {
            "gossamer": lambda: gossamer_row(name, args.sparsity, args.heads),
            "torch-pruning": lambda: peer_row(name, args.sparsity, args.hints),
            "kirigami": lambda: kirigami_row(name, args.sparsity),
        }
        print(json.dumps(rows[args.worker]()))
        return
    document = json.loads(args.out.read_text()) if args.out.exists() else {"rows": {}}
    if not args.table:
        run(document, args)
    print(table(document))


def run(document: dict[str, Any], args: argparse.Namespace) -> None:
    """Measure, and write after every network."""
    from benchmarks.common.conditions import run_conditions, with_run
    from gossamer.core.record import write_text

    sys.path.insert(0, str(paths.TESTS))
    from zoo_shim import torchvision_models

    models = torchvision_models()
    known = [name for name in models.list_models(module=models) if name not in GIANTS]
    document["conditions"] = conditions(args)
    document["measured"] = with_run(document, run_conditions([0], 1))
    for name in args.networks or known:
        row = document["rows"].get(name, {}) | {"gossamer": in_process(sys.executable, "gossamer", name, args)}
        if args.peers_python:
            place = "kirigami" if args.peer == "kirigami" else "hinted peer" if args.hints else "peer"
            row[place] = in_process(args.peers_python, args.peer, name, args)
        document["rows"][name] = row
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(args.out, json.dumps(document, indent=1))
        print(table({"rows": {name: row}}).splitlines()[-1], file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
