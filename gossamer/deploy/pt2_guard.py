"""What of a `.pt2` may be read: torch's own loader would unpickle parts of it and evaluate others."""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from gossamer.errors import CorruptFile

FILES = re.compile(
    r"models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)|archive_format|archive_version|byteorder"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|\.data/(version|serialization_id)|version"
)
LEFT_OUT = re.compile(r"data/sample_inputs/model\.pt")  # a pickle that running does not need
EXPRESSION = re.compile(r"[\w\s+\-*/%(),<>=&|~!]*")
FUNCTIONS = re.compile(
    r"Symbol|Integer|Rational|Float|Add|Mul|Pow|Abs|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|IntTrueDiv|floor"
    r"|ceiling|ModularIndexing|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|(Une|E)quality|(Strict)?(Less|Greater)Than"
)
TARGET = re.compile(r"torch\.ops(\.\w+){2,3}|_operator\.\w+|math\.\w+|torch\.sym_\w+")


def harmless(data: bytes) -> bytes:
    """The archive again with nothing in it but tensors and a graph of torch operations.

    Raises CorruptFile where it holds pickled objects, compiled code, or expressions and calls of another kind.
    """
    try:
        source = zipfile.ZipFile(io.BytesIO(data))
        names = source.namelist()
        contents = {name.partition("/")[2]: source.read(name) for name in names}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise CorruptFile(f"not a zip archive: {error}") from error
    if len(contents) != len(names) or len({name.partition("/")[0] for name in names}) > 1:
        raise CorruptFile("an archive of files with equal names")
    strange = [name for name in contents if not FILES.fullmatch(name) and not LEFT_OUT.fullmatch(name)]
    if strange:
        raise CorruptFile(f"holds {strange[0]!r}; only tensors and one graph of torch operations are read")
    try:
        for kind in ("weights", "constants"):
            _check_tensors(json.loads(contents[f"data/{kind}/model_{kind}_config.json"]))
        _check_graph(json.loads(contents["models/model.json"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CorruptFile(f"incomplete archive: {type(error).__name__}: {error}") from error
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w", zipfile.ZIP_STORED) as target:
        for name, content in contents.items():
            target.writestr(f"net/{name}", b"" if LEFT_OUT.fullmatch(name) else content)
        if not any(LEFT_OUT.fullmatch(name) for name in contents):
            target.writestr("net/data/sample_inputs/model.pt", b"")
    return result.getvalue()


def _check_tensors(config: dict[str, Any]) -> None:
    for name, entry in config["config"].items():
        if entry["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            raise CorruptFile(f"tensor {name!r} is pickled; only plain tensors are read")


def _check_graph(graph: Any) -> None:
    for entry in _objects(graph):
        for key in ("expr_str", "hint_expr_str"):
            if isinstance(entry.get(key), str) and not is_expression(entry[key]):
                raise CorruptFile(f"{entry[key]!r} is no expression of sizes")
        target = entry.get("target")
        if isinstance(target, str) and "inputs" in entry and not TARGET.fullmatch(target):
            raise CorruptFile(f"calls {target!r}, which is no operation of torch")


def is_expression(text: str) -> bool:
    """Whether a text only does arithmetic on named sizes: it will be evaluated as Python."""
    bare = re.sub(r"'[A-Za-z]\w*'", "0", text)
    called = re.findall(r"(\w+)\s*\(", bare)
    return EXPRESSION.fullmatch(bare) is not None and all(FUNCTIONS.fullmatch(name) for name in called)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """All JSON objects inside a value."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)
