"""Nothing speaks to the network, at import or at work, but the downloads that the user names."""

import importlib.util
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import gossamer

# In every Python process of a job: an attempt to reach another machine is written down and fails.
GUARD = """
import os, sys, traceback

AWAY = {"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1}
AWAY |= {"socket.getaddrinfo": 0, "socket.gethostbyname": 0}
HERE = ("localhost", "127.0.0.1", "::1", "", None)

def guard(event, arguments):
    if event in AWAY:
        address = arguments[AWAY[event]]
        host = address[0] if isinstance(address, tuple) else address
        if isinstance(address, tuple) == bool(AWAY[event]) and host not in HERE:
            with open(os.environ["CALLS"], "a") as file:
                file.write(f"{event} {host}\\n" + "".join(traceback.format_stack(limit=12)))
            raise PermissionError(f"this test allows no network: {host}")

sys.addaudithook(guard)
"""

WORK = """
import importlib, json, sys, warnings
from pathlib import Path

names, words = json.loads(sys.argv[1])
warnings.simplefilter("ignore")
for name in names:
    try:
        importlib.import_module(name)
    except RuntimeError:  # torchvision without its compiled part
        assert not name.startswith("gossamer"), name

import torch
from gossamer.cli import app
from gossamer.runtime import export_onnx, open_runner
from mycode import Net

def call(*words):
    try:
        app(words, prog_name="gossamer")
    except SystemExit as end:
        assert end.code in (0, 3), (words, end.code)

if words:
    inputs = (torch.zeros(2, 1, 8, 8),)
    path = export_onnx(Net().eval(), inputs, Path("net.onnx"))
    for runtime in ("torch.compile", "torch", "onnxruntime", "openvino"):
        open_runner(runtime, Net() if runtime.startswith("torch") else path, threads=1)(*inputs)
    call(*words)

def unreachable(path):
    lines = [line.split() for line in Path(path).read_text().splitlines()]
    if path.endswith("6"):
        return sum(int(line[1]) for line in lines if line[0] == "Ip6OutNoRoutes")
    head, values = (line for line in lines if line[0] == "Ip:")
    return int(values[head.index("OutNoRoutes")])

# In a network of its own without any route: what the kernel could not send, whatever language asked for it.
print("unreachable", unreachable("/proc/self/net/snmp"), unreachable("/proc/self/net/snmp6"))
"""
JOB = ["compress", "mycode:Net", "--data", "mycode:task", "--random", "--recipe", "steps.yaml", "--quiet"]
STEPS = "name: small\nsteps: [{prune.magnitude: {sparsity: 0.5}}]\n"


def modules() -> list[str]:
    """All of gossamer but the command line's start, and what a user may import beside it."""
    own = [one.name for one in pkgutil.walk_packages(gossamer.__path__, "gossamer.")]
    others = ("onnxruntime", "onnxscript", "lightning_fabric", "sklearn", "timm", "torchvision")
    return [name for name in (*own, *others) if "__main__" not in name and importlib.util.find_spec(name) is not None]


def reached(folder: Path, names: list[str], words: list[str]) -> tuple[str, str]:
    """What a process that imports these modules and does this job asked of the network: Python's calls, and what the
    kernel counted (empty where this machine allows no network of one's own)."""
    (folder / "guard").mkdir(exist_ok=True)
    (folder / "guard/sitecustomize.py").write_text(GUARD)
    (folder / "home").mkdir(exist_ok=True)
    calls = folder / "calls"
    calls.write_text("")
    # Telemetry likes to be silent in tests of projects and for those who said no: this is a user without both.
    said_no = ("CI", "TF_BUILD", "JENKINS_URL", *gossamer.QUIET)
    env = {name: value for name, value in os.environ.items() if name not in said_no}
    path = os.pathsep.join([str(folder / "guard"), str(folder), str(Path(gossamer.__file__).parents[1])])
    env |= {"HOME": str(folder / "home"), "PYTHONPATH": path, "CALLS": str(calls), "OMP_NUM_THREADS": "1"}
    env["TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS"] = "0"  # which take longer than the rest
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    try:
        allowed = subprocess.run([*alone, "true"], capture_output=True).returncode == 0
    except OSError:
        allowed = False
    command = [*(alone if allowed else []), sys.executable, "-c", WORK, json.dumps([names, words])]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return calls.read_text(), done.stdout.split("unreachable")[1].strip() if allowed else ""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")
def test_imports_and_a_job_on_every_runtime_ask_nothing_of_the_network(user: Path) -> None:
    (user / "steps.yaml").write_text(STEPS)
    calls, counted = reached(user, modules(), JOB)
    assert calls == ""
    assert counted in ("", "0 0")
    assert not (user / "home/intel").exists(), "OpenVINO's telemetry left its identity"


@pytest.mark.slow
def test_what_asks_is_seen(user: Path) -> None:
    (user / "talks.py").write_text(
        "import socket, threading\n"
        "def ask():\n"
        "    try: socket.create_connection(('192.0.2.1', 80), timeout=1)\n"
        "    except OSError: pass\n"
        "ask()\n"
    )
    calls, _ = reached(user, ["talks"], [])
    assert "192.0.2.1" in calls and "talks.py" in calls
