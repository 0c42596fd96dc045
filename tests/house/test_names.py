"""What documents name in backticks is there: files, modules, public names, attributes of classes."""

import ast
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from places import PAGES, ROOT

PACKAGE = ROOT / "gossamer"
FAMILIES = {folder.name for folder in (ROOT / "benchmarks").iterdir() if (folder / "__init__.py").exists()}
WRITTEN = {"gsr", "html", "json", "lock", "onnx", "pt2", "safetensors", "yaml"}  # ends of files that commands write
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def named(page: str) -> Iterator[str]:
    """What stands in backticks, without arguments."""
    for text in re.findall(r"`([^`\n]+)`", FENCE.sub("", page)):
        yield text.split("(")[0]


@cache
def attributes() -> dict[str, set[str]]:
    """What each class of the package has, and the names of its bases after "<"."""
    found: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                inside = list(ast.walk(node))
                own = {n.name for n in inside if isinstance(n, ast.FunctionDef)}
                own |= {n.id for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
                own |= {n.attr for n in inside if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
                bases = {"<" + ast.unparse(base).split(".")[-1] for base in node.bases}
                found.setdefault(node.name, set()).update(own, bases)
    return found


def has(owner: str, name: str) -> bool:
    """Whether a class or one of its bases has an attribute."""
    known = attributes().get(owner, set())
    return name in known or any(has(base[1:], name) for base in known if base.startswith("<"))


def is_module_or_method(folder: str, name: str) -> bool:
    """Whether a folder has a module, or a class of a module, of this name."""
    folders = [ROOT / "benchmarks" / folder, PACKAGE / "methods" / folder, PACKAGE / folder]
    return name in attributes() or any((place / f"{name}.py").exists() for place in folders)


def is_there(text: str, page: Path) -> bool:
    """Whether a name means something; what is neither a file, a module nor a class of this repository does."""
    if re.fullmatch(r"[\w./-]+\.(py|md)", text):
        folders = ("", "gossamer", "benchmarks", "benchmarks/results", "docs", "tests", page.parent)
        places = [ROOT / folder for folder in folders]
        return any((place / text).exists() for place in places) or any(PACKAGE.rglob(text))
    if not re.fullmatch(r"\w+(\.\w+)+", text) or text.rpartition(".")[2] in (*WRITTEN, "NAME"):
        return True  # NAME stands for any name
    first, second, *_ = text.split(".")
    if any(second.lower() in fence.lower() for fence in FENCE.findall(page.read_text())):
        return True  # the page makes it, or shows how it is used
    if first in attributes():
        return has(first, second)
    if first in FAMILIES or (PACKAGE / "methods" / first).is_dir():
        return is_module_or_method(first, second)
    if first != "gossamer" or f'"{text}"' in (PACKAGE / "runtime" / "metadata.py").read_text():
        return True
    try:
        pkgutil.resolve_name(text)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.slow
def test_what_a_document_names_is_there(page: Path) -> None:
    assert [text for text in named(page.read_text()) if not is_there(text, page)] == []


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("core/context.py", True),
        ("core/run.py", False),
        ("Context.seed", True),
        ("Context.cached", False),
        ("gossamer.search.axes", True),
        ("gossamer.search.swaps", False),
        ("gossamer.compress", True),
        ("speed.compare", True),
        ("speed.hand", False),
        ("torch.nn.Module", True),
    ],
)
def test_a_name_that_is_gone_is_found(text: str, there: bool) -> None:
    assert list(named(f"`{text}(model)` and\n```sh\n`fence`\n```\n")) == [text]
    assert is_there(text, ROOT / "docs" / "architecture.md") == there


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_text_is_read_and_written_as_utf_8_whatever_the_locale(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    texts = [
        one for one in calls if isinstance(one.func, ast.Attribute) and one.func.attr in ("read_text", "write_text")
    ]
    # `core.record.write_text` encodes by itself.
    files = [one for one in texts if not ast.unparse(one.func).endswith("record.write_text")]
    assert [ast.unparse(one) for one in files if "utf-8" not in ast.unparse(one)] == []
