"""NCNN: `.param` and `.bin`, for phones and small boards. Weights are stored in 16 bits."""

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.errors import BadInput, require


class _Wrapped(nn.Module):
    """pnnx names modules by their paths, and those of a bare `nn.Sequential` are numbers, which are no names."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Any:
        return self.network(*inputs)


def write_ncnn(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, _: Any) -> None:
    """Trace the network and let pnnx translate it; the `.bin` stands next to the `.param`."""
    program = require("pnnx").EXEC_PATH
    with tempfile.TemporaryDirectory() as folder:
        traced = Path(folder) / "net.pt"
        torch.jit.trace(_Wrapped(model), inputs).save(str(traced))  # type: ignore[no-untyped-call]
        shapes = ",".join(f"[{','.join(map(str, x.shape))}]f32" for x in inputs)
        done = subprocess.run(
            [program, str(traced), f"inputshape={shapes}"], cwd=folder, capture_output=True, text=True, check=False
        )
        written = [traced.with_suffix(f".ncnn{suffix}") for suffix in (".param", ".bin")]
        if done.returncode or not all(one.is_file() for one in written):
            raise BadInput(f"pnnx cannot translate the network: {(done.stderr or done.stdout).strip()[-300:]}")
        for one in written:
            shutil.copyfile(one, path.with_suffix(one.suffix))


def open_ncnn(path: Path) -> Any:
    """Its inputs are `in0`, `in1`, ..., its outputs `out0`, `out1`, ..., without the dimension of samples."""
    ncnn = require("ncnn")
    net = ncnn.Net()
    net.opt.num_threads = 1
    net.load_param(str(path))
    net.load_model(str(path.with_suffix(".bin")))
    outputs = len(net.output_names())

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        extractor = net.create_extractor()
        kept = [ncnn.Mat(np.ascontiguousarray(x[0].numpy())).clone() for x in inputs]
        for number, mat in enumerate(kept):
            extractor.input(f"in{number}", mat)
        found = tuple(torch.from_numpy(np.array(extractor.extract(f"out{n}")[1])[None].copy()) for n in range(outputs))
        del extractor  # before the net, whose memory it uses
        return found

    return run
