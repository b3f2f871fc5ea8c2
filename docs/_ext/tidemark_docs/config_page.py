"""The page of the keys of a config file, from ``training.config`` and ``feature_store.config``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from pydantic import BaseModel

from tidemark_docs.docstrings import introduction
from tidemark_docs.markdown import paragraphs, target
from tidemark_docs.models import field_table, sections
from training.config import TrainingConfig

HEADING: Final = re.compile(r"^``\[.*?\]``( and ``\[.*?\]``)?: ")
"""How the docstring of a section names it."""
INTRODUCTION: Final = """\
# Config file

A config is a TOML file. It says where a shop's data is, which features are kept for each customer, and what is
predicted. `tidemark init` proposes one, and `tidemark audit` checks the data that it names. A key that does not exist
is an error.
"""


def pages() -> dict[str, str]:
    """The page ``reference/config.md``."""
    top = [INTRODUCTION, "## Sections\n", field_table(TrainingConfig, "section")]
    return {"reference/config.md": "\n".join([*top, *_sections(TrainingConfig, "")])}


def _sections(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """The parts of a model, and of the models in it, as TOML writes them."""
    for name, section, is_list in sections(model):
        path = f"{prefix}{name}"
        written = f"[[{path}]]" if is_list else f"[{path}]"
        heading = target(f"config-{path.replace('.', '-').replace('_', '-')}", f"## `{written}`")
        text = HEADING.sub("", introduction(section))
        yield f"{heading}\n{paragraphs(text[:1].upper() + text[1:])}\n{field_table(section, 'key')}"
        yield from _sections(section, f"{path}.")
