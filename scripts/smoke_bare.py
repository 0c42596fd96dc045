"""That the installed gossamer does without any extra what needs none, and says which extra brings what is missing.

python scripts/smoke_bare.py
"""

import importlib.util
import tempfile
from pathlib import Path

import torch
from torch import nn

import gossamer
from gossamer.errors import EXTRAS

here = [name for name in EXTRAS if importlib.util.find_spec(name) is not None]
assert not here, f"these come with extras, and are installed: {here}"

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
images = torch.randn(2, 3, 8, 8)

small = gossamer.prune_channels(model, (images,), sparsity=0.5).model
assert small(images).shape == (2, 4)
zeroed, edits = gossamer.methods.prune.Magnitude(sparsity=0.5)(small)
assert edits
shared, edits = gossamer.methods.share.KMeans(bits=3)(zeroed)
factored, edits = gossamer.methods.lowrank.SVD(ranks={"4": 2})(model, images)
assert edits
assert gossamer.analyze(model, (images,)).layers
weights = gossamer.constraints.materialize(shared).state_dict()
assert all(len(w.unique()) <= 9 for name, w in weights.items() if name.endswith("weight"))

for what in ("gossamer.compress", "gossamer.export_onnx", "gossamer.load_task('digits')"):
    try:
        eval(what)
    except gossamer.GossamerError as error:
        assert "pip install 'gossamer[" in str(error), error
    else:
        raise AssertionError(f"{what} works without its extra")
with tempfile.TemporaryDirectory() as folder:
    try:
        gossamer.save(model, Path(folder) / "model.gsr", (images,))
    except gossamer.GossamerError as error:
        assert "gossamer[codec]" in str(error), error
print("without extras: channels pruned, weights pruned, shared and factored; what needs an extra says so")
