"""Figures of the documentation: its length and build time, what of it tests execute, and what is written by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from service.cli import COMMANDS
from service.error_catalog import ERRORS
from service.settings import PREFIX, Settings
from tests.benchmarks.setting import Bench, Measured
from tests.docs_pages import LANGUAGES, blocks, commands_to_first_score, pages
from training.audit.checks import CHECKS
from training.config import TrainingConfig

ROOT: Final = Path(__file__).parents[2]
BY_HAND: Final = "reference/index.md"
"""The only page of the reference that is not generated: the list of the others."""


def documentation(_bench: Bench) -> dict[str, Measured]:
    """Lines of the README, executed code blocks of tutorials and guides, commands to a first score,
    entries of the reference that are not generated, and the time of the latest `make docs`.
    """
    lines = len((ROOT / "README.md").read_text().splitlines())
    languages = [block.language for page in pages() for block in blocks(page)]
    executed = sum(language in LANGUAGES for language in languages)
    missing = not_generated()
    figures: dict[str, Measured] = {
        "readme_lines": (lines, "lines of README.md"),
        "docs_examples": (executed / len(languages), f"{executed} of {len(languages)} code blocks run in a test"),
        "first_score_commands": (commands_to_first_score(), "commands of the tutorial up to the first scores"),
        "docs_reference_by_hand": (
            len(missing),
            ", ".join(missing) or "settings, keys, commands, RPCs, metrics, checks and reasons not on a generated page",
        ),
    }
    path = ROOT / "build" / "docs.json"
    if path.exists():
        run: Mapping[str, float] = json.loads(path.read_text())
        figures["docs_build_seconds"] = run["docs_build_seconds"], f"make docs, exit code {run['exit_code']:g}"
    return figures


def not_generated() -> list[str]:
    """Names of the code that no generated page of the reference has, and pages of the reference that are by hand."""
    sys.path.append(str(ROOT / "docs" / "_ext"))
    from tidemark_docs.api_pages import descriptors  # noqa: PLC0415  # the extension is no installed package
    from tidemark_docs.metrics_page import families  # noqa: PLC0415
    from tidemark_docs.pages import all_pages  # noqa: PLC0415

    generated = all_pages()
    names = {*COMMANDS, *ERRORS, *CHECKS, *(family.name for family in families()), *TrainingConfig.model_fields}
    names |= {PREFIX + name.upper() for name in Settings.model_fields}
    names |= {method.name for file in descriptors() for service in file.service for method in service.method}
    text = "".join(generated.values())
    missing = {name for name in names if name not in text}
    result = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs" / "reference").rglob("*.md")}
    return sorted(missing | (result - generated.keys() - {BY_HAND}))
