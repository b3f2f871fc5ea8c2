"""Figures of the documentation, counted in its sources; how long its build takes is read from the latest one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from tests.benchmarks.setting import Bench, Measured
from tests.docs_pages import LANGUAGES, ROOT, blocks, commands_to_first_score, pages

BUILT: Final = Path("build/docs.json")


def documents(_bench: Bench) -> dict[str, Measured]:
    """Length of the README, executed code blocks of tutorials and guides, commands to a first score of one's own shop,
    and seconds of ``make docs`` from clean.
    """
    languages = [block.language for page in pages() for block in blocks(page)]
    executed = sum(language in LANGUAGES for language in languages)
    figures: dict[str, Measured] = {
        "readme_lines": (len((ROOT / "README.md").read_text().splitlines()), "lines of README.md"),
        "docs_examples": (executed / len(languages), f"{executed} of {len(languages)} code blocks run in a test"),
        "first_score_commands": (commands_to_first_score(), "commands of the tutorial up to the first scores"),
    }
    if BUILT.exists():
        seconds = json.loads(BUILT.read_text())["docs_build_seconds"]
        figures["docs_build_seconds"] = seconds, "the latest run of make docs"
    return figures
