"""Which pages there are, and what writes each; a test holds every page to its writer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from handbook import alerts, cli, dashboards, metrics

OBSERVABILITY = "deploy/observability"
ROOT = Path(__file__).parents[1]

PAGES: dict[str, Callable[[], str]] = {
    "docs/cli.md": cli.page,
    "docs/metrics.md": metrics.page,
    f"{OBSERVABILITY}/grafana/dashboards/fleet.json": dashboards.fleet,
    f"{OBSERVABILITY}/grafana/dashboards/control.json": dashboards.control,
    f"{OBSERVABILITY}/prometheus/alerts.yml": alerts.rules,
}
