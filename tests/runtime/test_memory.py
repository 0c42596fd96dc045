"""Memory of a fresh process: what is given back before the end is seen, and little is imported beside the runtime."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gossamer

GROWTH = """
from gossamer.runtime.memory import peak_growth

def work():
    for _ in range(3):
        bytearray(b"x") * 64_000_000

print(peak_growth(work))
"""
MEASURED = """
import sys
from gossamer.runtime.memory import measured
assert measured(sys.argv[1]) > 100_000
print(*sorted({"torch", "scipy", "rich", "pydantic"} & set(sys.modules)))
"""


def printed(code: str, *arguments: str) -> str:
    """By a fresh process: what an allocator kept from earlier tests is used again without being seen."""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True).stdout


def test_memory_that_is_given_back_before_the_end_is_seen() -> None:
    assert 60e6 < int(printed(GROWTH)) < 160e6


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_file_is_measured_without_what_takes_long_to_import(runtime: str, tmp_path: Path) -> None:
    inputs = torch.zeros(2, 3)
    path = gossamer.export_onnx(torch.nn.Linear(3, 2).eval(), inputs, tmp_path / "net.onnx")
    job = {"runtime": runtime, "path": str(path), "threads": 1, "precision": "float32", "inputs": [[[2, 3], "float64"]]}
    assert printed(MEASURED, json.dumps(job)) == "\n"
