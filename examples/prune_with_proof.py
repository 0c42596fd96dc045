"""Cut half of the channels of a network, without data, and print the proof of the cut."""

import torch

import gossamer

try:
    from torchvision.models import resnet18

    model, inputs = resnet18(num_classes=10).eval(), torch.randn(2, 3, 64, 64)
except (ImportError, RuntimeError):  # not installed, or made for another torch
    model, inputs = gossamer.build("resnet20").eval(), torch.randn(2, 3, 32, 32)

pruned = gossamer.prune_channels(model, inputs, sparsity=0.5)

before, after = (gossamer.analyze(one, inputs) for one in (model, pruned.model))
print(f"parameters: {before.params:,} -> {after.params:,}")
print(f"multiply-adds: {before.macs:,} -> {after.macs:,}")
print(f"largest relative difference to the original with masked channels: {pruned.proof.max_relative:.1e}")
print(f"groups that stayed whole: {dict(pruned.skipped)}")
assert pruned.proof.max_relative < 1e-5
