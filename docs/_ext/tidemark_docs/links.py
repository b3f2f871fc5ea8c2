"""Checks the links of the built site."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """The ids and the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002  # the signature of HTMLParser
        """Note what a tag defines and what it refers to."""
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            if name in {"href", "src"} and value:
                self.links.add(value)


def broken_links(site: Path) -> Iterator[str]:
    """Check all links between pages, and to files of the site.

    Args:
        site: Folder of the built site.

    Yields:
        A line for each link whose file, or whose place in the file, does not exist.
    """
    for page in sorted(site.rglob("*.html")):
        for link in sorted(_parsed(page).links):
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            file = (page.parent / unquote(address.path)).resolve() if address.path else page
            where = f"{page.relative_to(site)}: {link}"
            if not file.is_file():
                yield f"{where} (there is no such file)"
            elif address.fragment and file.suffix == ".html" and unquote(address.fragment) not in _parsed(file).ids:
                yield f"{where} (the page has no such place)"
    _parsed.cache_clear()


@cache
def _parsed(page: Path) -> _Page:
    parser = _Page()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser
