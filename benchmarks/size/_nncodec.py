"""The peer's side of compare.py: a network through NNCodec and back; runs in a Python with nncodec.

    peers/bin/python benchmarks/size/_nncodec.py WEIGHTS.npz DECODED.npz QP

Prints the bytes of NNCodec's whole bitstream, made without data, with its trellis on and its other settings as it
ships them.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import zoo_shim

zoo_shim.torchvision_models()  # nncodec imports torchvision, whose compiled operations it does not need
from nncodec import nn  # noqa: E402

source, target, qp = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    settings = {"qp": int(qp), "use_dq": True, "results": folder, "model": "network", "verbose": False}
    stream = nn.encode(dict(np.load(source)), settings)
np.savez(target, **{name: np.asarray(tensor) for name, tensor in nn.decode(stream).items()})
print(len(stream))
