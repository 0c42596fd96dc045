"""The benchmarks' own parts: command lines, the peers' options, tables and verdicts from a JSON. Nothing is trained."""

import importlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from places import ROOT

from benchmarks.common import conditions, tables
from benchmarks.coverage import zoo
from benchmarks.distill import _rows as distill_rows
from benchmarks.lowrank import with_sharing
from benchmarks.size import _papers as size_papers
from benchmarks.size import compare as size
from benchmarks.speed import _by_hand, _measure, _table
from benchmarks.speed import compare as speed
from benchmarks.training import architectures
from gossamer.jobs.recipe import load_recipe
from gossamer.methods import catalogue
from gossamer.methods.distill.recover import RecoveryDistillation

SEEDS = (0, 1)
FOLDER = ROOT / "benchmarks"
COMMANDS = sorted(
    file for file in FOLDER.glob("*/*.py") if not file.name.startswith("_") and file.parent.name != "common"
)


def row(seed: int, by: str, network: str, deployment: str, runtime: str, precision: str, ms: float, top1: float) -> Any:
    split = {"top1": top1, "low": top1 - 1, "high": top1 + 1, "n": 1000}
    split["drop"] = {"points": 93.0 - top1, "low": 0.0, "high": 1.0, "p_value": 0.5, "n": 1000}
    return {
        "seed": seed, "by": by, "network": network, "deployment": deployment, "runtime": runtime,
        "precision": precision, "file_bytes": 1000, "macs": 30e6, "params": 270e3, "speedup": 20.0 / ms,
        "latency": {
            "median_ms": ms, "q1_ms": ms, "q3_ms": ms, "min_ms": ms, "runs": 60, "computes_in": "bf16 (default)",
        },
        "test": split, "validation": split,
    }  # fmt: skip


def document(ours_ms: float = 3.0, ours_top1: float = 92.6) -> dict[str, Any]:
    rows = []
    for seed in SEEDS:
        more = 0.1 * seed
        rows += [
            row(seed, "dense", "dense", "float32", "onnxruntime", "float32", 20.0, 93.0),
            row(seed, "dense", "dense", "float32", "openvino", "float32", 20.0, 93.0),
            row(seed, "hand", "dense", "NNCF int8", "openvino", "int8", 7.0, 92.9),
            row(seed, "hand", "4:0.6:8", "NNCF int8", "openvino", "default", 4.0, 92.0),
            row(seed, "hand", "2:0.6:1", "ONNX Runtime int8", "onnxruntime", "int8", 6.0, 92.8),
            row(seed, "gossamer", "dense", "gossamer int8", "onnxruntime", "int8", 9.0, 92.95),
            row(
                seed, "gossamer", "gossamer-openvino-5x", "gossamer int8", "openvino", "int8", ours_ms, ours_top1 + more
            ),
            row(seed, "gossamer", "gossamer-openvino-5x", "gossamer int8", "onnxruntime", "int8", 5.0, ours_top1),
        ]
    job = {"name": "gossamer-openvino-5x", "met": True, "wall_seconds": 600.0, "steps_seconds": {"plan": 60.0}}
    conditions = {
        "model": "resnet20",
        "data": "fashion-mnist",
        "batch": 64,
        "threads": 2,
        "epochs": 12,
        "max_drop": 0.5,
    }
    return {
        "conditions": conditions | {"seeds": list(SEEDS)},
        "command": "python -m benchmarks.speed.compare",
        "environment": {"processor": "P", "cores": "2", "torch": "2.13"},
        "load_before": {"0": 0.1, "1": 0.4},
        "peers_versions": {"nncf": "3.4"},
        "jobs": [job, job],
        "missing": ["seed 1: by hand, 4:1:1"],
        "rows": rows,
    }


def verdicts(text: str) -> dict[str, list[str]]:
    """The lines of the target tables: what is asked for -> the other cells."""
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return {cells[0]: cells[1:] for cells in lines if len(cells) == 4}


def test_speed_ups_are_judged_on_the_better_and_the_other_runtime():
    found = verdicts(_table.render(document()))
    assert found["speed-up, the better runtime (OpenVINO, gossamer int8)"] == ["at least 5", "6.67 +- 0.00", "reached"]
    assert found["speed-up, the other runtime (ONNX Runtime, gossamer int8)"][1:] == ["4.00 +- 0.00", "reached"]
    assert found["the whole job, slowest seed"] == ["at most 30 min", "10.0 min", "reached"]


def test_the_rival_is_the_fastest_hand_combination_that_is_at_least_as_accurate():
    found = verdicts(_table.render(document()))
    wanted, measured, verdict = found["against the fastest hand combination of equal or better accuracy"]
    # the one at 4 ms is less accurate than ours, the dense one at 7 ms is slower than the halved one at 6 ms
    assert (wanted, verdict) == ("at least 1.3x", "reached")
    assert measured.startswith("2.00 +- 0.00x: 3.00 ms at 92.65 %")
    assert "6.00 ms at 92.80 % (Torch-Pruning, MACs / 2, cap 0.6, ONNX Runtime int8" in measured
    less = verdicts(_table.render(document(ours_top1=91.9)))
    assert "4.00 ms at 92.00" in less["against the fastest hand combination of equal or better accuracy"][1]


def test_a_missed_target_is_said_plainly():
    found = verdicts(_table.render(document(ours_ms=5.0, ours_top1=92.4)))
    assert found["speed-up, the better runtime (OpenVINO, gossamer int8)"][1:] == ["4.00 +- 0.00", "NOT reached"]
    assert found["drop on test data, ONNX Runtime"] == ["at most 0.5 points", "0.60", "NOT reached"]
    assert found["against the fastest hand combination of equal or better accuracy"][2] == "NOT reached"


def test_a_hand_combination_that_lacks_a_seed_is_no_rival():
    incomplete = document()
    incomplete["rows"] = [r for r in incomplete["rows"] if r["network"] != "2:0.6:1" or r["seed"] == 0]
    measured = verdicts(_table.render(incomplete))["against the fastest hand combination of equal or better accuracy"]
    assert "7.00 ms at 92.90 % (dense, NNCF int8" in measured[1]


def test_the_table_has_one_row_per_network_form_and_runtime_with_the_spread_over_the_seeds():
    text = _table.render(document())
    assert text.count("Torch-Pruning, MACs / 4, cap 0.6, widths / 8 | NNCF int8, rest bfloat16 | 92.00 +- 0.00") == 1
    assert "| **gossamer openvino 5x** | gossamer int8 | 92.65 +- 0.07 |" in text
    assert len(_table.collect(document()["rows"])) == 8
    assert "load before measuring at most 0.4" in text
    assert "Missing: seed 1: by hand, 4:1:1." in text


def test_table_only_renders_again_from_the_json(tmp_path, monkeypatch, capsys):
    (tmp_path / "speed.json").write_text(json.dumps(document()))
    monkeypatch.setattr(sys, "argv", ["compare.py", "--table", "--out", str(tmp_path / "speed.json")])
    assert speed.main() == 0
    assert (tmp_path / "speed.md").read_text() == tables.wrapped(_table.render(document()))
    assert capsys.readouterr().out[:-1] == _table.render(document())


def test_the_command_line_gives_goals_cuts_and_weights():
    options = speed.parse(
        ["--peers-python", "p", "--goals", "onnxruntime:3.5", "openvino:5", "--weights", "1=a.pt", "--threads", "1"]
    )
    assert [(g.runtime, g.speedup, g.threads, g.max_drop) for g in options.goals] == [
        ("onnxruntime", 3.5, 1, 0.5),
        ("openvino", 5.0, 1, 0.5),
    ]
    assert options.weights == {1: Path("a.pt")}
    assert options.cuts[0] == _by_hand.Cut(4, 0.6, 8)
    assert options.out.name == "speed-resnet20.json"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--peers-python is needed"),
        (["--stages", "measure", "--goals", "abacus:5"], "unknown runtime 'abacus'"),
        (["--stages", "measure", "--goals", "openvino"], "'openvino': a goal is RUNTIME:SPEEDUP"),
        (["--stages", "measure", "--cuts", "1:0.6:8"], "needs divisor > 1"),
        (["--stages", "measure", "--cuts", "4:1.5:8"], "0 < cap <= 1"),
        (["--stages", "measure", "--cuts", "4:0.6"], "'4:0.6': a cut is DIVISOR:CAP:ROUND_TO"),
        (["--stages", "measure", "--weights", "a.pt"], "'a.pt': weights are given as SEED=FILE"),
    ],
)
def test_a_bad_command_line_is_refused_with_the_reason(arguments, reason, capsys):
    with pytest.raises(SystemExit) as stopped:
        speed.parse(arguments)
    assert stopped.value.code == 2
    assert reason in capsys.readouterr().err


def test_the_noted_command_does_not_say_where_the_peers_lie():
    assert speed.command(["--epochs", "3", "--peers-python", "/x/y"], "/x/y").endswith(
        "--peers-python peers/bin/python"
    )


def test_hand_takes_what_speed_gives_it():
    options = _by_hand.parse(["f", "4:0.6:8", "--dense", "d", "--alpha", "0.2", "--weight-decay", "0.001"])
    assert (str(options.cut), options.alpha, options.weight_decay) == ("4:0.6:8", 0.2, 0.001)
    assert _by_hand.parse(["f", "dense", "--dense", "d"]).cut is None


def test_packed_scores_come_back_whole():
    scores = torch.from_numpy(np.random.default_rng(0).integers(0, 2, 1003)).float()
    assert torch.equal(_measure._unpacked(_measure._packed(scores)), scores)


def test_calibration_takes_exactly_so_many_images():
    class Task:
        calibration = [torch.zeros(100, 1, 2, 2)] * 4

    assert [len(batch) for batch in _by_hand.calibration(Task())] == [100, 100, 56]


@pytest.mark.parametrize("name", size.RATIOS)
def test_the_papers_rows_are_recipes_with_folders_of_their_own(name: str) -> None:
    rows = size_papers.recipes(name, 1)
    assert len({recipe.name for recipe in rows.values()}) == len(rows) == 6
    assert [rows["Choi et al., k-means"].steps[i].name() for i in (0, 1, 3)] == [
        "prune.magnitude", "distill.recover", "distill.recover",
    ]  # fmt: skip
    epochs = [getattr(step, "epochs", 1) for recipe in rows.values() for step in recipe.steps]
    assert set(epochs) == {1}


@pytest.mark.parametrize("part", size_papers.PARTS)
def test_a_hashed_network_and_the_dense_one_beside_it_have_as_many_weights(part: int) -> None:
    from gossamer.constraints.apply import constraints
    from gossamer.models import build

    hashed, dense = size_papers.hashed_pair(build("lenet300"), part, 0)
    stored = sum(p.numel() for [held] in constraints(hashed).values() for p in held.parameters())
    assert stored == pytest.approx(266_200 / part, rel=0.01)
    width = dense[1].out_features  # type: ignore[index]
    assert [p.shape[0] for p in dense.parameters() if p.ndim == 2] == [width, width // 3, 10]
    assert 0 <= sum(p.numel() for p in dense.parameters() if p.ndim == 2) - stored < 784 + width + 10
    assert dense(torch.zeros(2, 1, 28, 28)).shape == hashed(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_the_table_of_sizes_names_every_row() -> None:
    row = {"bytes": 100, "test": 90.0}
    seeds = {"0": {"dense": {**row, "bytes": 1000, "packed": {"fp16": 500}}, "60x": row, "deep-compression": row}}
    seeds["0"] |= {"Choi et al., uniform": row, "nncodec": {"qp -20": row}}
    text = size.render({"conditions": "test split", "command": "c", "networks": {"lenet300": seeds}})
    labels = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert labels[1:] == [
        "fp16", "smallest, asked for 60x", "Deep Compression as published (15 epochs, no teacher), our coder",
        "Choi et al., uniform, our coder", "NNCodec, qp -20",
    ]  # fmt: skip


def test_the_architectures_are_of_about_equal_size() -> None:
    from gossamer.data import load_task
    from gossamer.modules.cost import total_params

    task = load_task("digits")
    sizes = [total_params(architectures.build(name, task, 0)) for name in architectures.NETWORKS]
    assert all(260_000 < size < 270_000 for size in sizes)


def test_the_table_of_architectures() -> None:
    runs = [{"error": 7.0}, {"error": 8.0}]
    row = {
        "network": "A",
        "what": "b",
        "params": 1234,
        "macs": 2_500_000,
        "latency_ms": {"onnxruntime": 1.5},
        "epoch_seconds": 104.6,
        "runs": runs,
    }
    at = {"data": "digits", "epochs": 2, "seeds": [0, 1], "repeats": 5, "batch": 8, "threads": 1}
    text = architectures.render({"conditions": at, "environment": {}, "networks": [row]})
    assert text.splitlines()[-1] == "| A (b) | 1,234 | 2.5 | 7.50 ± 0.71 | 1.50 | 105 |"
    assert architectures.spread([7.0], 2) == "7.00"


def test_the_curves_of_low_rank_and_sharing_compare_files_at_equal_accuracy() -> None:
    def point(kind: str, size: int, *tops: float) -> dict[str, Any]:
        return {"curve": kind, "runs": {str(i): {"bytes": size, "test": top} for i, top in enumerate(tops)}}

    alone, shared, both = with_sharing.CURVES
    points = {
        "a": point(alone, 900, 91.9, 92.1), "b": point(alone, 500, 90.0, 90.0),
        "c": point(shared, 300, 91.8, 91.8), "worse": point(shared, 350, 91.0, 91.0),
        "d": point(both, 100, 91.6, 91.4),
    }  # fmt: skip
    dense = {"0": {"test": 92.0}, "1": {"test": 92.0}}
    found = {"how": {"dense bytes": 9000, "epochs": 4, "seeds": [0, 1]}, "dense": dense, "points": points}
    assert with_sharing.front(found, shared) == [(300, pytest.approx(91.8), "c")]  # "worse" is larger and no better
    lines = with_sharing.table(found).splitlines()
    assert "| 0 points | 900 (a) | none | none |" in lines
    assert "| 0.5 points | 900 (a) | 300 (c) | 100 (d) |" in lines
    assert "| low rank alone | a | 900 | 10.0 | 92.00 ± 0.14 |" in lines
    assert "100 bytes, 91.50 %" in with_sharing.page(found)


@pytest.mark.parametrize("model", ["resnet20", "vgg16_small"])
def test_the_hand_gets_five_cuts_unless_told_otherwise(model):
    options = speed.parse(["--peers-python", "p", "--model", model])
    assert len(set(options.cuts)) == 5


@pytest.mark.parametrize("name", ["lenet300", "lenet5"])
def test_deep_compression_gets_as_many_epochs_as_ours_and_a_teacher(name):
    published, ours = load_recipe(Path(f"deep-compression-{name}")), load_recipe(Path(f"smallest-{name}"))
    last: Any = ours.steps[-1]
    equal = size_papers.with_budget(published, last.epochs)
    taught = [step for step in equal.steps if isinstance(step, RecoveryDistillation)]
    assert sum(step.epochs or 0 for step in taught) == last.epochs == 30
    assert [step.epochs for step in taught] == [20, 10]
    assert all(step.alpha < 1 for step in taught) and not equal.claims
    others = [
        [step for step in recipe.steps if not isinstance(step, RecoveryDistillation)] for recipe in (equal, published)
    ]
    assert others[0] == others[1]


def test_all_networks_of_a_row_keep_their_best_epoch(tmp_path, monkeypatch):
    kept: dict[str, str] = {}

    def fitted(setting: Any, name: str, model: Any, task: Any, training: Any, **more: Any) -> Any:
        kept[name] = training.keep
        return SimpleNamespace(model=model)

    def taught(setting: Any, name: str, method: str, student: Any, teacher: Any, task: Any, **options: Any) -> Any:
        kept[name] = catalogue()[method](**options).training(task).keep
        return student

    monkeypatch.setattr(distill_rows.Setting, "fitted", fitted)
    monkeypatch.setattr(distill_rows.Setting, "taught", taught)
    monkeypatch.setattr(distill_rows, "judged", lambda model, task: {"errors": 1, "top1": 99.0})
    for row in (distill_rows.hinton, distill_rows.fitnet):
        row(distill_rows.Setting("digits", 0, 0.02, tmp_path))
    assert len(kept) == 7 and set(kept.values()) == {"best"}


def test_runs_are_kept_once_each_with_their_conditions(monkeypatch):
    monkeypatch.setattr(sys, "argv", [size.__file__, "--seeds", "1"])
    run = conditions.run_conditions([1], 2, {"peer": "3"})
    assert run["command"] == "python -m benchmarks.size.compare --seeds 1" and run["commit"] and run["processor"]
    assert run["versions"]["peer"] == "3" and "torch" in run["versions"] and "date" not in run["versions"]
    document = {"measured": [run | {"date": "before"}, run | {"command": "another"}]}
    assert conditions.with_run(document, run) == [run | {"command": "another"}, run]


def test_the_peer_is_told_the_heads_and_its_width_is_mended():
    attention = torch.nn.MultiheadAttention(8, 2)
    assert zoo.hints(torch.nn.Sequential(attention)) == {"num_heads": {attention: 2}}
    model = SimpleNamespace(hidden_dim=8, conv_proj=torch.nn.Conv2d(3, 4, 1))
    zoo.mend(model)
    assert model.hidden_dim == 4


@pytest.mark.parametrize("file", COMMANDS, ids=lambda file: f"{file.parent.name}.{file.stem}")
def test_every_benchmark_is_a_command_that_says_what_it_does(file: Path, monkeypatch, capsys):
    name = conditions.module(file)
    monkeypatch.setattr(sys, "argv", [str(file), "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(name).main()
    said = capsys.readouterr().out
    assert ended.value.code == 0 and f"python -m {name}" in said and "--" in said


def test_the_list_of_benchmarks_has_each_once():
    rows = [line.split(" | ")[0] for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([\w.]+)`", row)]
    assert sorted(named) == [f"{file.parent.name}.{file.stem}" for file in COMMANDS]


def test_the_prose_of_tables_is_wrapped_and_the_rest_is_not():
    row, long = "| " + "cell | " * 40, "word " * 40
    lines = tables.wrapped(f"# {long}\n\n{long}\n- {long}\n{row}").split("\n")
    assert [len(line) > 100 for line in lines if line.startswith(("#", "|"))] == [True, True]
    assert all(len(line) <= 100 for line in lines if not line.startswith(("#", "|")))
    assert sum(line.startswith("  word") for line in lines) == 2
