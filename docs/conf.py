"""Configuration of the documentation, which ``make docs`` builds."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
# At the end: tidemark's packages come from the installed wheel, and only the benchmarks come from the checkout.
sys.path.append(str(HERE.parent))

project = "tidemark"
author = "the tidemark developers"
release = version = importlib.metadata.version("tidemark")

extensions = ["myst_nb", "sphinx_copybutton", "tidemark_docs"]
exclude_patterns = ["_ext", "build.py"]
templates_path: list[str] = []
nitpicky = True

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
# Options such as --redis keep their hyphens.
smartquotes = False
myst_heading_anchors = 4
# A test executes the code blocks and the notebook; the site shows the outputs that are stored.
nb_execution_mode = "off"

html_theme = "furo"
html_title = f"tidemark {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
# Summaries are fetched, which browsers refuse to do for pages that are opened as files.
html_show_search_summary = False
html_show_copyright = False
html_show_sphinx = False
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True
