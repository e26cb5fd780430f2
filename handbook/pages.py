"""Which pages there are, and what writes each; a test holds every page to its writer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from controlplane.access.nats import configuration
from controlplane.gateway.openapi import document
from handbook import alerts, asyncapi, cli, dashboards, metrics, tracing, troubleshooting
from proto.ids import WorkerId

KUBERNETES_CLUSTER = "main"
KUBERNETES_WORKERS = [WorkerId(f"sim-{number}") for number in range(8)]

OBSERVABILITY = "deploy/observability"
ROOT = Path(__file__).parents[1]


def openapi() -> str:
    """What gateways answer at `/openapi.json`, to be read by people."""
    return msgspec.json.format(document(), indent=2).decode() + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "docs/cli.md": cli.page,
    "docs/metrics.md": metrics.page,
    "docs/tracing.md": tracing.page,
    "docs/api/asyncapi.json": asyncapi.page,
    "docs/api/openapi.json": openapi,
    f"{OBSERVABILITY}/grafana/dashboards/fleet.json": dashboards.fleet,
    f"{OBSERVABILITY}/grafana/dashboards/control.json": dashboards.control,
    f"{OBSERVABILITY}/prometheus/alerts.yml": alerts.rules,
    "docs/troubleshooting.md": troubleshooting.page,
    "deploy/nats/access.conf": partial(configuration, "local"),
    "deploy/kubernetes/access.conf": partial(configuration, KUBERNETES_CLUSTER, KUBERNETES_WORKERS),
}
