"""Each page of the site as Markdown, and ``llms.txt``, the list of them, for readers that are programs."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sphinx.environment import BuildEnvironment

from tidemark_docs.markdown import block

TOCTREE: Final = re.compile(r"^(```+|:::+)\{toctree\}.*?^\1$\n?", re.MULTILINE | re.DOTALL)
TARGET: Final = re.compile(r"^\([\w-]+\)=\n\n?", re.MULTILINE)
FRONT_MATTER: Final = re.compile(r"\A---\n.*?\n---\n+", re.DOTALL)
SUMMARY: Final = "Scores the customers of a shop over gRPC: churn, purchase propensity, and whether it pays to act now."


def write_markdown(env: BuildEnvironment, sources: Path, site: Path) -> None:
    """Write ``PAGE.md`` beside each ``PAGE.html``, and ``llms.txt``.

    Args:
        env: Knows the pages, their titles and their order.
        sources: Source folder of the documentation.
        site: Folder of the built site.
    """
    for page in env.found_docs:
        source = sources / env.doc2path(page, base=False)
        text = _notebook(source) if source.suffix == ".ipynb" else source.read_text()
        target = site / f"{page}.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_plain(env, page, text))
    (site / "llms.txt").write_text("\n".join(_list_of_pages(env)) + "\n")


def _notebook(path: Path) -> str:
    """The cells of a notebook as Markdown, without outputs."""
    cells = json.loads(path.read_text())["cells"]
    texts = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    return "\n\n".join(block(text, "python") if kind == "code" else text for kind, text in texts) + "\n"


def _plain(env: BuildEnvironment, page: str, text: str) -> str:
    """The source of a page with a list of links in place of its table of contents, and without labels."""
    start = posixpath.dirname(page) or "."
    children = env.toctree_includes.get(page, [])
    links = "".join(f"- [{_title(env, name)}]({posixpath.relpath(name, start)}.md)\n" for name in children)
    text = TOCTREE.sub(lambda _match: links, text, count=1)
    return FRONT_MATTER.sub("", TARGET.sub("", TOCTREE.sub("", text)))


def _list_of_pages(env: BuildEnvironment) -> Iterator[str]:
    """The lines of ``llms.txt``: a section for each entry of the table of contents."""
    root = str(env.config.root_doc)
    yield from ("# tidemark", "", f"> {SUMMARY}", "", _entry(env, root))
    for section in env.toctree_includes.get(root, []):
        yield from ("", f"## {_title(env, section)}", "")
        yield from (_entry(env, page) for page in _pages_below(env, section))


def _pages_below(env: BuildEnvironment, page: str) -> Iterator[str]:
    """A page, all pages below it in the table of contents, and those beside an index that are in none."""
    yield page
    for child in env.toctree_includes.get(page, []):
        yield from _pages_below(env, child)
    folder, _, name = page.rpartition("/")
    if name == "index":
        listed = {child for children in env.toctree_includes.values() for child in children}
        yield from sorted(other for other in env.found_docs - listed if other.rpartition("/")[0] == folder != "")


def _entry(env: BuildEnvironment, page: str) -> str:
    return f"- [{_title(env, page)}]({page}.md)"


def _title(env: BuildEnvironment, page: str) -> str:
    return str(env.titles[page].astext())
