"""Inputs of networks: a tensor or a tuple of tensors, wherever they are given, and one message for what is neither."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gossamer
from gossamer.core.batches import as_inputs
from gossamer.errors import BadInput
from gossamer.measure import peak_memory, steady_latency
from gossamer.runtime import layer_times
from gossamer.targets import write_target

X = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
NET = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval()


def test_a_tensor_is_one_input_and_a_collection_several() -> None:
    assert as_inputs(X, "it") == (X,) and as_inputs([X, X], "it") == as_inputs((X, X), "it") == (X, X)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gossamer.export_onnx(NET, X, tmp_path_factory.mktemp("deployed") / "net.onnx")


TAKERS: dict[str, Callable[[Any, Path], Any]] = {
    "save": lambda x, at: gossamer.save(NET, at.with_name("net.gsr"), x),
    "export_pt2": lambda x, at: gossamer.export_pt2(NET, x, at.with_name("net.pt2")),
    "latency": lambda x, at: gossamer.latency({"a": gossamer.open_runner("torch", NET)}, x, repeats=1),
    "steady latency": lambda x, at: steady_latency({"a": gossamer.open_runner("onnxruntime", at)}, x, repeats=1),
    "layer_times": lambda x, at: layer_times("onnxruntime", at, x, repeats=1),
    "write_target": lambda x, at: write_target("onnx-web", NET, x, at.with_name("web.onnx")),
    "peak_memory": lambda x, at: peak_memory(at, x),
}


@pytest.mark.parametrize("who", TAKERS)
def test_whoever_takes_inputs_takes_a_tensor_and_refuses_what_is_none(who: str, deployed: Path) -> None:
    for wrong, said in [
        (X.numpy(), r"not a ndarray of shape \(4, 3\); torch.from_numpy"),
        ({"x": X}, "not a dict"),
        (3, "not a int"),
    ]:
        with pytest.raises(BadInput, match=f"the inputs must be a tensor or a tuple of tensors, {said}"):
            TAKERS[who](wrong, deployed)
    if who != "peak_memory":  # a process of its own
        TAKERS[who](X, deployed)


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino", "binary"])
def test_runners_say_what_is_wrong_with_their_inputs(runtime: str, deployed: Path) -> None:
    runner = gossamer.open_runner(runtime, deployed if runtime in ("onnxruntime", "openvino") else NET)
    with pytest.raises(BadInput, match=r"torch\.from_numpy makes a tensor of it"):
        runner(X.numpy())
    if runtime in ("onnxruntime", "openvino"):
        with pytest.raises(BadInput, match=r"the network takes 1 inputs \(input\), 2 were given"):
            runner(X, X)


@pytest.mark.parametrize("act", [gossamer.analyze, lambda net, x: gossamer.prune_channels(net, x, 0.5)])
def test_arrays_are_refused_before_a_network_sees_them(act: Callable[..., Any]) -> None:
    with pytest.raises(BadInput, match=r"^the inputs of a network are tensors; torch\.from_numpy makes one"):
        act(NET, X.numpy())
