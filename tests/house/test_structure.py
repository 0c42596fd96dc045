"""The house rules that a machine can check: import directions, who prints, docstrings."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT, TESTS

PACKAGE = ROOT / "gossamer"
LEVELS = [
    {"errors"},
    {"gsr", "core"},
    {"losses", "report", "constraints"},
    {"graph"},
    {"edits"},
    {"calibration"},
    {"modules"},
    {"models", "data", "compact"},
    {"train", "runtime"},
    {"measure"},
    {"ptq"},
    {"methods"},
    {"search"},
    {"jobs"},
    {"cli"},
    {"__main__"},
]
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}


def sources() -> dict[str, str]:
    """The text of every file of the package by its dotted name."""
    return {
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): file.read_text()
        for file in sorted(PACKAGE.rglob("*.py"))
    }


def imported(source: str) -> Iterator[str]:
    """The dotted names of everything of gossamer that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("gossamer."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gossamer":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(dotted: str) -> str:
    return dotted.split(".")[1]


def wrong_imports(name: str, source: str) -> list[str]:
    """Imports of a module that point up, or sideways to another part of the same level."""
    own = part_of(name)
    return [
        f"{name} imports {target}"
        for target in imported(source)
        if part_of(target) != own and LEVEL[part_of(target)] >= LEVEL[own]
    ]


def test_imports_point_down() -> None:
    assert [w for name, text in sources().items() if name != "gossamer" for w in wrong_imports(name, text)] == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("gossamer.graph.slicing", "from gossamer.search import plan"),
        ("gossamer.train.loop", "def f():\n    import gossamer.methods.prune.channels"),
        ("gossamer.models.zoo", "from gossamer.data import load_task"),
        ("gossamer.core.record", "from gossamer import jobs"),
    ],
)
def test_an_import_that_points_up_or_sideways_is_found(name: str, source: str) -> None:
    assert len(wrong_imports(name, source)) == 1


def test_methods_never_import_one_another() -> None:
    """What several methods share stands in files whose names begin with an underscore."""
    wrong = [
        f"{name} imports {target}"
        for name, text in sources().items()
        if name.startswith("gossamer.methods.") and not name.rpartition(".")[2].startswith("_")
        for target in imported(text)
        if target.startswith("gossamer.methods.") and not any(part.startswith("_") for part in target.split(".")[2:])
    ]
    assert wrong == []


def test_the_report_reads_only_the_record() -> None:
    parts = {part_of(t) for name, text in sources().items() if ".report" in name for t in imported(text)}
    assert parts <= {"report", "core", "errors"}


def outside_talk(source: str) -> list[str]:
    """Where a file prints, reads arguments or exits."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "input", "exit", "quit"):
            found.append(ast.unparse(node))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.argv", "sys.exit", "os._exit"):
            found.append(ast.unparse(node))
        if isinstance(node, ast.ImportFrom | ast.Import) and ast.unparse(node).split()[1].split(".")[0] == "rich":
            found.append(ast.unparse(node))
    return found


def test_only_the_command_line_prints_reads_arguments_or_exits() -> None:
    """measure/memory.py runs a part of itself in a fresh process, which answers on its standard output."""
    wrong = {
        name: outside_talk(text)
        for name, text in sources().items()
        if not name.startswith(("gossamer.cli", "gossamer.measure.memory")) and outside_talk(text)
    }
    assert wrong == {}


@pytest.mark.parametrize(
    "source", ["def f():\n    print(1)", "import sys\nsys.exit(1)", "from rich.table import Table", "import rich"]
)
def test_talking_to_the_outside_is_found(source: str) -> None:
    assert len(outside_talk(source)) == 1


def test_every_file_says_what_it_is() -> None:
    silent = [name for name, text in sources().items() if len(ast.get_docstring(ast.parse(text)) or "") < 15]
    assert silent == []


def test_nothing_is_unpickled() -> None:
    """`torch.load` only with weights_only=True, `pickle.load` nowhere."""
    calls = [
        f"{name}: {ast.unparse(node)}"
        for name, text in sources().items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads")
    ]
    assert [call for call in calls if "weights_only=True" not in call] == []


def test_folders_of_tests_mirror_the_package() -> None:
    """But for `house`: rules for the repository as a whole."""
    folders = {file.parent.relative_to(TESTS) for file in TESTS.rglob("test_*.py")} - {Path("house")}
    assert not [str(folder) for folder in folders if not (PACKAGE / folder).is_dir() or folder == Path()]


def test_names_of_test_files_are_unique() -> None:
    """pytest imports each by its bare name, and tests import from one another."""
    names = [file.name for file in TESTS.rglob("*.py")]
    assert len(names) == len(set(names))
