"""The actuator of one machine: engines and their agents as child processes."""

from __future__ import annotations

import logging

from anyio.abc import TaskGroup

from controlplane.local.cluster import LocalCluster
from controlplane.local.plan import DRAIN_S, Place, worker_id
from controlplane.local.supervisor import ChildFailed
from controlplane.planner.scalers.follow import ScalerTrouble
from proto.scaling import Desired, Pool, Scaled
from proto.wire.ports import Http

log = logging.getLogger(__name__)


class LocalActuator:
    """Starts and retires engines of a local cluster; `tasks` is where that goes on."""

    name = "local"

    def __init__(self, cluster: LocalCluster, http: Http, tasks: TaskGroup) -> None:
        self._cluster = cluster
        self._http = http
        self._tasks = tasks
        self._leaving: set[int] = set()
        self._failed = ""

    async def act(self, word: Desired) -> None:
        """Start what is missing, drain and stop what is too much."""
        self._check(word.pool)
        if self._failed:
            failed, self._failed = self._failed, ""
            raise ScalerTrouble(failed)
        staying = self._staying(word.pool)
        for _ in range(len(staying), word.replicas):
            self._tasks.start_soon(self._start, self._cluster.new_place(word.role))
        order = {worker: rank for rank, worker in enumerate(word.retire)}
        # Who is not on the list was not ready when it was made, and has nothing to lose.
        staying.sort(key=lambda place: (order.get(worker_id(place.index), -1), -place.index))
        for place in staying[: max(0, len(staying) - word.replicas)]:
            self._leaving.add(place.index)
            self._tasks.start_soon(self._retire, place)

    async def observe(self, word: Desired) -> Scaled:
        """Counted from the processes themselves."""
        pool = word.pool
        return Scaled(
            model=pool.model,
            role=pool.role,
            hardware=pool.hardware,
            decision=word.decision,
            replicas=len(self._staying(pool)),
            draining=sum(self._of(place, pool) for place in self._places(leaving=True)),
            scaler=self.name,
        )

    def _check(self, pool: Pool) -> None:
        options = self._cluster.options
        if (pool.model, pool.hardware) != (options.model, options.profile):
            raise ScalerTrouble(
                f"this cluster runs {options.model} on {options.profile} only, and not {pool.name}"
            )

    def _staying(self, pool: Pool) -> list[Place]:
        return [place for place in self._places(leaving=False) if self._of(place, pool)]

    def _places(self, *, leaving: bool) -> list[Place]:
        engines = self._cluster.engines.values()
        return [place for place in engines if (place.index in self._leaving) is leaving]

    def _of(self, place: Place, pool: Pool) -> bool:
        return place.role is pool.role

    async def _start(self, place: Place) -> None:
        log.info("starting %s", worker_id(place.index))
        try:
            await self._cluster.start_engine(place, self._http)
        except ChildFailed as error:
            self._failed = str(error)
        self._cluster.changed()

    async def _retire(self, place: Place) -> None:
        log.info("draining %s", worker_id(place.index))
        await self._cluster.retire_engine(place, DRAIN_S)
        self._leaving.discard(place.index)
