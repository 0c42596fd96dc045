"""Compress a network with your own loaders and your own metric."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gossamer

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x_NCHW = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
y_N = torch.tensor(labels)
train = TensorDataset(x_NCHW[:1200], y_N[:1200])
held_out = TensorDataset(x_NCHW[1200:], y_N[1200:])


def two_best(model, loader):
    """1.0 for every sample whose label is among the two largest outputs."""
    best = [(model(x).topk(2).indices.cpu() == y[:, None]).any(1) for x, y in loader]
    return torch.cat(best).float()


task = gossamer.Task.from_loaders(
    DataLoader(train, batch_size=64, shuffle=True),
    DataLoader(held_out, batch_size=200),
    metric=two_best,
    name="digits of mine",
)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
model = gossamer.fit(model, task, gossamer.Training(epochs=5), gossamer.Context()).model

goal = gossamer.Goal(max_drop=3, compression_ratio=12)
result = gossamer.compress(model, task, goal=goal, epochs=5, out="out/own-data")
print(result.met, [file.name for file in result.folder.iterdir()])
