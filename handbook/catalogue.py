"""Every metric of every service, read from the objects that the services make.

Dashboards and alerts take names from here (`Catalogue.name`), so that none can be asked for that
does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import anyio
from prometheus_client import CollectorRegistry

from agents.agent import AgentService
from agents.engines import make_adapter
from agents.settings import AgentProcess, AgentSettings
from controlplane.console.service import ConsoleService
from controlplane.console.settings import ConsoleSettings
from controlplane.gateway.metrics import GatewayMetrics
from controlplane.planner.metrics import PlannerMetrics
from controlplane.registry.metrics import RegistryMetrics
from controlplane.registry.view import RegistryView
from controlplane.router.metrics import RouterMetrics
from controlplane.runtime.admin import LoopLag
from controlplane.runtime.histogram import QuickHistogram
from controlplane.transfer.metrics import TransferMetrics
from proto.subjects import Keys
from proto.wire.memory.bus import MemoryHub
from proto.wire.memory.frames import MemoryFrames
from proto.wire.memory.http import MemoryHttp
from proto.wire.memory.store import MemoryEtcd

OURS = "tokenplane_"


class NoSuchMetric(Exception):
    """A dashboard or an alert asks for what no service has."""


@dataclass(frozen=True)
class Metric:
    """One of a service's metrics, by the name that Prometheus stores."""

    service: str
    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str

    @property
    def series(self) -> tuple[str, ...]:
        """What may be queried."""
        if self.kind == "histogram":
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return (self.name,)


class Catalogue:
    """All metrics, by service."""

    def __init__(self) -> None:
        self.metrics = anyio.run(_all)
        self._labels = {series: m.labels for m in self.metrics for series in m.series}

    def name(self, series: str, *labels: str) -> str:
        """`series`, if there is such a one and it has these labels. Raises `NoSuchMetric`."""
        if series not in self._labels:
            raise NoSuchMetric(f"no service has {series}; see docs/metrics.md")
        if unknown := set(labels) - set(self._labels[series]) - {"le"}:
            raise NoSuchMetric(f"{series} has no label {', '.join(sorted(unknown))}")
        return series


@cache
def catalogue() -> Catalogue:
    """Read once."""
    return Catalogue()


async def _all() -> tuple[Metric, ...]:
    """In an event loop, as some parts ask for one when they are made."""
    found: list[Metric] = []
    for service, make in SERVICES.items():
        registry = CollectorRegistry()
        make(registry)
        found += sorted(_described(service, registry), key=lambda metric: metric.name)
    return tuple(found)


def _described(service: str, registry: CollectorRegistry) -> Iterator[Metric]:
    """Labels are not among what a registry collects while nothing was counted: they are read from
    the collectors themselves."""
    for collector in registry._collector_to_names:
        if isinstance(collector, QuickHistogram):
            meaning = collector.documentation.rstrip(".")
            yield Metric(service, collector.name, "histogram", collector.labelnames, meaning)
            continue
        described: Sequence[Any] = [collector]
        if not hasattr(collector, "_labelnames"):
            described = list(collector.collect())
        for each in described:
            name = getattr(each, "_name", None) or each.name
            if not name.startswith(OURS):
                continue
            kind = getattr(each, "_type", None) or each.type
            meaning = getattr(each, "_documentation", None) or each.documentation
            whole = f"{name}_total" if kind == "counter" else name
            labels = tuple(getattr(each, "_labelnames", ()))
            yield Metric(service, whole, kind, labels, meaning.rstrip("."))


def _agent(registry: CollectorRegistry) -> None:
    process = AgentProcess(
        agent=AgentSettings(worker="w", engine="sim", engine_url="http://127.0.0.1:1")
    )
    adapter = make_adapter(process.agent, MemoryHttp(), MemoryFrames())
    AgentService(process, adapter, MemoryHub().connect("w"), MemoryEtcd().connect(), registry)


def _registry(registry: CollectorRegistry) -> None:
    RegistryMetrics(_view(), registry)


def _console(registry: CollectorRegistry) -> None:
    ConsoleService(ConsoleSettings(), "c", MemoryHub().connect("c"), _view(), registry)


def _view() -> RegistryView:
    return RegistryView(MemoryEtcd().connect(), Keys("c"))


SERVICES: dict[str, Callable[[CollectorRegistry], object]] = {
    "every process": LoopLag,
    "gateway": GatewayMetrics,
    "router": RouterMetrics,
    "planner": PlannerMetrics,
    "transfer": TransferMetrics,
    "registry": _registry,
    "agent": _agent,
    "console": _console,
}
