"""The public surface: what `import gossamer` offers."""

import ast
import inspect
import subprocess
import sys

import pytest
from places import ROOT

import gossamer

INTERNAL = {"lazily", "open_streams", "usable_stdout"}  # of the package and its command line, not for users

PUBLIC = [
    "Advice",
    "Artifact",
    "BadInput",
    "Context",
    "Distillation",
    "Goal",
    "GossamerError",
    "Method",
    "Metric",
    "Recipe",
    "Record",
    "Task",
    "Training",
    "advise",
    "analyze",
    "build",
    "compress",
    "distill",
    "export_onnx",
    "export_pt2",
    "fit",
    "inspect_file",
    "latency",
    "load",
    "load_task",
    "load_weights",
    "open_runner",
    "pretrained",
    "prune_channels",
    "quantize_int8",
    "read_tensor",
    "save",
    "verify",
    "write_report",
]


def test_the_public_names_are_these_and_no_others() -> None:
    assert gossamer.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(gossamer, name))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        _ = gossamer.compres


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_gossamer_imports_neither_torch_nor_its_own_parts() -> None:
    code = "import gossamer, sys; print([m for m in sys.modules if m.startswith(('torch', 'gossamer.'))])"
    assert python(code).strip() == "[]"


def test_methods_and_packages_are_reachable_from_the_one_import() -> None:
    assert gossamer.methods.prune.Magnitude(sparsity=0.5).name() == "prune.magnitude"
    assert gossamer.losses.kd_loss.__module__ == "gossamer.losses.logits"
    assert gossamer.__version__.count(".") == 2


@pytest.mark.parametrize("scheme", ["binarize", "distill", "lowrank", "prune", "quantize", "restructure", "share"])
def test_a_scheme_offers_every_method_that_recipes_know(scheme: str) -> None:
    package = getattr(gossamer.methods, scheme)
    known = {name for name in gossamer.methods.catalogue() if name.startswith(f"{scheme}.")}
    assert {getattr(package, name).name() for name in dir(package)} == known and known


def test_a_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(AttributeError, match="nearest: 'compress'"):
        _ = gossamer.compres
    with pytest.raises(AttributeError, match=r"it has .*Magnitude"):
        _ = gossamer.methods.prune.Magntude


def offered() -> list[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """What the package and its folders offer of their files, as it is written there."""
    found: dict[str, ast.FunctionDef | ast.ClassDef] = {}
    for file in (ROOT / "gossamer/__init__.py", *sorted((ROOT / "gossamer").glob("*/__init__.py"))):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("gossamer."):
                continue
            home = ROOT / f"{(node.module or '').replace('.', '/')}.py"
            names = {one.name for one in node.names} - INTERNAL
            for part in ast.parse(home.read_text()).body if home.exists() else []:
                if isinstance(part, ast.FunctionDef | ast.ClassDef) and part.name in names:
                    found[f"{home.relative_to(ROOT)}::{part.name}"] = part
    return sorted(found.items())


@pytest.mark.parametrize(("where", "node"), [pytest.param(*pair, id=pair[0]) for pair in offered()])
def test_what_is_offered_is_documented_with_an_example_that_runs(
    where: str, node: ast.FunctionDef | ast.ClassDef
) -> None:
    text = ast.get_docstring(node) or ""
    assert ">>> " in text, "no example"
    takes = node.args if isinstance(node, ast.FunctionDef) else None
    if takes is not None and (takes.args or takes.kwonlyargs):
        assert "Args:" in text
    if isinstance(node, ast.ClassDef) and any(isinstance(part, ast.AnnAssign) for part in node.body):
        assert "Args:" in text or "Attributes:" in text
