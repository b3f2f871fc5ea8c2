"""Each page of the site as Markdown, and ``llms.txt``, the list of them, for readers that are programs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sphinx.environment import BuildEnvironment

TOCTREE: Final = re.compile(r"^(```+|:::+)\{toctree\}.*?^\1$\n?", re.MULTILINE | re.DOTALL)
TARGET: Final = re.compile(r"^\([\w-]+\)=\n\n?", re.MULTILINE)
SECTIONS: Final = ("tutorials", "how-to", "explanation", "reference", "decisions", "upgrade")


def write_markdown(env: BuildEnvironment, sources: Path, site: Path) -> None:
    """Write ``PAGE.md`` beside each ``PAGE.html``, and ``llms.txt``.

    Args:
        env: Knows the pages, their titles and their order.
        sources: Source folder of the documentation.
        site: Folder of the built site.
    """
    for page in env.found_docs:
        source = sources / env.doc2path(page, base=False)
        if source.suffix == ".md":
            target = site / f"{page}.md"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(_plain(env, page, source.read_text()))
    (site / "llms.txt").write_text("\n".join(_list_of_pages(env, site)) + "\n")


def _plain(env: BuildEnvironment, page: str, text: str) -> str:
    """The source of a page with a list of links in place of its table of contents, and without labels."""
    included = env.toctree_includes.get(page, [])
    depth = page.count("/")
    links = "".join(f"- [{_title(env, name)}]({'../' * depth}{name}.md)\n" for name in included)
    text = TOCTREE.sub(lambda _match: links, text, count=1)
    return TARGET.sub("", TOCTREE.sub("", text))


def _list_of_pages(env: BuildEnvironment, site: Path) -> Iterator[str]:
    yield "# tidemark"
    yield ""
    yield "> Scores the customers of a shop over gRPC: churn, purchase propensity, and whether it pays to act now."
    pages = sorted(page for page in env.found_docs if (site / f"{page}.md").exists())
    for section in ("", *SECTIONS):
        members = [page for page in pages if (page.split("/")[0] if "/" in page else "") == section]
        yield ""
        yield f"## {_title(env, f'{section}/index')}" if section else "## Start"
        yield ""
        for page in members:
            yield f"- [{_title(env, page)}]({page}.md)"


def _title(env: BuildEnvironment, page: str) -> str:
    return str(env.titles[page].astext())
