"""Real processes to measure: NATS, etcd, a router, and the peer's service, on loopback."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import psutil

from controlplane.local.ports import LOOPBACK, free_ports
from controlplane.local.servers import etcd_argv, nats_argv
from controlplane.local.supervisor import ChildSpec, Supervisor
from controlplane.runtime.carriers import Carriers, open_carriers
from controlplane.runtime.settings import BusSettings, CommonSettings, StoreSettings
from proto.wire.errors import HttpError
from proto.wire.http import HttpClient
from proto.wire.ports import Http

CLUSTER = "bench"
START_S = 120.0
STOP_S = 30.0


@dataclass(frozen=True)
class Rig:
    """Servers that run, and the carriers that reach them."""

    settings: CommonSettings
    carriers: Carriers
    _directory: Path
    _supervisor: Supervisor

    async def start_router(self, *words: str) -> str:
        """A router's process, ready; returns the URL of its metrics. `words` for Python, if it is
        not the usual one."""
        (port,) = free_ports(1)
        url = f"http://{LOOPBACK}:{port}"
        environment = {
            "TOKENPLANE_CLUSTER": CLUSTER,
            "TOKENPLANE_NATS__SERVERS": json.dumps(self.settings.nats.servers),
            "TOKENPLANE_ETCD__ENDPOINTS": json.dumps(self.settings.etcd.endpoints),
            "TOKENPLANE_ADMIN__PORT": str(port),
            "TOKENPLANE_TELEMETRY__LOG_LEVEL": "warning",
        }
        argv = (sys.executable, *(words or ("-m", "controlplane.cli.main", "router")))
        await self.start("router", argv, f"{url}/ready", environment)
        return f"{url}/metrics"

    async def start(
        self, name: str, argv: Sequence[str], ready_url: str, environment: dict[str, str]
    ) -> None:
        """Any process, ready once a GET of its URL answers 200. Raises `ChildFailed`."""
        await self._supervisor.start(
            _spec(self._directory, name, tuple(argv), ready_url, self.carriers.http, environment)
        )

    async def stop(self, name: str) -> None:
        """End what `start` began."""
        await self._supervisor.stop(name)

    def process(self, name: str) -> psutil.Process:
        """To read its times and its memory."""
        return psutil.Process(self._supervisor.children[name].pid)


@asynccontextmanager
async def open_rig() -> AsyncIterator[Rig]:
    """NATS and etcd of one's own; leaves no process behind."""
    nats, monitor, etcd, etcd_peer = free_ports(4)
    settings = CommonSettings(
        cluster=CLUSTER,
        nats=BusSettings(servers=(f"nats://{LOOPBACK}:{nats}",)),
        etcd=StoreSettings(endpoints=(f"{LOOPBACK}:{etcd}",)),
    )
    with tempfile.TemporaryDirectory(prefix="tokenplane-bench-") as made:
        directory = Path(made)
        nats_words = nats_argv(directory / "nats", port=nats, monitor_port=monitor)
        etcd_words = etcd_argv(directory / "etcd", port=etcd, peer_port=etcd_peer)
        async with HttpClient() as http, anyio.create_task_group() as tasks:
            supervisor = Supervisor(tasks)
            try:
                for name, words, url in (
                    ("nats", nats_words, f"http://{LOOPBACK}:{monitor}/healthz"),
                    ("etcd", etcd_words, f"http://{LOOPBACK}:{etcd}/health"),
                ):
                    await supervisor.start(_spec(directory, name, words, url, http, {}))
                async with open_carriers(settings, "bench") as carriers:
                    yield Rig(settings, carriers, directory, supervisor)
                    await supervisor.stop_together(set(supervisor.children) - {"nats", "etcd"})
            finally:
                with anyio.move_on_after(STOP_S, shield=True):
                    await supervisor.stop_together(supervisor.children)
                tasks.cancel_scope.cancel()


def cpu_s(*processes: psutil.Process) -> float:
    """Processor time that these have used so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _spec(
    directory: Path,
    name: str,
    argv: tuple[str, ...],
    ready_url: str,
    http: Http,
    environment: dict[str, str],
) -> ChildSpec:
    async def ready() -> bool:
        try:
            async with http.exchange("GET", ready_url) as answer:
                return answer.status == 200
        except HttpError:
            return False

    return ChildSpec(name, argv, directory / f"{name}.log", ready, environment, START_S)
