"""All generated pages, and how they get into the source folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tidemark_docs import (
    api_pages,
    audit_page,
    benchmarks_page,
    commands_page,
    config_page,
    error_pages,
    metrics_page,
    settings_page,
    storage_pages,
)

Pages = Mapping[str, str]
"""Markdown by path, relative to the source folder."""

GENERATORS: Final[tuple[Callable[[], Pages], ...]] = (
    settings_page.pages,
    config_page.pages,
    commands_page.pages,
    api_pages.pages,
    metrics_page.pages,
    error_pages.pages,
    storage_pages.pages,
    audit_page.pages,
    benchmarks_page.pages,
)


def all_pages() -> dict[str, str]:
    """All generated pages."""
    return {path: text for generate in GENERATORS for path, text in generate().items()}


def write_pages(folder: Path) -> None:
    """Write all generated pages, and remove those of earlier builds that are no longer generated.

    Pages that have not changed are left alone, and each page is replaced atomically, so that two builds may run at the
    same time.

    Args:
        folder: The source folder of the documentation.
    """
    pages = all_pages()
    for path, text in pages.items():
        page = folder / path
        if page.exists() and page.read_text() == text:
            continue
        page.parent.mkdir(parents=True, exist_ok=True)
        unfinished = page.with_name(f".{page.name}.{os.getpid()}")
        unfinished.write_text(text)
        unfinished.replace(page)
    by_hand = {"reference/index.md"}
    for page in (folder / "reference").rglob("*.md"):
        if page.relative_to(folder).as_posix() not in pages.keys() | by_hand:
            page.unlink()
