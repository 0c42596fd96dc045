"""What gossamer raises on purpose.

GossamerError                one message for the user: what, where, the rule, the fix. Exit status 2
├── BadInput (ValueError)    an argument, a recipe, a model or data that cannot be used
│   └── NoEffect             a selection that matched nothing
├── CorruptFile              a file that is truncated, damaged or not what its name says
├── MissingExtra             an optional dependency that is not installed
├── FolderBusy               two jobs in one folder
├── Diverged                 training that could not be saved; the last good state is on disk
└── ExportMismatch           a deployed network that does not compute what the trained one does
"""

import difflib
import importlib
import os
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

FEW = 12  # names that one can read in an error
NEAREST = 3
MAX_QUOTED = 200  # characters of a name out of a file, and of what another library says
NETWORKS = (".gsr", ".onnx", ".pt2", ".safetensors")
ALIKE = str.maketrans("oOlI", "0011")
NOT_THEIRS = (str(Path(__file__).parent) + os.sep, f"site-packages{os.sep}torch{os.sep}")  # files


class GossamerError(Exception):
    """Base of everything that gossamer raises on purpose.

    shell: the message for those who read it from a command, where its advice is about options and not arguments.

    Example:
        >>> import gossamer
        >>> try:
        ...     gossamer.load_task("fasion-mnist")
        ... except gossamer.GossamerError as error:
        ...     print(str(error)[:60])
        unknown data set or folder 'fasion-mnist'; did you mean...
    """

    def __init__(self, *message: object, shell: str | None = None) -> None:
        super().__init__(*message)
        self.shell = shell


class BadInput(GossamerError, ValueError):
    """An argument, a recipe, a model or data that cannot be used.

    Example:
        >>> import gossamer
        >>> gossamer.Goal(max_drop=-1)
        Traceback (most recent call last):
            ...
        gossamer.errors.BadInput: max_drop = -1: must be at least 0 points
    """


class NoEffect(BadInput):
    """A selection that matched nothing."""


class CorruptFile(GossamerError):
    """A file that is truncated, damaged or not what its name says."""


class MissingExtra(GossamerError, ImportError):
    """An optional dependency that is not installed."""


class FolderBusy(GossamerError):
    """Another job works in this folder."""


class Diverged(GossamerError):
    """Training that could not be saved; the last good state is on disk."""


class ExportMismatch(GossamerError):
    """A deployed network that does not compute what the trained one does."""


def unknown(kind: str, name: str, known: Iterable[str], *, listed: str = "") -> BadInput:
    """The error for a name that does not exist: the nearest one that does, or all of a few, or the nearest of many and
    `listed`, what shows all."""
    names, said = sorted(known), repr(name if len(name) <= MAX_QUOTED else f"{name[:MAX_QUOTED]}...")
    near = difflib.get_close_matches(name, names, n=NEAREST, cutoff=0.0)
    if slips := [one for one in names if _slipped(name, one)]:
        # Of several that are one character away, the one that looks the same: O and 0, l and 1.
        slips.sort(key=lambda one: one.translate(ALIKE) != name.translate(ALIKE))
        return BadInput(f"unknown {kind} {said}; did you mean {slips[0]!r}?")
    if difflib.get_close_matches(name, near, n=1, cutoff=0.5):
        return BadInput(f"unknown {kind} {said}; did you mean {near[0]!r}?")
    if len(names) <= FEW:
        return BadInput(f"unknown {kind} {said}; known: {', '.join(names)}")
    where = f"; {listed} lists them" if listed else ""
    return BadInput(f"unknown {kind} {said}; of {len(names)} that are known {', '.join(near)} are nearest{where}")


def no_file(path: Path | str) -> BadInput:
    """Why a path names no file: nothing is there, or a folder, with the networks in it."""
    if not (folder := Path(path)).is_dir():
        return BadInput(f"{path}: no such file")
    inside = sorted(f.name for f in folder.iterdir() if f.suffix in NETWORKS)[:6]
    return BadInput(f"{path} is a folder, not a file{'; in it: ' if inside else ''}{', '.join(inside)}")


def _slipped(name: str, known: str) -> bool:
    """Whether one character of a name is another one."""
    return len(name) == len(known) and sum(a != b for a, b in zip(name, known)) == 1


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was short: Python's own, or torch's on a processor or an accelerator."""
    return isinstance(error, MemoryError) or any(
        said in str(error) for said in ("can't allocate memory", "out of memory")
    )


def own_error(error: BaseException) -> str:
    """Type, message and place of somebody else's error: the last line that is neither gossamer's nor torch's."""
    frames = traceback.extract_tb(error.__traceback__)
    others = [frame for frame in frames if not any(part in frame.filename for part in NOT_THEIRS)] or frames
    place = f" ({others[-1].filename}:{others[-1].lineno})" if others else ""
    return f"{type(error).__name__}: {error}{place}"


def first_line(error: BaseException) -> str:
    """What an error of another library says, in short: names out of a file can be of any length.

    Where it begins with headings, such as OpenVINO's "Exception from FILE:84:", what stands below them.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    below = [line.strip(" -") for line in lines if line.strip() and not line.rstrip().endswith(":")]
    return (" ".join(below) if below and lines[0].rstrip().endswith(":") else lines[0])[:MAX_QUOTED]


# Which extra of the package brings which optional library.
EXTRAS = {
    "onnx": "deploy",
    "onnxscript": "deploy",
    "onnxruntime": "deploy",
    "openvino": "openvino",
    "lightning_fabric": "train",
    "numba": "codec",
    "llvmlite": "codec",
    "PIL": "data",
    "sklearn": "data",
    "timm": "timm",
    "torchvision": "torchvision",
    "transformers": "transformers",
    "executorch": "executorch",
    "torchao": "executorch",
    "litert_torch": "litert",
    "ai_edge_litert": "litert",
    "ai_edge_quantizer": "litert",
    "pnnx": "ncnn",
    "ncnn": "ncnn",
    "optuna": "search",
    "ray": "distributed",
}


def missing(error: BaseException) -> MissingExtra | None:
    """The error that says which extra brings the library that was not found; None for any other error."""
    library = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if library not in EXTRAS:
        return None
    return MissingExtra(f"{library} is not installed; install it with: pip install 'gossamer[{EXTRAS[library]}]'")


def require(module: str) -> ModuleType:
    """Import a module of gossamer or of an optional library; where one is missing, say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if told := missing(error):
            raise told from error
        raise
