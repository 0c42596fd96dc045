"""[16] on a sigmoid network."""

from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from benchmarks.papers._mnist import error, mlp, task, trained
from benchmarks.papers._row import Number, Numbers, Row
from gossamer.core.context import Context
from gossamer.core.goal import Goal
from gossamer.measure import evaluate
from gossamer.ptq import float32_scores, quantize_int8
from gossamer.runtime import open_runner
from gossamer.train import Training


def network() -> nn.Module:
    """784-1000-1000-10 with sigmoids."""
    layers = [nn.Sigmoid() if isinstance(layer, nn.ReLU) else layer for layer in mlp(784, 1000, 1000, 10)]
    return nn.Sequential(*layers)


def measure(seed: int) -> Numbers:
    """Errors in float32 and int8, the latter run in ONNX Runtime."""
    data = task(seed)
    dense = trained("sigmoid-1000-1000", network, Training(epochs=6, lr=0.1, weight_decay=1e-5), seed)
    with TemporaryDirectory() as folder:
        goal = Goal(max_drop=0.1, threads=1)
        made = quantize_int8(
            dense, data, Path(folder), goal=goal, reference=float32_scores(dense, data), context=Context(seed=seed)
        )
        runner = open_runner("onnxruntime", made.path, threads=1, precision="int8")
        after = 100 - 100 * evaluate(runner, data, "test").value
    before = error(dense, data)
    return {"error, float32": before, "error, int8": after, "points lost": after - before}


ROW = Row(
    title="8-bit integers on a processor",
    paper="Vanhoucke, Senior, Mao 2011, NIPS workshop on deep learning",
    setting="a speech network of 4 to 5 layers of 2,000 sigmoids; weights and activations in 8 bits: nothing is "
    "lost. The "
    "paper is 4 times as fast as an optimized float32 baseline without fused or vector instructions of today",
    ours="784-1000-1000-10 with sigmoids on MNIST, 6 epochs, quantized after training with 512 images without labels, "
    "run in ONNX Runtime; only the loss is compared",
    minutes=2,
    measure=measure,
    numbers=(Number(name="points lost", paper=0.0, where="section 4", tolerance=0.1, unit="points"),),
)
