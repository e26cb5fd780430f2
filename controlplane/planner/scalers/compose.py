"""The actuator of a Docker host: starts and stops containers that have been made beforehand.

Each worker is two containers, an engine and its agent, both labelled

    tokenplane.worker=<worker id>      tokenplane.part=engine | agent
    tokenplane.model=<model>           tokenplane.role=<role>      tokenplane.hardware=<hardware>

`docker compose create` makes as many as there may ever be; those that are not wanted stay stopped.
To retire a worker its agent is stopped first, with as long as its drain may take (Docker sends
SIGTERM, and the agent drains), then its engine. API: Docker Engine's, over its unix socket
(https://docs.docker.com/reference/api/engine/), in whatever version the daemon speaks: a path that
names one is refused by daemons for which it is too old.
"""

from __future__ import annotations

import json
import logging
from typing import NamedTuple
from urllib.parse import quote

import msgspec
from anyio.abc import TaskGroup

from controlplane.planner.scalers.follow import ScalerTrouble
from proto.ids import WorkerId
from proto.scaling import Desired, Pool, Scaled
from proto.wire.errors import HttpError
from proto.wire.ports import Http, HttpTimeouts

log = logging.getLogger(__name__)

API = "http://docker"
CALL = HttpTimeouts(connect_s=3.0, first_byte_s=30.0, idle_s=30.0)
STOP_S = 10.0
"""For an engine that has nothing left to do."""
PROJECT = "com.docker.compose.project"
WORKER, PART = "tokenplane.worker", "tokenplane.part"
MODEL, ROLE, HARDWARE = "tokenplane.model", "tokenplane.role", "tokenplane.hardware"
RUNNING = "running"


class _Container(msgspec.Struct):
    """As the list of containers has it."""

    id: str = msgspec.field(name="Id")
    state: str = msgspec.field(name="State")
    labels: dict[str, str] = msgspec.field(name="Labels", default_factory=dict)


class Pair(NamedTuple):
    """The containers of one worker."""

    worker: WorkerId
    engine: _Container
    agent: _Container

    @property
    def running(self) -> bool:
        return RUNNING in (self.agent.state, self.engine.state)

    @property
    def whole(self) -> bool:
        return self.agent.state == self.engine.state == RUNNING


class ComposeActuator:
    """Scales by the Docker Engine's API; `tasks` is where drains go on."""

    name = "compose"

    def __init__(self, http: Http, tasks: TaskGroup, *, project: str, drain_s: float) -> None:
        self._http = http
        self._tasks = tasks
        self._project = project
        self._drain_s = drain_s
        self._leaving: set[WorkerId] = set()

    async def act(self, word: Desired) -> None:
        """Drain and stop what is too much, start what is missing. Whoever cannot be started is
        passed over for another one. Raises `ScalerTrouble` once all is done that can be."""
        pairs = await self._pairs(word.pool)
        here = [pair for pair in pairs if pair.worker not in self._leaving]
        order = {worker: rank for rank, worker in enumerate(word.retire)}
        running = [pair for pair in here if pair.running]
        running.sort(key=lambda pair: (pair.whole, order.get(pair.worker, -1)))
        surplus = max(0, len(running) - word.replicas)
        for pair in running[:surplus]:
            self._leaving.add(pair.worker)
            self._tasks.start_soon(self._retire, pair)
        staying = running[surplus:]
        troubles = await self._start_some(
            staying + [pair for pair in here if not pair.running], word.replicas
        )
        if word.replicas > len(here):
            troubles.append(
                f"{word.replicas} workers of {word.pool.name} are wanted, and there are containers"
                f" for {len(pairs)}; make more of them with `docker compose create`"
            )
        if troubles:
            raise ScalerTrouble("; ".join(dict.fromkeys(troubles)))

    async def observe(self, word: Desired) -> Scaled:
        """Counted from the containers. Raises `ScalerTrouble`."""
        pairs = await self._pairs(word.pool)
        pool = word.pool
        return Scaled(
            model=pool.model,
            role=pool.role,
            hardware=pool.hardware,
            decision=word.decision,
            replicas=sum(pair.running and pair.worker not in self._leaving for pair in pairs),
            draining=sum(pair.worker in self._leaving for pair in pairs),
            scaler=self.name,
        )

    async def _pairs(self, pool: Pool) -> list[Pair]:
        labels = [
            f"{PROJECT}={self._project}",
            f"{MODEL}={pool.model}",
            f"{ROLE}={pool.role.value}",
            f"{HARDWARE}={pool.hardware}",
        ]
        filters = quote(json.dumps({"label": labels}))
        body = await self._call("GET", f"/containers/json?all=true&filters={filters}", (200,))
        try:
            containers = msgspec.json.decode(body, type=list[_Container])
        except msgspec.DecodeError as error:
            raise ScalerTrouble(f"Docker's list of containers cannot be read: {error}") from error
        parts: dict[str, dict[str, _Container]] = {}
        for container in containers:
            worker, part = container.labels.get(WORKER), container.labels.get(PART)
            if worker and part:
                parts.setdefault(worker, {})[part] = container
        return [
            Pair(WorkerId(worker), found["engine"], found["agent"])
            for worker, found in sorted(parts.items())
            if found.keys() >= {"engine", "agent"}
        ]

    async def _start_some(self, pairs: list[Pair], count: int) -> list[str]:
        """So many of them, the first ones that can be; why others cannot."""
        troubles: list[str] = []
        for pair in pairs:
            if count <= 0:
                break
            try:
                await self._start(pair)
                count -= 1
            except ScalerTrouble as error:
                troubles.append(str(error))
        return troubles

    async def _start(self, pair: Pair) -> None:
        """Whatever of it does not run: one of two may have died."""
        for container in (pair.engine, pair.agent):
            if container.state != RUNNING:
                await self._call("POST", f"/containers/{container.id}/start", (204, 304))

    async def _retire(self, pair: Pair) -> None:
        try:
            for container, wait_s in ((pair.agent, self._drain_s), (pair.engine, STOP_S)):
                path = f"/containers/{container.id}/stop?t={int(wait_s)}"
                patience = HttpTimeouts(first_byte_s=wait_s + CALL.first_byte_s)
                await self._call("POST", path, (204, 304, 404), patience)
        except ScalerTrouble as error:
            log.warning("%s was not stopped, and will be tried again: %s", pair.worker, error)
        finally:
            self._leaving.discard(pair.worker)

    async def _call(
        self, method: str, path: str, fine: tuple[int, ...], timeouts: HttpTimeouts = CALL
    ) -> bytes:
        try:
            async with self._http.exchange(method, f"{API}{path}", timeouts=timeouts) as answer:
                body = await answer.read()
        except HttpError as error:
            raise ScalerTrouble(
                f"Docker does not answer ({error}); is its socket mounted, and may we use it?"
            ) from error
        if answer.status not in fine:
            text = body.decode(errors="replace")[:200]
            raise ScalerTrouble(f"Docker refused {method} {path.partition('?')[0]}: {text}")
        return body
