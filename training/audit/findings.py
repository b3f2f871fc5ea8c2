"""A look at the data before anything is learnt from it: what is wrong, where, and how to mend it.

A fatal finding is one that no model can be learnt with, or none that anybody should use. No finding names a customer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, get_args

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from feature_store.errors import InputError
from feature_store.offline.store import OfflineStore
from training.audit.events import audit_events
from training.audit.snapshot import audit_snapshot
from training.config import TrainingConfig
from training.evidence import Finding, Severity

SEVERITIES: Final[tuple[Severity, ...]] = get_args(Severity)

STYLES: Final[dict[Severity, str]] = {"fatal": "bold red", "warning": "yellow", "note": "dim"}


def audit(config: TrainingConfig, source: OfflineStore) -> list[Finding]:
    """Everything found in a source, the worst first."""
    if config.snapshot is not None:
        found = audit_snapshot(config.snapshot, source.connection, config.treatment)
    else:
        found = audit_events(config, source)
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def stop_on_fatal(findings: Sequence[Finding]) -> None:
    """InputError with the first fatal finding, in the words of the audit."""
    fatal = [finding for finding in findings if finding.severity == "fatal"]
    if fatal:
        more = f" (and {len(fatal) - 1} more: python -m training audit shows them)" if len(fatal) > 1 else ""
        raise InputError(": ".join(told(fatal[0])) + more)


def told(finding: Finding) -> tuple[str, str, str]:
    """The words of a finding: where, what, and the mend."""
    return finding.where, finding.message, finding.mend


def is_fatal(findings: Sequence[Finding]) -> bool:
    """Whether nothing can be fitted."""
    return any(finding.severity == "fatal" for finding in findings)


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Print findings as a table with a line of totals."""
    if findings:
        table = Table(box=box.SIMPLE, show_lines=False)
        for heading in ("severity", "where", "what", "mend"):
            table.add_column(heading, overflow="fold")
        for finding in findings:
            severity = Text(finding.severity, STYLES[finding.severity])
            table.add_row(severity, *map(Text, told(finding)))
        console.print(table)
    console.print(totals(findings), highlight=False)


def totals(findings: Sequence[Finding]) -> str:
    """How many findings there are of each severity, in a line."""
    counts = Counter(finding.severity for finding in findings)
    numbers = ", ".join(f"{counts[name]} {name}{'' if counts[name] == 1 else 's'}" for name in ("warning", "note"))
    return f"{counts['fatal']} fatal, {numbers}"
