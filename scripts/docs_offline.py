"""Refuse built pages that load anything from another host: python scripts/docs_offline.py FOLDER.

Links may lead anywhere, since they are followed only by a click. What a browser fetches by itself may not.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path

LOADING = {"src", "srcset", "data", "poster", "background"}
FETCHED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload", "manifest"}


class Fetched(HTMLParser):
    """The addresses on other hosts that a browser fetches when it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        loaded = [given[name] for name in LOADING & given.keys()]
        if tag == "link" and FETCHED_LINKS & set(given.get("rel", "").split()):
            loaded.append(given.get("href", ""))
        self.found += [address for address in loaded if address.startswith(("http:", "https:", "//"))]


def fetched(html: str) -> list[str]:
    """What a page loads from other hosts."""
    parser = Fetched()
    parser.feed(html)
    return parser.found


def main(folder: Path) -> int:
    """The number of pages that load something, each named on standard error."""
    pages = sorted(folder.rglob("*.html"))
    bad = {page: found for page in pages if (found := fetched(page.read_text()))}
    for page, found in bad.items():
        print(f"{page} loads {', '.join(found)}", file=sys.stderr)
    imports = [css for css in folder.rglob("*.css") if "url(http" in css.read_text() or "@import" in css.read_text()]
    for css in imports:
        print(f"{css} loads from another host", file=sys.stderr)
    print(f"{len(pages)} pages in {folder}")
    return len(bad) + len(imports) + (not pages)


if __name__ == "__main__":
    sys.exit(min(main(Path(sys.argv[1])), 1))
