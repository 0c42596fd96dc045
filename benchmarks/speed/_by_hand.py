"""The peers' side of `compare.py`: a network pruned, fine-tuned and deployed with tools that a user combines by hand.

Runs in a Python of its own, which has torch-pruning, nncf, openvino and onnxruntime (see docs/comparisons.md).
gossamer gives it the data, the network's definition and the training loop, and nothing else: what differs from
gossamer's rows is how the network is pruned and deployed. `compare.py` calls it once for every network.

    python benchmarks/speed/_by_hand.py out/hand/4 4:0.6:8 --dense dense.safetensors --model resnet20
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from gossamer.core.context import Context
from gossamer.core.record import write_text
from gossamer.core.task import Task
from gossamer.data import load_task
from gossamer.models import build_for, load_weights, save_weights
from gossamer.train import Distillation, Training, fit

DENSE = "dense"
FLOAT, ORT_INT8, NNCF_INT8, TORCH, FACTS = "float.onnx", "ort-int8.onnx", "nncf-int8.xml", "float.pt2", "facts.json"
TRAINED = "trained.safetensors"
IMAGES = 256  # for calibration
STEPS = 400  # of Torch-Pruning, from everything to nothing; it stops where the MACs are reached
TOOLS = ("torch", "torch-pruning", "onnx", "onnxruntime", "nncf", "openvino")


@dataclass(frozen=True)
class Cut:
    """How far Torch-Pruning goes: MACs divided by `divisor`, at most the share `cap` of a layer, widths rounded."""

    divisor: float
    cap: float
    round_to: int

    @classmethod
    def parse(cls, text: str) -> "Cut":
        """From "4:0.6:8"; raises ValueError."""
        if text.count(":") != 2:
            raise ValueError(f"{text!r}: a cut is DIVISOR:CAP:ROUND_TO, such as 4:0.6:8")
        divisor, cap, round_to = text.split(":")
        made = cls(float(divisor), float(cap), int(round_to))
        if made.divisor <= 1 or not 0 < made.cap <= 1 or made.round_to < 1:
            raise ValueError(f"{text!r}: needs divisor > 1, 0 < cap <= 1, round_to >= 1")
        return made

    def __str__(self) -> str:
        return f"{self.divisor:g}:{self.cap:g}:{self.round_to}"


def prune(model: nn.Module, example: Tensor, cut: Cut) -> None:
    """Global L2 group magnitude, step by step until the MACs are reached; changes the model in place."""
    import torch_pruning as tp

    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    wanted = tp.utils.count_ops_and_params(model, example)[0] / cut.divisor
    pruner = tp.pruner.MagnitudePruner(
        model,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=1.0,
        max_pruning_ratio=cut.cap,
        iterative_steps=STEPS,
        round_to=cut.round_to if cut.round_to > 1 else None,
        ignored_layers=[last],
    )
    for _ in range(STEPS - 1):
        pruner.step()
        if tp.utils.count_ops_and_params(model, example)[0] <= wanted:
            return
    raise SystemExit(
        f"Torch-Pruning cannot reach 1/{cut.divisor:g} of the MACs with at most {cut.cap:g} of a layer cut"
    )


def fine_tune(model: nn.Module, teacher: nn.Module, task: Task, options: argparse.Namespace) -> None:
    """With distillation from the dense network, by the loop, epochs and hyper-parameters of gossamer's recovery."""
    training = Training(epochs=options.epochs, lr=options.lr, weight_decay=options.weight_decay)
    loss_terms = [Distillation(teacher, temperature=options.temperature, alpha=options.alpha)]
    fit(
        model,
        task,
        training,
        Context(seed=options.seed),
        loss_terms=loss_terms,
        checkpoint=options.folder / "fine-tune.ckpt",
    )


def export(model: nn.Module, example: Tensor, folder: Path) -> None:
    """As ONNX and `.pt2`, with torch's own exporters."""
    model = model.eval()
    inputs, shapes = (example,), ({0: torch.export.Dim.DYNAMIC},)
    with torch.no_grad():
        program = torch.export.export(model, inputs, dynamic_shapes=shapes)
        torch.export.save(program, folder / TORCH)
        exported = torch.onnx.export(model, inputs, dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert exported is not None
    exported.save(str(folder / FLOAT), external_data=False)


def calibration(task: Task) -> Iterator[Tensor]:
    """IMAGES training images, in batches."""
    left = IMAGES
    for batch in task.calibration:
        if left > 0:
            yield batch[:left]
        left -= len(batch)


def ort_int8(task: Task, folder: Path) -> None:
    """ONNX Runtime's static quantization: pre-processed, QDQ, per channel, min-max, unsigned activations.

    Its default, signed activations, is slower than float32 where the processor has VNNI, as its documentation warns.
    """
    import onnx
    import onnxruntime.quantization as quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.feeds = ({name: batch.numpy()} for batch in calibration(task))

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    prepared, done = folder / "prepared.onnx", folder / f"part.{ORT_INT8}"
    quant_pre_process(str(folder / FLOAT), str(prepared))
    reader = Reader(str(onnx.load(prepared).graph.input[0].name))
    quantization.quantize_static(
        str(prepared),
        str(done),
        reader,
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )
    prepared.unlink()
    done.replace(folder / ORT_INT8)


def nncf_int8(task: Task, folder: Path) -> dict[str, float]:
    """NNCF's post-training quantization with its default settings and with those that its documentation recommends
    where accuracy matters (mixed preset, accurate bias correction); keeps what is better on validation data.

    Gives the validation top-1 of both, in percent.
    """
    import nncf
    import openvino

    settings: dict[str, dict[str, Any]] = {
        "default": {},
        "accurate": {"preset": nncf.QuantizationPreset.MIXED, "fast_bias_correction": False},
    }
    samples = [image[None].numpy() for batch in calibration(task) for image in batch]
    core, found, models = openvino.Core(), {}, {}
    for name, options in settings.items():
        network = core.read_model(folder / FLOAT)
        models[name] = nncf.quantize(network, nncf.Dataset(samples), subset_size=len(samples), **options)
        compiled = core.compile_model(models[name], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        run = lambda x, run=compiled: torch.from_numpy(run(x.numpy())[0].copy())  # noqa: E731
        found[name] = 100 * task.metric.score(run, task.validation)
    best = max(settings, key=lambda name: found[name])  # the default where both are equal
    openvino.save_model(models[best], folder / f"part.{NNCF_INT8}")
    binary = Path(NNCF_INT8).with_suffix(".bin")
    (folder / f"part.{binary}").replace(folder / binary)
    (folder / f"part.{NNCF_INT8}").replace(folder / NNCF_INT8)
    return found


def make(options: argparse.Namespace) -> dict[str, Any]:
    """Everything for one network, or all up to the fine-tuning; gives what is known about it."""
    folder: Path = options.folder
    task = load_task(options.data, seed=options.seed)
    example = task.example_inputs[0]
    dense = load_weights(build_for(options.model, task), options.dense).eval()
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.monotonic()
        result = work()
        seconds[name] = round(time.monotonic() - began, 1)
        return result

    model = load_weights(build_for(options.model, task), options.dense).eval()
    if options.cut is not None:
        timed("prune", lambda: prune(model, example, options.cut))
        if (trained := folder / TRAINED).exists():
            load_weights(model, trained)
        else:
            timed("fine-tune", lambda: fine_tune(model, dense, task, options))
            save_weights(model, trained, {})
            (folder / "fine-tune.ckpt").unlink()
    if options.train_only:
        return {"network": str(options.network), "seconds": seconds}
    timed("export", lambda: export(model, example, folder))
    timed("onnxruntime int8", lambda: ort_int8(task, folder))
    nncf_top1 = timed("nncf int8", lambda: nncf_int8(task, folder))
    return {
        "network": DENSE if options.cut is None else str(options.cut),
        "cut": None if options.cut is None else asdict(options.cut),
        "epochs": 0 if options.cut is None else options.epochs,
        "widths": [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)],
        "nncf_validation_top1": nncf_top1,
        "seconds": seconds,
        "versions": {name: metadata.version(name) for name in TOOLS},
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("network", help="dense, or DIVISOR:CAP:ROUND_TO such as 4:0.6:8")
    parser.add_argument("--dense", type=Path, required=True, help="weights of the dense network")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--temperature", type=float, default=4.0)
    parser.add_argument("--alpha", type=float, default=0.1, help="weight of the hard loss")
    parser.add_argument("--train-only", action="store_true", help="end after the fine-tuning")
    options = parser.parse_args(arguments)
    try:
        options.cut = None if options.network == DENSE else Cut.parse(options.network)
    except ValueError as error:
        parser.error(f"network: {error}")
    return options


def main() -> None:
    options = parse()
    options.folder.mkdir(parents=True, exist_ok=True)
    # Waits for the process that a killed benchmark has left behind, whose work then counts.
    with FileLock(options.folder / ".lock"):
        if (options.folder / FACTS).exists():
            return
        facts = make(options)
        if not options.train_only:
            write_text(options.folder / FACTS, json.dumps(facts, indent=1))
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
