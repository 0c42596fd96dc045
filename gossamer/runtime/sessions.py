"""`.onnx` files opened by the libraries that run them. Nothing here needs torch, which takes a second to import."""

import sys
from pathlib import Path
from typing import Any

from gossamer.errors import CorruptFile, GossamerError, first_line, require
from gossamer.runtime.operators.library import DOMAIN, OPERATORS, find_library

# What the libraries call the kinds of floating point inputs.
FLOATS = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
OPENVINO_FLOATS = {"f32": "float32", "f16": "float16", "f64": "float64"}


def open_session(path: Path, *, threads: int, profile: bool = False, prepack: bool = True) -> Any:
    """An ONNX Runtime session on the CPU. profile: it writes a log of all nodes' times next to the `.onnx`. prepack:
    weights are brought into the order of the kernels when it opens, which is faster and leaves them out of the log."""
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    # Idle threads of one session would otherwise go on spinning and slow down whatever runs next in the process.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, str(path.parent / f".{path.stem}.profile")
    try:
        try:
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            if not any(f"{DOMAIN}:{name}" in str(error) for name in OPERATORS):
                raise
        options.register_custom_ops_library(str(find_library()))
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except GossamerError:
        raise
    except Exception as error:
        raise CorruptFile(f"{path}: ONNX Runtime cannot open it: {first_line(error)}") from error


def import_openvino() -> Any:
    """The library, which by itself reports its import, and conversions later, to its maker; here it cannot.

    It reports by the package `openvino_telemetry`. Where that cannot be imported, it takes a stub of its own that sends
    nothing, and keeps it as long as the process lives.
    """
    name = "openvino_telemetry"
    if (known := sys.modules.get("openvino")) is not None:
        return known
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # what makes its import an ImportError
    try:
        return require("openvino")
    finally:
        if before is not None:
            sys.modules[name] = before


def compile_openvino(path: Path, *, threads: int, precision: str, profile: bool = False) -> tuple[Any, Any]:
    """OpenVINO's model of a file, and the same compiled for the CPU with the latency hint.

    precision: "default" leaves it to OpenVINO. profile: the times of its layers can be asked for.
    """
    openvino = import_openvino()
    hints = {"float32": "f32", "int8": "f32", "bfloat16": "bf16"}
    config: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if profile:
        config["PERF_COUNT"] = True
    if precision in hints:
        config["INFERENCE_PRECISION_HINT"] = hints[precision]
    core = openvino.Core()
    try:
        model = core.read_model(str(path))
        return model, core.compile_model(model, "CPU", config)
    except Exception as error:
        raise CorruptFile(f"{path}: OpenVINO cannot open it: {first_line(error)}") from error
