"""The Sphinx extension of tidemark's documentation.

Before the build it writes the reference, from the code, into ``docs/reference`` and ``docs/benchmarks.md``. After the
build it checks the links of the site, and adds each page as Markdown and the list of them, ``llms.txt``.
"""

from __future__ import annotations

from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

from tidemark_docs.links import broken_links
from tidemark_docs.markdown_site import write_markdown
from tidemark_docs.pages import write_pages

logger = getLogger(__name__)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("config-inited", lambda _app, _config: write_pages(Path(app.srcdir)))
    app.connect("build-finished", _finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _finish(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    write_markdown(app.env, Path(app.srcdir), Path(app.outdir))
    for problem in broken_links(Path(app.outdir)):
        logger.warning("broken link: %s", problem)
