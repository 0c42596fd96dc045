"""The library of operators for ONNX Runtime, built from `source/` by the C++ compiler of the machine.

The build of the wheel runs this file by itself, so it needs nothing but Python.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parent / "source"
LIBRARY = "libgossamer_operators.so"
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-DNDEBUG")
SETS = {  # of instructions; the library takes the best one that the processor has
    "avx2": ("-mavx2",),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512vpopcntdq"),
}


def compiler() -> str | None:
    """The C++ compiler: $CXX, else c++, g++ or clang++ of the path; None where there is none."""
    named = os.environ.get("CXX")
    return next((found for name in (named, "c++", "g++", "clang++") if name and (found := shutil.which(name))), None)


def source_digest() -> str:
    """Of what the library is built from; the library holds it, too."""
    parts = (file.read_bytes() for file in sorted(SOURCE.iterdir()) if file.suffix in (".cpp", ".h"))
    return hashlib.sha256(b"".join((repr((FLAGS, SETS)).encode(), *parts))).hexdigest()


def build_library(path: Path) -> None:
    """Build the library.

    Args:
        path: of the file, which is there complete or not at all.

    Raises:
        OSError: there is no compiler, or it fails; the message has its last words.
    """
    command = compiler()
    if command is None:
        raise OSError("no C++ compiler is found: set CXX, or install g++")
    sets = SETS if platform.machine().lower() in ("x86_64", "amd64") else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as folder:
        jobs: list[tuple[str, str, tuple[str, ...]]] = [("operators", "operators.cpp", ())]
        jobs += [
            (f"products_{name}", "products.cpp", (f"-DLEVEL={name}", *sets.get(name, ()))) for name in ("plain", *sets)
        ]
        objects = [f"{folder}/{name}.o" for name, *_ in jobs]
        for (_, source, flags), made in zip(jobs, objects):
            _run([command, *FLAGS, *flags, f'-DSOURCE="{source_digest()}"', "-c", str(SOURCE / source), "-o", made])
        whole = f"{folder}/{LIBRARY}"
        _run([command, "-shared", "-static-libstdc++", "-static-libgcc", *objects, "-o", whole])
        Path(whole).replace(path)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{command[0]} fails: {done.stderr.strip()[-500:]}")
