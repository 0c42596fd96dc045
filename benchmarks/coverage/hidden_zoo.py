"""Networks of timm and transformers, half of the channels cut: which are cut with proof, which not, and why.

    python -m benchmarks.coverage.hidden_zoo                              # one network of every family of timm
    python -m benchmarks.coverage.hidden_zoo --source transformers        # of transformers, small configurations
    python -m benchmarks.coverage.hidden_zoo convnext_atto test_vit       # some
    python -m benchmarks.coverage.hidden_zoo --python peers/bin/python    # in the Python that has the library
    python -m benchmarks.coverage.hidden_zoo --table                      # only the table again, from the results

Each runs in a process of its own with a time limit, one thread, float32, on the CPU, with random weights of which none
is constant. A network counts as cut if less than 75 % of its parameters are left, the proof holds and its class is
kept. Results are written after every network.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.common import paths
from benchmarks.coverage import _small_transformers
from benchmarks.coverage.zoo import count, randomize

RESULTS = paths.RESULTS / "hidden_zoo.json"
LARGEST_LEFT = 0.75  # of the parameters
EXACT = 1e-4  # of the largest output, in float32
SLOW = 20.0  # seconds for grouping, cutting and proving
# One of every family of timm, the smallest that is not a variant for tests, except where only those are small.
TIMM = [
    "beit_base_patch16_224", "halonet26t", "gernet_s", "cait_xxs24_224", "coat_lite_tiny", "convit_tiny",
    "convmixer_768_32", "convnext_atto", "cpubone_nano", "crossvit_tiny_240", "csatv2", "cspresnet50",
    "cspnext_s", "davit_tiny", "deit_tiny_patch16_224", "densenet121", "dla34", "dpn68", "edgenext_xx_small",
    "efficientformer_l1", "efficientformerv2_s0", "mixnet_s", "efficientnet_b0", "efficientvim_m1",
    "efficientvit_b0", "efficientvit_m0", "eva02_tiny_patch14_224", "fasternet_t0", "fastvit_t8",
    "focalnet_tiny_srf", "gcvit_xxtiny", "ghostnet_050", "hardcorenas_a", "hgnetv2_b0", "hiera_tiny_224",
    "hieradet_small", "hrnet_w18", "iformer_t", "inception_next_atto", "inception_v4", "lcnetv2_small",
    "levit_128s", "lowformer_b0", "test_mambaout", "test_maxvit", "test_coatnet", "caformer_s18", "mixer_s32_224",
    "gmlp_ti16_224", "resmlp_12_224", "mobilenetv3_small_050", "mobilevit_xxs", "mobilevitv2_050", "mvitv2_tiny",
    "naflexvit_base_patch16_gap", "nest_tiny", "nextvit_small", "test_nfnet", "pit_xs_224", "pvt_v2_b0",
    "qwen3_vit_88m", "rdnet_tiny", "regnetx_002", "repghostnet_050", "repvit_m0_9", "res2net50_26w_4s",
    "resnest14d", "resnet18", "resnetv2_18", "rexnet_100", "selecsls42", "legacy_seresnet18", "sequencer2d_s",
    "shvit_s1", "skresnet18", "starnet_s1", "swiftformer_xs", "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256", "swinv2_cr_tiny_224", "tiny_vit_5m_224", "tnt_s_patch16_224", "tresnet_m",
    "twins_svt_small", "vgg11", "visformer_tiny", "test_vit", "test_vit2", "test_vit3", "test_vit4",
    "vit_base_r26_s32_224", "test_vit_relpos", "vitamin_small_224", "volo_d1_224", "vovnet39a", "legacy_xception",
    "xception41", "xcit_nano_12_p8_224", "ghostnetv3_050", "mobilenetv4_conv_small", "mobileone_s0",
    "vit_tiny_patch16_224", "deit3_small_patch16_224", "vit_small_patch16_dinov3",
]  # fmt: skip


def build(source: str, name: str) -> tuple[Any, Any]:
    """A network with random weights, nothing constant, and an input."""
    import torch

    sys.path.insert(0, str(paths.TESTS))
    from zoo_shim import timm

    torch.manual_seed(0)
    library = timm()  # also makes torchvision importable, which transformers looks for
    if source == "transformers":
        model, inputs = _small_transformers.build(name)
        randomize(model.eval())
        return model, inputs
    model = library.create_model(name, pretrained=False, num_classes=10)
    randomize(model.eval())
    size = model.default_cfg["input_size"][-1]
    return model, torch.randn(1, 3, size, size)


def measured(source: str, name: str, sparsity: float) -> dict[str, Any]:
    """The row of one network."""
    import torch

    from gossamer.graph import find_groups, prune

    torch.set_num_threads(1)
    model, inputs = build(source, name)
    find_groups(torch.nn.Linear(2, 2), torch.ones(1, 2))  # imports
    start = time.process_time()
    channels = find_groups(model, inputs)
    scores = channels.channel_scores({key: p.detach().abs() for key, p in model.named_parameters()})
    result = prune(channels, {group.name: 1 - sparsity for group in channels.prunable()}, scores)
    seconds = time.process_time() - start
    assert result.proof is not None
    left = count(result.model) / count(model)
    kept = type(result.model) is type(model)
    fixed = Counter(group.reason for group in channels.groups if group.reason)
    return {
        "cut": bool(left < LARGEST_LEFT and result.proof.max_relative < EXACT and kept),
        "params": count(model),
        "left": left,
        "proof": result.proof.max_relative,
        "class_kept": kept,
        "seconds": seconds,
        "tries": channels.solver.tries if channels.solver else 0,
        "groups": len(channels.prunable()),
        "left_whole": dict(result.skipped),
        "fixed": dict(fixed),
    }


def in_process(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The row of a worker, or what went wrong."""
    command = [args.python, "-m", "benchmarks.coverage.hidden_zoo", name, "--worker", "--source", args.source]
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT)}
    try:
        done = subprocess.run(
            [*command, "--sparsity", str(args.sparsity)],
            capture_output=True, text=True, timeout=args.timeout, check=False, cwd=paths.ROOT, env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"no end in {args.timeout:g} s"}
    if done.returncode != 0:
        return {"error": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:300]}
    row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def table(document: dict[str, Any]) -> str:
    """What was found, as Markdown: a summary, then every network that is not cut, was slow, or failed."""
    rows = document["rows"]
    lines = []
    for source in sorted({key.partition("/")[0] for key in rows}):
        mine = [row for key, row in rows.items() if key.partition("/")[0] == source]
        measured_rows = [row for row in mine if "error" not in row]
        cut = sum(row["cut"] for row in measured_rows)
        slow = sum(row["seconds"] > SLOW for row in measured_rows)
        lines.append(
            f"{source}: {cut} of {len(mine)} cut with proof, {len(measured_rows) - cut} not, "
            f"{len(mine) - len(measured_rows)} failed, {slow} took over {SLOW:g} s of processor time"
        )
    lines += ["", "| network | parameters left | proof | s | why |", "|---|---|---|---|---|"]
    for key, row in sorted(rows.items()):
        if "error" in row:
            lines.append(f"| {key} | | | | {row['error']} |")
        elif not row["cut"] or row["seconds"] > SLOW:
            why = next(iter([*row["left_whole"].values(), *row["fixed"]]), "")
            lines.append(f"| {key} | {row['left']:.3f} | {row['proof']:.1e} | {row['seconds']:.1f} | {why[:120]} |")
    return "\n".join(lines)


def run(document: dict[str, Any], args: argparse.Namespace) -> None:
    """Measure, and write after every network."""
    from benchmarks.common.conditions import run_conditions, with_run
    from gossamer.core.record import write_text

    document["measured"] = with_run(document, run_conditions([0], 1))
    document["conditions"] = {"sparsity": args.sparsity, "threads": 1, "time limit, s": args.timeout}
    for name in args.networks or (TIMM if args.source == "timm" else _small_transformers.NAMES):
        row = in_process(name, args)
        document["rows"][f"{args.source}/{name}"] = row
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(args.out, json.dumps(document, indent=1))
        said = row.get("error") or f"{row['left']:.3f} of the parameters left, {row['seconds']:.1f} s"
        print(f"{name}: {said}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="names; without any, the list of the source")
    parser.add_argument("--source", choices=["timm", "transformers"], default="timm")
    parser.add_argument("--sparsity", type=float, default=0.5, help="fraction of the channels to remove")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one network")
    parser.add_argument("--python", default=sys.executable, help="a Python that has the library")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file of the results")
    parser.add_argument("--table", action="store_true", help="only print the table of --out")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measured(args.source, args.networks[0], args.sparsity)))
        return
    document = json.loads(args.out.read_text()) if args.out.exists() else {"rows": {}}
    if not args.table:
        run(document, args)
    print(table(document))


if __name__ == "__main__":
    main()
