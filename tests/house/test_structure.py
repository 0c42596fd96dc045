"""The house rules that a machine can check: import directions, who prints, docstrings."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from places import ROOT, TESTS

PACKAGE = ROOT / "gossamer"
PROGRAMS = PACKAGE / "runtime" / "programs"  # what is copied beside a network: it runs without gossamer
LEVELS = [
    {"errors"},
    {"gsr", "core"},
    {"task", "losses", "report", "constraints"},
    {"graph", "detection"},
    {"edits"},
    {"calibration"},
    {"modules"},
    {"models", "data", "compact"},
    {"train", "runtime"},
    {"measure", "onnx_import"},
    {"ptq"},
    {"methods", "targets"},
    {"search"},
    {"nas"},
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
        if PROGRAMS not in file.parents
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


@pytest.mark.slow
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


def test_the_file_format_needs_nothing_but_the_errors() -> None:
    """`gsr` is a library of its own: whoever only reads files needs no network code."""
    parts = {part_of(t) for name, text in sources().items() if name.startswith("gossamer.gsr") for t in imported(text)}
    assert parts == {"gsr", "errors"}


LONGEST_CHAIN = 15


def at_import(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that run when a file is imported: not those of functions, nor those for type checkers."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            yield from at_import([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from at_import([*node.body, *node.orelse, *(s for handler in node.handlers for s in handler.body)])


def import_graph(texts: dict[str, str]) -> dict[str, set[str]]:
    """The files that each file imports from, by their dotted names."""
    graph: dict[str, set[str]] = {}
    for name, text in texts.items():
        found = set[str]()
        for node in at_import(ast.parse(text).body):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            else:
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {full if full in texts else str(node.module) for full in names}
        graph[name] = (found & texts.keys()) - {name}
    return graph


def longest_chain(graph: dict[str, set[str]]) -> list[str]:
    """The longest chain of imports. Raises CycleError, which names the cycle."""
    chains: dict[str, list[str]] = {}
    for name in TopologicalSorter(graph).static_order():
        chains[name] = [name, *max((chains[other] for other in sorted(graph[name])), key=len, default=[])]
    return max(chains.values(), key=len)


@pytest.mark.slow
def test_chains_of_imports_are_short_and_have_no_cycle() -> None:
    """Too long? Import from the module that defines a name, and move what two modules need into a third."""
    chain = longest_chain(import_graph(sources()))
    assert len(chain) <= LONGEST_CHAIN, "\n".join(chain)


def test_a_cycle_and_a_chain_are_found() -> None:
    files = {"a": "from b import x", "b": "import c", "c": "def f():\n    import a"}
    assert longest_chain(import_graph(files)) == ["a", "b", "c"]
    with pytest.raises(CycleError):
        longest_chain(import_graph(files | {"c": "import a"}))


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


@pytest.mark.slow
def test_only_the_command_line_prints_reads_arguments_or_exits() -> None:
    """runtime/memory.py runs in a fresh process, which answers on its standard output."""
    wrong = {
        name: outside_talk(text)
        for name, text in sources().items()
        if not name.startswith(("gossamer.cli", "gossamer.runtime.memory")) and outside_talk(text)
    }
    assert wrong == {}


@pytest.mark.parametrize(
    "source", ["def f():\n    print(1)", "import sys\nsys.exit(1)", "from rich.table import Table", "import rich"]
)
def test_talking_to_the_outside_is_found(source: str) -> None:
    assert len(outside_talk(source)) == 1


@pytest.mark.slow
def test_every_file_says_what_it_is() -> None:
    silent = [name for name, text in sources().items() if len(ast.get_docstring(ast.parse(text)) or "") < 15]
    assert silent == []


@pytest.mark.slow
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


def meanings(texts: dict[str, str]) -> dict[str, list[str]]:
    """The modules that define each public function or class, by its name.

    Two kinds of modules share names on purpose and are left out: the commands of the command line, named as what they
    call, and the coders, which offer the same functions for different codes.
    """
    found: dict[str, list[str]] = {}
    for name, text in texts.items():
        if not name.startswith(("gossamer.cli", "gossamer.gsr.codec")):
            for node in ast.parse(text).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    found.setdefault(node.name, []).append(name)
    return found


@pytest.mark.slow
def test_no_name_has_two_meanings() -> None:
    """A public name is defined in one module, so that a reader who finds it knows what it is."""
    assert {name: modules for name, modules in meanings(sources()).items() if len(modules) > 1} == {}


def test_a_second_definition_is_found() -> None:
    files = {"gossamer.a": "def split(): ...\ndef _own(): ...", "gossamer.b": "class split: ...\ndef _own(): ..."}
    assert meanings(files) == {"split": ["gossamer.a", "gossamer.b"]}


MAX_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS, WIDE_FUNCTIONS = 400, 60, 8, 6


def repository_sources() -> dict[str, str]:
    """The text of every file of the package and the benchmarks, by its path."""
    files = [file for folder in ("gossamer", "benchmarks") for file in sorted((ROOT / folder).rglob("*.py"))]
    return {str(file.relative_to(ROOT)): file.read_text() for file in files}


def functions(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Parameters of a function, but for `self` and `cls`."""
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")]) + bool(given.vararg) + bool(given.kwarg)


def is_command(function: ast.FunctionDef | ast.AsyncFunctionDef, source: str) -> bool:
    """Whether the command line offers it: `app.command(...)(function)`. Its parameters are the options."""
    return re.search(rf"\bcommand\(.*\)\({function.name}\)$", source, re.MULTILINE) is not None


def test_files_are_short_enough_to_read() -> None:
    """Too long? Move one idea into a file of its own."""
    assert {n: len(t.splitlines()) for n, t in repository_sources().items() if len(t.splitlines()) > MAX_LINES} == {}


@pytest.mark.slow
def test_functions_are_short_enough_to_read() -> None:
    long = {
        f"{name}: {function.name}": code_lines(function)
        for name, text in repository_sources().items()
        for function in functions(text)
        if code_lines(function) > MAX_FUNCTION_LINES and not is_command(function, text)
    }
    assert long == {}


@pytest.mark.slow
def test_hardly_a_function_has_many_parameters() -> None:
    """Only the widest doors to the library may: what goes together is passed as one value elsewhere."""
    wide = {
        f"{name}: {function.name}": parameters(function)
        for name, text in repository_sources().items()
        for function in functions(text)
        if parameters(function) > MAX_PARAMETERS and not is_command(function, text)
    }
    assert len(wide) <= WIDE_FUNCTIONS, wide


def test_lengths_and_parameters_are_counted() -> None:
    [plain] = functions('def f(self, a, *b, c=1, **d):\n    """Two\n\n    lines."""\n    return a\n')
    assert code_lines(plain) == 2 and parameters(plain) == 4
    assert is_command(plain, 'app.command(epilog="x")(f)') and not is_command(plain, "app.command()(g)")
