"""Rendering ``report.html`` from a bundle: one file without scripts and without requests to other files."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Final

from jinja2 import Environment, StrictUndefined

from feature_store.bundles import bundle
from feature_store.bundles.bundle import OFFERS, BundleError, Manifest
from feature_store.errors import InputError
from feature_store.files import write_output
from training.evidence import Evidence, HoldoutRows, read_evidence
from training.parallel import IN_PROCESS, WorkerPool
from training.report.drawing import plain
from training.report.sections import card, sections
from training.report.words import INTENDED, LIMITS, NOT_TESTED, headline

REPORT_FILE: Final = "report.html"


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the report of the bundle in ``folder`` there, or to ``output``; returns where it is.

    InputError where bundle or evidence cannot be read, or the report not be written.
    """
    try:
        manifest = bundle.read(folder.parent, folder.name).manifest
    except BundleError as error:
        raise InputError(str(error)) from error
    target = output or folder / REPORT_FILE
    write_output(target, render_report(manifest, *read_evidence(folder)))
    return target


def render_report(
    manifest: Manifest, evidence: Evidence, rows: Mapping[str, HoldoutRows], pool: WorkerPool = IN_PROCESS
) -> str:
    """The report as HTML; the same evidence gives the same bytes, whatever the number of workers."""
    own = {offer: rows[offer] for offer in OFFERS if offer in rows and len(rows[offer].label)}
    shown, missing = sections(evidence, own, pool)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    here = files("training.report")
    return environment.from_string((here / "template.html.j2").read_text(encoding="utf-8")).render(
        style=(here / "style.css").read_text(encoding="utf-8"),
        manifest=manifest,
        config=plain(manifest.config),
        headlines=[headline(offer, manifest, evidence, test) for offer, test in own.items()],
        sections=shown,
        missing=missing,
        notes=[plain(note) for note in evidence.notes],
        card=[table for table in card(manifest) if table.rows],
        intended=INTENDED,
        limits=LIMITS,
        not_tested=NOT_TESTED,
    )
