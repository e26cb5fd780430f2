"""A running local cluster: starts the planned processes in order and knows where they are."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import anyio

from controlplane.local import plan
from controlplane.local.layout import Layout
from controlplane.local.plan import ClusterOptions, Part, Ports
from controlplane.local.ports import check_free, free_ports
from controlplane.local.supervisor import Child, ChildSpec, Probe, Supervisor
from proto.wire.errors import HttpError
from proto.wire.ports import Http, HttpTimeouts

log = logging.getLogger(__name__)

PROBE_TIMEOUTS = HttpTimeouts(connect_s=1.0, first_byte_s=2.0, idle_s=2.0)
STOP_ALL_S = 60.0


class LocalCluster:
    """The processes of one cluster; made by `run_cluster`."""

    def __init__(self, options: ClusterOptions, layout: Layout, supervisor: Supervisor) -> None:
        self.options = options
        self.layout = layout
        self.supervisor = supervisor
        self.complete = False
        """Everything has been started once and was ready then."""
        gateway = [check_free(options.port, "gateway")] if options.port else []
        free = [port for port in free_ports(Ports.needed(options)) if port not in gateway]
        self.ports = Ports.assign(options, free)

    @property
    def url(self) -> str:
        """Where clients reach the gateway."""
        return f"http://127.0.0.1:{self.ports.gateway}"

    async def start(self, http: Http) -> None:
        """Start everything; returns when all of it is ready. Raises `ChildFailed`."""
        await self._start_together(plan.servers(self.options, self.layout, self.ports), http)
        await self._start_together(
            [
                *plan.services(self.options, self.layout, self.ports),
                *plan.engines(self.options, self.layout, self.ports),
            ],
            http,
        )
        self.complete = True
        self.write_state()

    def write_state(self) -> None:
        """Tell other commands, and tests, where everything is; called on every change."""
        self.layout.write_state(
            {
                "cluster": self.options.name,
                "gateway": self.url,
                "model": self.options.model,
                "complete": self.complete,
                "nats": f"nats://127.0.0.1:{self.ports.nats}",
                "etcd": f"127.0.0.1:{self.ports.etcd}",
                "children": {
                    name: {"pid": child.pid, "ready": child.ready, "restarts": child.restarts}
                    for name, child in self.supervisor.children.items()
                },
            }
        )

    async def _start_together(self, parts: Iterable[Part], http: Http) -> None:
        async with anyio.create_task_group() as starting:
            for part in parts:
                spec = ChildSpec(
                    name=part.name,
                    argv=part.argv,
                    log_path=self.layout.log(part.name),
                    ready=_answers(http, part.ready_url),
                    environment=part.environment,
                )
                starting.start_soon(self.supervisor.start, spec)


@asynccontextmanager
async def run_cluster(options: ClusterOptions, http: Http) -> AsyncIterator[LocalCluster]:
    """Start a cluster, keep it alive while the context is open, and leave no process behind.

    Raises `ClusterRunning`, `DirectoryUnusable`, `PortTaken`, `ServerMissing` or `ChildFailed`.
    """
    layout = Layout.of(options.name)
    with layout.locked(keep_data=options.keep_data):
        async with anyio.create_task_group() as tasks:

            def on_change(_: Child) -> None:
                cluster.write_state()

            supervisor = Supervisor(tasks, on_change)
            cluster = LocalCluster(options, layout, supervisor)
            try:
                await cluster.start(http)
                yield cluster
            finally:
                with anyio.CancelScope(shield=True), anyio.move_on_after(STOP_ALL_S):
                    await supervisor.stop_all()
                tasks.cancel_scope.cancel()


def _answers(http: Http, url: str) -> Probe:
    async def probe() -> bool:
        try:
            async with http.exchange("GET", url, timeouts=PROBE_TIMEOUTS) as response:
                return response.status == 200
        except HttpError:
            return False

    return probe
