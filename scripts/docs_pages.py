"""MkDocs hook: pages from outside docs/, and links that hold on GitHub and on the built pages alike."""

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
SOURCE = {page: source for source, page in OUTSIDE.items()}
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie outside docs/."""
    from mkdocs.structure.files import File  # which the tests do without

    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links between files of the repository into links between pages."""
    return rewritten(markdown, page.file.src_uri)


def rewritten(markdown: str, page: str) -> str:
    """The text of a page with its links led to pages; a file that is no page is named without a link."""
    folder = posixpath.dirname(SOURCE.get(page, f"docs/{page}"))

    def led(match: re.Match[str]) -> str:
        text, address, anchor = match.groups(default="")
        target = posixpath.normpath(posixpath.join(folder, address))
        if target not in OUTSIDE and not target.startswith("docs/"):
            return text if text.startswith("`") else f"{text} (`{target}`)"
        place = OUTSIDE.get(target) or target.removeprefix("docs/")
        return f"[{text}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{anchor})"

    return LINK.sub(led, markdown)
