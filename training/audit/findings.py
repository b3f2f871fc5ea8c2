"""The audit: checks on the data before a model is fitted, as findings with place, problem and fix.

With a fatal finding no model can be fitted, or none that should be used. No finding names a customer.
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
from training.audit.ids import audit_ids
from training.audit.snapshot import audit_snapshot
from training.config import TrainingConfig
from training.evidence import Finding, Severity

SEVERITIES: Final[tuple[Severity, ...]] = get_args(Severity)

STYLES: Final[dict[Severity, str]] = {"fatal": "bold red", "warning": "yellow", "note": "dim"}


def audit(config: TrainingConfig, source: OfflineStore) -> list[Finding]:
    """Run all checks on a source.

    Args:
        config: Decides which checks apply: those for events, or those for a snapshot.
        source: The open source.

    Returns:
        The findings, the most severe first.
    """
    if config.snapshot is not None:
        findings = audit_snapshot(config.snapshot, source.connection, config.treatment)
    else:
        findings = audit_events(config, source)
    findings += audit_ids(source)
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def stop_on_fatal(findings: Sequence[Finding]) -> None:
    """Raise an InputError with the first fatal finding, if there is one."""
    fatal = [finding for finding in findings if finding.severity == "fatal"]
    if fatal:
        more = f" (and {len(fatal) - 1} more: 'tidemark audit' shows them)" if len(fatal) > 1 else ""
        raise InputError(": ".join(_texts(fatal[0])) + more)


def is_fatal(findings: Sequence[Finding]) -> bool:
    """Whether any finding is fatal, so that nothing can be fitted."""
    return any(finding.severity == "fatal" for finding in findings)


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Print findings as a table, followed by a line with their numbers."""
    if findings:
        table = Table(box=box.SIMPLE, show_lines=False)
        for heading in ("severity", "where", "problem", "fix"):
            table.add_column(heading, overflow="fold")
        for finding in findings:
            severity = Text(finding.severity, STYLES[finding.severity])
            table.add_row(severity, *map(Text, _texts(finding)))
        console.print(table)
    console.print(totals(findings), highlight=False)


def totals(findings: Sequence[Finding]) -> str:
    """The number of findings of each severity, as text."""
    counts = Counter(finding.severity for finding in findings)
    numbers = ", ".join(f"{counts[name]} {name}{'' if counts[name] == 1 else 's'}" for name in ("warning", "note"))
    return f"{counts['fatal']} fatal, {numbers}"


def _texts(finding: Finding) -> tuple[str, str, str]:
    """Place, problem and fix of a finding."""
    return finding.where, finding.message, finding.fix
