"""A running local cluster: starts the planned processes in order and knows where they are."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import anyio
import msgspec
from pydantic import SecretStr

from controlplane.local import engines, plan
from controlplane.local.layout import Layout
from controlplane.local.options import ClusterOptions
from controlplane.local.plan import LOOPBACK_URL, EnginePorts, Part, Place, Ports
from controlplane.local.ports import PortTaken, check_free, free_ports
from controlplane.local.supervisor import (
    PROBE_INTERVAL_S,
    Child,
    ChildFailed,
    ChildSpec,
    Probe,
    Supervisor,
)
from controlplane.runtime.service import CannotServe
from controlplane.runtime.settings import (
    BusSettings,
    CommonSettings,
    StoreSettings,
    TelemetrySettings,
)
from proto.wire.errors import HttpError
from proto.wire.ports import Http, HttpTimeouts
from proto.workers import PROBE_PROMPT, Role

log = logging.getLogger(__name__)

PROBE_TIMEOUTS = HttpTimeouts(connect_s=1.0, first_byte_s=2.0, idle_s=2.0)
STOP_ALL_S = 60.0
AGENT_STOPS_S = 5.0
"""What an agent may take beyond its drain."""
SERVES = (200, 401)
"""How a gateway answers that knows the model; 401 where it has tenants, as we have no key."""
FIRST_ANSWER_S = 30.0
STATE_RETRY_S = 1.0

Stages = list[list[Part]]
"""Parts that start together, one list after the other."""


def as_planned(stages: Stages) -> Stages:
    """Change nothing."""
    return stages


class LocalCluster:
    """The processes of one cluster; made by `run_cluster`."""

    def __init__(
        self,
        options: ClusterOptions,
        layout: Layout,
        supervisor: Supervisor,
        arrange: Callable[[Stages], Stages] = as_planned,
    ) -> None:
        self.options = options
        self.layout = layout
        self.supervisor = supervisor
        self.engine = engines.find_engine(options)
        self._arrange = arrange
        self.complete = False
        """Everything runs that belongs to it; said by whoever runs it (`say_complete`)."""
        self._changed = anyio.Event()
        fixed = [check_free(options.port, "gateway")] if options.port else []
        console = _console_port(options)
        fixed += [console] if console else []
        free = [port for port in free_ports(Ports.needed(options)) if port not in fixed]
        self.ports = Ports.assign(options, free, console=console)
        self.engines = {
            index: Place(index, mine, role)
            for index, (mine, role) in enumerate(
                zip(self.ports.engines, options.engine_roles, strict=True)
            )
        }
        """Those that run, are about to, or are on their way out."""

    @property
    def model(self) -> str:
        """What clients call the model."""
        return self.engine.served if self.engine else self.options.model

    @property
    def url(self) -> str:
        """Where clients reach the gateway."""
        return f"http://127.0.0.1:{self.ports.gateway}"

    @property
    def console_url(self) -> str:
        """Where people look at it."""
        return f"http://127.0.0.1:{self.ports.console}"

    def settings(self) -> CommonSettings:
        """What a process on this machine needs to join the cluster's bus and store."""
        return CommonSettings(
            cluster=self.options.name,
            secret=SecretStr(self.layout.secret.read_text().strip()),
            nats=BusSettings(servers=(f"nats://127.0.0.1:{self.ports.nats}",)),
            etcd=StoreSettings(endpoints=(f"127.0.0.1:{self.ports.etcd}",)),
            telemetry=TelemetrySettings(
                otlp_endpoint=plan.traces_endpoint(self.options, self.ports),
                sample_ratio=self.options.trace_share,
            ),
        )

    async def start(self, http: Http) -> None:
        """Start everything; returns when all of it is ready. Raises `ChildFailed`."""
        if self.engine is None:
            await anyio.run_process(plan.model_argv(self.layout))
        for stage in self._stages():
            async with anyio.create_task_group() as starting:
                for part in stage:
                    starting.start_soon(self.supervisor.start, self._spec(part, http))
        with anyio.move_on_after(FIRST_ANSWER_S) as waiting:
            await self._first_answer(http)
        if waiting.cancelled_caught:
            raise CannotServe(
                f"everything has started, but nothing was answered within {FIRST_ANSWER_S:g} s; "
                f"the logs are in {self.layout.log('gateway').parent}"
            )

    def say_complete(self) -> None:
        """Nothing is still to be started, not beside the processes either."""
        self.complete = True
        self.changed()

    async def stop(self) -> None:
        """Stop everything, servers last, so that services can say goodbye."""
        for stage in reversed(self._stages()):
            await self.supervisor.stop_together(part.name for part in stage)

    def new_place(self, role: Role) -> Place:
        """Room for one more engine."""
        index = max(self.engines, default=-1) + 1
        place = Place(index, EnginePorts.deal(free_ports(EnginePorts.NEEDED)), role)
        self.engines[index] = place
        return place

    async def start_engine(self, place: Place, http: Http) -> None:
        """Start an engine and its agent; returns when both are ready. Raises `ChildFailed`; then
        nothing is left of them."""
        engine, agent = self._parts(place)
        try:
            await self.supervisor.start(self._spec(engine, http))
            await self.supervisor.start(self._spec(agent, http))
        except ChildFailed:
            await self.supervisor.stop_together([engine.name])
            self.engines.pop(place.index, None)
            raise

    async def retire_engine(self, place: Place, drain_s: float) -> None:
        """Its agent tells everybody to choose others, and leaves when all requests have ended;
        then the engine stops. With neither of them started there is nothing to do."""
        engine, agent = self._parts(place)
        if agent.name in self.supervisor.children:
            await self.supervisor.stop(agent.name, within_s=drain_s + AGENT_STOPS_S)
        await self.supervisor.stop_together([engine.name])
        self.engines.pop(place.index, None)
        self.changed()

    def _parts(self, place: Place) -> tuple[Part, Part]:
        return plan.engine(self.options, self.layout, self.ports, place)

    def _stages(self) -> Stages:
        all_of_it = (self.options, self.layout, self.ports)
        servers = plan.servers(self.layout, self.ports)
        if self.engine:
            workers = list(engines.parts(self.engine, *all_of_it))
        else:
            workers = [part for place in self.engines.values() for part in self._parts(place)]
        services = plan.services(*all_of_it, os.environ)
        return self._arrange([servers, [*services, *workers]])

    def _spec(self, part: Part, http: Http) -> ChildSpec:
        for path, text in part.files.items():
            path.write_text(text)
        return ChildSpec(
            name=part.name,
            argv=part.argv,
            log_path=self.layout.log(part.name),
            ready=_answers(http, part.ready_url),
            environment=part.environment,
            # While real engines load they keep every core busy.
            start_s=part.start_s if self.engine is None else max(part.start_s, engines.CROWDED_S),
            stop_s=part.stop_s,
            family=part.family,
        )

    async def _first_answer(self, http: Http) -> None:
        """Every part is ready; wait until all have heard of each other and a request is served."""
        body = msgspec.json.encode({"model": self.model, "prompt": PROBE_PROMPT, "max_tokens": 1})
        while True:
            try:
                async with http.exchange("POST", f"{self.url}/v1/completions", body=body) as answer:
                    if answer.status in SERVES:
                        return
            except HttpError as error:
                log.debug("no first answer yet: %s", error)
            await anyio.sleep(PROBE_INTERVAL_S)

    def changed(self) -> None:
        """What `keep_state` has written is no longer so."""
        self._changed.set()

    async def keep_state(self) -> None:
        """Write the state down whenever it has changed; where the disk has no room, a little later
        again."""
        while True:
            await self._changed.wait()
            self._changed = anyio.Event()
            try:
                self.layout.write_state(self.state())
            except OSError as error:
                log.warning("cannot say where everything is: %s", error)
                self._changed.set()
                await anyio.sleep(STATE_RETRY_S)

    def state(self) -> Mapping[str, object]:
        """Where everything is, for other commands, tests and scripts."""
        admins = [f"{LOOPBACK_URL}:{port}" for port in self.ports.gateways_admin]
        routers = [f"{LOOPBACK_URL}:{port}" for port in self.ports.routers_admin]
        return {
            "cluster": self.options.name,
            "gateway": self.url,
            "gateway_admin": admins[0],
            "gateway_admins": admins,
            "routers_admin": routers or admins,
            "registry_admin": f"{LOOPBACK_URL}:{self.ports.registry_admin}",
            "console": self.console_url,
            "model": self.model,
            "engines": [f"http://127.0.0.1:{place.ports.http}" for place in self.engines.values()],
            "kv_events": [
                {
                    "events": f"tcp://127.0.0.1:{place.ports.events}",
                    "replay": f"tcp://127.0.0.1:{place.ports.replay}",
                }
                for place in self.engines.values()
            ],
            "agents_admin": [
                f"http://127.0.0.1:{place.ports.agent_admin}" for place in self.engines.values()
            ],
            "complete": self.complete,
            "nats": f"nats://127.0.0.1:{self.ports.nats}",
            "etcd": f"127.0.0.1:{self.ports.etcd}",
            "children": {
                name: {"pid": child.pid, "ready": child.ready, "restarts": child.restarts}
                for name, child in self.supervisor.children.items()
            },
        }


@asynccontextmanager
async def run_cluster(
    options: ClusterOptions,
    http: Http,
    *,
    hurry: anyio.Event | None = None,
    arrange: Callable[[Stages], Stages] = as_planned,
) -> AsyncIterator[LocalCluster]:
    """Start a cluster, keep it alive while the context is open, and leave no process behind.

    When `hurry` is set, what is still stopping is killed. `arrange` may add to the parts that are
    planned and change them, and is asked again when they are stopped. Raises `ClusterRunning`,
    `DirectoryUnusable`, `PortTaken`, `ServerMissing` or `ChildFailed`.
    """
    layout = Layout.of(options.name)
    with layout.locked(keep_data=options.keep_data):
        async with anyio.create_task_group() as tasks:

            def on_change(_: Child) -> None:
                cluster.changed()

            cluster = LocalCluster(options, layout, Supervisor(tasks, on_change), arrange)
            tasks.start_soon(cluster.keep_state)
            try:
                await cluster.start(http)
                yield cluster
            finally:
                await _stop_at_all_events(cluster, hurry or anyio.Event())
                tasks.cancel_scope.cancel()


async def _stop_at_all_events(cluster: LocalCluster, hurry: anyio.Event) -> None:
    async def kill_when_told() -> None:
        await hurry.wait()
        cluster.supervisor.kill_all()

    with anyio.move_on_after(STOP_ALL_S, shield=True):
        async with anyio.create_task_group() as stopping:
            stopping.start_soon(kill_when_told)
            await cluster.stop()
            stopping.cancel_scope.cancel()


def _console_port(options: ClusterOptions) -> int:
    """The port that was asked for; else the gateway's neighbour if it is free; 0 for any."""
    if options.console_port is not None:
        return check_free(options.console_port, "console") if options.console_port else 0
    try:
        return check_free(options.port + 1, "console") if options.port else 0
    except PortTaken:
        return 0


def _answers(http: Http, url: str) -> Probe:
    async def probe() -> bool:
        try:
            async with http.exchange("GET", url, timeouts=PROBE_TIMEOUTS) as response:
                return response.status == 200
        except HttpError:
            return False

    return probe
