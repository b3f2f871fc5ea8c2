"""The page of the audit's checks, from ``training.audit.checks``."""

from __future__ import annotations

from typing import Final

from tidemark_docs.markdown import prose, target
from training.audit.checks import CHECKS

INTRODUCTION: Final = """\
# Checks of the audit

`tidemark audit CONFIG` checks a shop's data before a model is fitted. Each finding has a severity, the name of its
check, a place, the problem and a fix. `tidemark fit` stops if a finding is *fatal*. A *warning* is worth a look, and a
*note* is for information. No finding names a customer.
"""


def pages() -> dict[str, str]:
    """The page ``reference/audit.md``."""
    sections = []
    for name, check in CHECKS.items():
        heading = target(f"check-{name.replace(' ', '-')}", f"## {name}")
        lines = f"- Why it matters: {prose(check.reason)}\n- What to do: {prose(check.fix)}\n"
        sections.append(f"{heading}\n{prose(check.problem)}\n\n{lines}")
    return {"reference/audit.md": "\n".join([INTRODUCTION, *sections])}
