"""The page of the metrics, from ``service.app.metric_catalog``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from unittest.mock import MagicMock

from service.app.metric_catalog import LABELS, expose
from service.telemetry.metrics import Family, Metrics
from service.telemetry.prometheus import WORKERS
from service.transport.lean.server import LeanServer
from tidemark_docs.markdown import code, prose, table, target

INTRODUCTION: Final = """\
# Metrics

A server with the setting [`metrics_port`](#setting-metrics-port) answers Prometheus on
`http://127.0.0.1:PORT/metrics`, for all of its workers. Values of workers are not added up; use
`sum without (worker) (rate(…))`.

Calls to the services for health and reflection are not counted. `service/dashboard.json` is a dashboard for Grafana.
"""


def pages() -> dict[str, str]:
    """The page ``reference/metrics.md``."""
    sections = []
    for family in families():
        labels = ", ".join(map(code, family.labels)) or "none"
        heading = target(f"metric-{family.name.replace('_', '-')}", f"### {code(family.name)}")
        sections.append(f"{heading}\n{prose(family.help_text)}\n\n- Type: {family.kind}\n- Labels: {labels}\n")
    meanings = table(["label", "value"], [[code(name), meaning] for name, meaning in LABELS.items()])
    return {"reference/metrics.md": "\n".join([INTRODUCTION, "## Labels\n", meanings, "## All metrics\n", *sections])}


def families() -> Sequence[Family]:
    """All metric families of a server with the lean transport."""
    metrics = Metrics([])
    components: Any = (
        MagicMock()
    )  # names and help texts do not depend on the components; only values are read from them
    expose(metrics, components)
    LeanServer.expose(components.transport, metrics)
    return (Family("gauge", *WORKERS, (), lambda: 0.0), *metrics.families)
