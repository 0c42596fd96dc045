"""Folders of the repository that benchmarks read and write."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
# `zoo_shim`, with which torchvision and timm can be imported without torchvision's compiled operations.
TESTS = ROOT / "tests"
