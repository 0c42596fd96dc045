"""What scripts/docs relies on: links that hold on the built pages, pages that load nothing from another host."""

import sys
from pathlib import Path

import pytest
from places import ROOT

sys.path.append(str(ROOT / "scripts"))

import docs_offline
import docs_pages


@pytest.mark.parametrize(
    ("page", "link", "wanted"),
    [
        ("index.md", "[a](docs/guides/recipes.md)", "[a](guides/recipes.md)"),
        ("index.md", "![p](docs/report.png)", "![p](report.png)"),
        ("guides/recipes.md", "[a](../format.md#b)", "[a](../format.md#b)"),
        ("results.md", "[a](../benchmarks/README.md)", "[a](benchmarks.md)"),
        ("benchmarks.md", "[a](../docs/results.md)", "[a](results.md)"),
        ("index.md", "[a](examples)", "a (`examples`)"),
        ("index.md", "[a](https://example.org/x.md)", "[a](https://example.org/x.md)"),
    ],
)
def test_links_of_the_repository_become_links_of_pages(page: str, link: str, wanted: str) -> None:
    assert docs_pages.rewritten(f"see {link}.", page) == f"see {wanted}."


@pytest.mark.parametrize(
    "html",
    [
        '<img src="https://a.org/x.png">',
        '<script src="//a.org/x.js"></script>',
        '<link rel="stylesheet" href="http://a.org/x.css">',
        '<link rel="preconnect" href="https://fonts.gstatic.com">',
    ],
)
def test_a_page_that_loads_from_another_host_is_refused(html: str, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(html)
    assert docs_offline.main(tmp_path) == 1


def test_a_page_may_link_anywhere(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="https://a.org">a</a><img src="x.png"><link rel="canonical" href="//b">')
    assert docs_offline.main(tmp_path) == 0


def test_nothing_built_is_an_error(tmp_path: Path) -> None:
    assert docs_offline.main(tmp_path) == 1


def test_every_public_package_has_a_page_of_the_reference() -> None:
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    schemes = [f"methods.{one.name}" for one in (ROOT / "gossamer/methods").iterdir() if (one / "__init__.py").exists()]
    packages = [
        "losses",
        "detection",
        "graph",
        "constraints",
        "runtime",
        "ptq",
        "train",
        "measure",
        "models",
        "data",
        *schemes,
    ]
    assert [name for name in packages if f"::: gossamer.{name}\n" not in pages] == []


def test_every_page_is_in_the_navigation() -> None:
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    listed = (ROOT / "mkdocs.yml").read_text()
    assert [page for page in pages | set(docs_pages.SOURCE) if f": {page}\n" not in listed] == []
