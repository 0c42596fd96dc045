"""ONNX Runtime Web: an `.onnx` for browsers, run here in Node where npm has installed `onnxruntime-web`."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.errors import BadInput, MissingExtra
from gossamer.runtime.onnx_export import export_onnx

MODULES = "NODE_PATH"  # where Node looks for packages besides ./node_modules
KINDS = {"float32": "float32", "int64": "int64", "int32": "int32"}
PROGRAM = """
const ort = require("onnxruntime-web");
let text = "";
process.stdin.on("data", (part) => (text += part)).on("end", async () => {
  const { file, inputs } = JSON.parse(text);
  const session = await ort.InferenceSession.create(require("fs").readFileSync(file));
  const feeds = {};
  inputs.forEach(({ kind, dims, data }, i) => {
    const values = kind === "int64" ? BigInt64Array.from(data.map(BigInt)) : kind === "int32" ? Int32Array.from(data)
      : Float32Array.from(data);
    feeds[session.inputNames[i]] = new ort.Tensor(kind, values, dims);
  });
  const found = await session.run(feeds);
  const row = ({ dims, data }) => ({ dims, data: Array.from(data, Number) });
  const rows = session.outputNames.map((name) => row(found[name]));
  process.stdout.write(JSON.stringify(rows));
});
"""


def write_onnx_web(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, _: Any) -> None:
    """The usual `.onnx`: browsers read the same file."""
    export_onnx(model, inputs, path)


def open_onnx_web(path: Path) -> Any:
    """One process of Node for each call."""
    node = shutil.which("node")
    if node is None or not _has_runtime(node):
        raise MissingExtra(
            "onnx-web is run in Node with the package onnxruntime-web, which is not found; install it in this folder "
            f"with: npm install onnxruntime-web, or set {MODULES} to the node_modules where it is"
        )

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        arrays = [x.numpy() for x in inputs]
        rows = [{"kind": KINDS[str(x.dtype)], "dims": x.shape, "data": x.flatten().tolist()} for x in arrays]
        asked = json.dumps({"file": str(path.resolve()), "inputs": rows})
        done = subprocess.run([node, "-e", PROGRAM], input=asked, capture_output=True, text=True, check=False)
        if done.returncode or not done.stdout:
            raise BadInput(f"{path}: ONNX Runtime Web does not run it: {done.stderr.strip()[-300:]}")
        found = json.loads(done.stdout)
        return tuple(torch.from_numpy(np.array(row["data"], np.float32).reshape(row["dims"])) for row in found)

    return run


def _has_runtime(node: str) -> bool:
    program = 'require.resolve("onnxruntime-web")'
    return subprocess.run([node, "-e", program], env=dict(os.environ), capture_output=True, check=False).returncode == 0
