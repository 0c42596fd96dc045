"""Turn the result of `gossamer train --recipe train-NAME-DATA` into a shipped checkpoint, in half precision.

python scripts/ship_checkpoint.py resnet20 fashion-mnist resnet20-fashion-mnist.safetensors
"""

import sys
from pathlib import Path

from gossamer.data import load_task
from gossamer.measure import evaluate
from gossamer.models import build_for, load_weights, save_weights
from gossamer.models.shipped import FOLDER


def main(name: str, data: str, source: str) -> None:
    task = load_task(data)
    model = load_weights(build_for(name, task), Path(source))
    images = task.example_inputs[0]
    meta = {"recipe": f"train-{name}-{data}", "in_channels": str(images.shape[1]), "input_size": str(images.shape[3])}
    meta |= {"classes": str(len(task.classes)), "top1": "0"}
    target = FOLDER / f"{name}-{data}.safetensors"
    FOLDER.mkdir(exist_ok=True)
    save_weights(model, target, meta, half=True)
    top1 = evaluate(load_weights(model, target).eval(), task, "test").shown
    save_weights(model, target, meta | {"top1": f"{top1:.2f}"}, half=True)
    print(f"{target}: {target.stat().st_size:,} bytes, {top1:.2f} % on the test set")


main(*sys.argv[1:])
