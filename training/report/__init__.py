"""The report of a fit: one HTML file that can be looked at anywhere, made from manifest and evidence."""

from __future__ import annotations

from training.report.render import render_report, write_report

__all__ = ["render_report", "write_report"]
