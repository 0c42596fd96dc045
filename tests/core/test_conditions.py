"""What a caller has set around a call does not change the result, and arguments of another kind are named."""

import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import tiny
from torch import nn

import gossamer
from gossamer.core.conditions import own_conditions
from gossamer.core.context import Context
from gossamer.core.kinds import unwrapped
from gossamer.data import tiny_network, tiny_task
from gossamer.methods.prune import ChannelPruning, Magnitude

TASK = tiny_task()
INPUTS = TASK.example_inputs
ONE = gossamer.Training(epochs=1, lr=0.01)
RECIPE = gossamer.Recipe(name="half", steps=(ChannelPruning(sparsity=0.5),), int8=False)

API: Any = gossamer  # for calls that type checkers would refuse

# What a user calls with a network, in a folder.
CALLS: dict[str, Callable[[Any, Path], Any]] = {
    "prune_channels": lambda net, folder: gossamer.prune_channels(net, INPUTS).model,
    "analyze": lambda net, folder: gossamer.analyze(net, INPUTS),
    "save": lambda net, folder: gossamer.save(net, folder / "net.gsr", INPUTS),
    "export_onnx": lambda net, folder: gossamer.export_onnx(net, INPUTS, folder / "net.onnx"),
    "export_pt2": lambda net, folder: gossamer.export_pt2(net, INPUTS, folder / "net.pt2"),
    "a method": lambda net, folder: Magnitude(sparsity=0.5)(net).model,
    "fit": lambda net, folder: gossamer.fit(net, TASK, ONE, Context()).model,
    "compress": lambda net, folder: gossamer.compress(net, TASK, recipe=RECIPE, out=folder / "job").model,
    "distill": lambda net, folder: gossamer.distill(net, tiny_network(), TASK, out=folder / "distill").model,
    "latency": lambda net, folder: gossamer.latency(net, INPUTS),
    "load": lambda net, folder: gossamer.load(gossamer.save(tiny_network(), folder / "tiny.gsr"), into=net),
}
MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "DataParallel": nn.DataParallel,
    "torch.compile": torch.compile,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "DataParallel in torch.compile": lambda net: torch.compile(nn.DataParallel(net)),
}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch.compile itself, when it is imported
@pytest.mark.parametrize(
    ("call", "wrapper"), [(call, name) for call in ("prune_channels", "fit", "a method") for name in WRAPPERS]
)
def test_the_network_inside_of_a_wrapper_is_what_counts(call: str, wrapper: str, tmp_path: Path) -> None:
    """Compiled networks could not be trained, and took a minute to be cut: they were compiled anew for each run."""
    wrapped = WRAPPERS[wrapper](tiny_network())
    found = CALLS[call](wrapped, tmp_path)
    assert type(found) is type(tiny_network())
    expected = CALLS[call](tiny_network(), tmp_path)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor)


def test_a_wrapper_of_several_processes_is_taken_off(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(tiny_network())
        assert CALLS["export_onnx"](wrapped, tmp_path).is_file()
        assert unwrapped(wrapped) is wrapped.module and unwrapped(3) == 3
    finally:
        torch.distributed.destroy_process_group()


def test_the_device_meta_of_the_caller_changes_nothing(tmp_path: Path) -> None:
    net = tiny_network()
    with torch.device("meta"):
        cut = gossamer.prune_channels(net, INPUTS)
    assert cut.widths == gossamer.prune_channels(net, INPUTS).widths and cut.widths["conv1"] == (8, 4)


def test_threads_take_turns() -> None:
    """Exports replace functions of torch for the whole process: two at once failed both."""
    inside: list[str] = []

    def call(name: str) -> None:
        with own_conditions(), own_conditions():
            inside.append(name)
            time.sleep(0.02)
            inside.append(name)

    threads = [threading.Thread(target=call, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside[::2] == inside[1::2] and len(inside) == 6


@pytest.mark.parametrize(
    ("call", "mode"),
    [
        *[("prune_channels", mode) for mode in MODES],
        pytest.param("export_pt2", "inference_mode", marks=pytest.mark.slow),
        ("a method", "inference_mode"),
        ("fit", "no_grad"),
        pytest.param("compress", "no_grad", marks=pytest.mark.slow),
    ],
)
def test_modes_of_the_caller_change_nothing(
    call: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(around: AbstractContextManager[Any], name: str) -> Any:
        net = tiny_network()
        (tmp_path / name).mkdir()
        with around:
            return CALLS[call](net, tmp_path / name)

    expected, found = run(torch.enable_grad(), "without"), run(MODES[mode](), "within")
    if isinstance(found, Path):
        expected, found = (gossamer.runtime.load_pt2(path) for path in (expected, found))
        assert torch.equal(found(*INPUTS), expected(*INPUTS))
        return
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))
    found.train()(*INPUTS).sum().backward()  # nothing of the mode is left in its weights


@pytest.mark.parametrize(
    "call",
    [
        *[name for name in CALLS if name not in ("latency", "distill", "compress")],
        pytest.param("compress", marks=pytest.mark.slow),
    ],
)
def test_the_generators_of_the_caller_go_on_where_they_were(call: str, tmp_path: Path) -> None:
    net = tiny_network()
    torch.manual_seed(5)
    CALLS[call](net, tmp_path)
    found = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(found, torch.rand(3))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (nn.Linear, r"the class Linear; make one: Linear\(...\)"),
        (tiny().state_dict(), "build it and call load_state_dict"),
        (len, "builtin_function_or_method"),
        (None, "NoneType"),
    ],
    ids=["class", "weights", "function", "None"],
)
@pytest.mark.parametrize("call", [name for name in CALLS if name != "latency"])
def test_what_is_no_network_is_refused_by_name(call: str, given: Any, named: str, tmp_path: Path) -> None:
    if (call, given) == ("load", None) or (call == "distill" and isinstance(given, dict)):
        pytest.skip("means something else there")
    with pytest.raises(gossamer.BadInput, match=f"the model must be a torch.nn.Module, not .*{named}"):
        CALLS[call](given, tmp_path)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda net: API.compress(net, "digits", recipe=RECIPE), r"Task, not a str; .* load_task\('digits'\)"),
        (lambda net: API.compress(net, [1], recipe=RECIPE), r"Task, not a list; .* Task\.from_loaders"),
        (lambda net: API.distill(net, net, "digits"), r"Task, not a str; .* load_task\('digits'\)"),
        (lambda net: API.fit(net, "digits", ONE, Context()), r"Task, not a str; .* load_task\('digits'\)"),
        (lambda net: API.fit(net, TASK, {"epochs": 1}, Context()), r"Training, not a dict; for example"),
        (lambda net: API.compress(net, TASK, goal={"speedup": 3}), r"gossamer\.Goal, not a dict; for example"),
        (lambda net: API.compress(net, TASK, recipe="r.yaml"), r"gossamer\.Recipe, not a str; for example"),
        (lambda net: API.latency(net, INPUTS), "latency compares runners by name"),
        (lambda net: API.prune_channels(net, INPUTS[0].numpy()), r"torch\.from_numpy makes one of an array of NumPy"),
        (lambda net: gossamer.load(Path(__file__).parent), "core is a folder, not a file"),
    ],
)  # fmt: skip
def test_arguments_of_another_kind_are_refused_by_name(call: Callable[[nn.Module], Any], named: str) -> None:
    with pytest.raises(gossamer.BadInput, match=named):
        call(tiny_network())


def test_weights_made_in_inference_mode_are_not_trained() -> None:
    with torch.inference_mode():
        net = tiny_network()
    with pytest.raises(gossamer.BadInput, match=r"was made in inference mode .* train copy\.deepcopy\(model\)"):
        gossamer.fit(net, TASK, ONE, Context())


def test_a_network_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(gossamer.BadInput, match=r"has no parameter that is trained; model\.requires_grad_\(True\)"):
        gossamer.fit(tiny_network().requires_grad_(False), TASK, ONE, Context())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_exported_networks_take_inputs_in_double_precision(runtime: str, tmp_path: Path) -> None:
    net = tiny_network().double().eval()
    runner = gossamer.open_runner(runtime, gossamer.export_onnx(net, INPUTS, tmp_path / "net.onnx"))
    x = INPUTS[0].double()
    torch.testing.assert_close(runner(x).double(), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: API.Training(epochs=1, lr="0.1"), "training: lr = '0.1' must be a number"),
        (lambda: API.Training(epochs=1.5, lr=0.1), "training: epochs = 1.5 must be an integer"),
        (lambda: API.Training(epochs=True, lr=0.1), "training: epochs = True must be an integer"),
        (lambda: Magnitude(sparsity="0.5"), "sparsity = '0.5' must be a number"),
        (lambda: cut(sparsity="half"), "sparsity = 'half' must be a number or a mapping"),
        (lambda: cut(widths={"conv1": 7.5}), "conv1 = 7.5 must be a whole number between 1 and its 8 channels"),
        (lambda: cut(scores={"conv1.weight": torch.ones(3)}), r"conv1\.weight has the shape \(3,\), its"),
        (lambda: cut(scores={"conv1.weight": torch.full((8, 1, 3, 3), math.nan)}), r"conv1\.weight holds NaN"),
    ],
)  # fmt: skip
def test_numbers_of_another_kind_are_refused_by_name(call: Callable[[], Any], named: str) -> None:
    with pytest.raises(gossamer.BadInput, match=named):
        call()


def cut(**arguments: Any) -> Any:
    return gossamer.prune_channels(tiny_network(), INPUTS, **arguments)
