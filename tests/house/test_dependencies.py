"""What gossamer depends on: licences that it may be shipped with, versions with hashes."""

import re
import sys
from email.message import Message
from types import SimpleNamespace

import pytest
from places import ROOT

sys.path.append(str(ROOT / "scripts"))

import licences

LOCKS = ("requirements.lock", "requirements-test.lock", "requirements-zoo.lock", "requirements-docs.lock")


def test_every_dependency_has_a_licence_that_is_allowed() -> None:
    found = {one.metadata["Name"]: licences.licence(one) for one in licences.needed()}
    assert {"torch", "numpy", "onnxruntime", "aiohttp"} <= set(found)
    assert {name: said for name, said in found.items() if not said or not set(said) <= set(licences.ALLOWED)} == {}


def test_the_table_of_the_page_is_that_of_what_is_installed() -> None:
    page = (ROOT / "docs/dependencies.md").read_text()
    missing = [line for line in licences.table().splitlines() if line not in page]
    assert missing == [], "write it anew: python scripts/licences.py"


def test_a_licence_that_no_rule_knows_stands_as_it_is() -> None:
    strange = SimpleNamespace(metadata=Message())
    strange.metadata["License-Expression"] = "MIT AND GPL-3.0-only"
    assert licences.licence(strange) == ["GPL-3.0-only", "MIT"]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_of_a_lock_is_one_version_with_hashes(name: str) -> None:
    for entry in re.split(r"\n(?=\S)", (ROOT / name).read_text().strip()):
        head, *hashes = entry.splitlines()
        assert re.match(r"[a-z0-9-]+==\S+ (; .*)?\\$", head), head
        assert hashes and all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in hashes), head


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_the_versions_of_the_constraints(name: str) -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    pinned = {re.sub(r"[-_.]+", "-", key).lower(): version for key, version in pinned.items()}
    locked = re.findall(r"^([a-z0-9-]+)==([^\s+]+)", (ROOT / name).read_text(), re.MULTILINE)
    assert locked and {key: version for key, version in locked if pinned.get(key, version) != version} == {}


def test_the_locks_have_all_that_the_package_asks_for() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    brought = ("deploy", "openvino", "train", "codec", "data")
    assert project["optional-dependencies"]["all"] == [f"gossamer[{','.join(brought)}]"]
    for name, extras in (("requirements.lock", brought), ("requirements-test.lock", (*brought, "test"))):
        asked = [
            *project["dependencies"],
            *(one for extra in extras for one in project["optional-dependencies"][extra]),
        ]
        assert names_of(asked) | {"hatchling", "editables"} <= locked_in(name)
    assert names_of(project["optional-dependencies"]["docs"]) <= locked_in("requirements-docs.lock")


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=]", one)[0].lower() for one in requirements}


def locked_in(name: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+)==", (ROOT / name).read_text(), re.MULTILINE))


def test_every_optional_library_names_an_extra_that_brings_it() -> None:
    import tomllib

    from gossamer.errors import EXTRAS

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    called = {"PIL": "pillow", "sklearn": "scikit-learn"}
    for library, extra in EXTRAS.items():
        brought = [re.split(r"[\[<>=]", one)[0] for one in extras[extra]]
        assert called.get(library, library.replace("_", "-")) in brought, (library, extra)


def test_a_missing_library_is_told_with_its_extra_and_any_other_error_is_not() -> None:
    from gossamer.errors import missing

    absent = missing(ModuleNotFoundError("No module named 'onnx.helper'", name="onnx.helper"))
    assert absent is not None and "pip install 'gossamer[deploy]'" in str(absent)
    assert missing(ModuleNotFoundError("No module named 'x'", name="x")) is None
    assert missing(ImportError("onnx is broken", name="onnx")) is None
