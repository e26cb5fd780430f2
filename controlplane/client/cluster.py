"""A cluster as a program sees it: who is there, where a prompt would go, why one went where it
went, what happens.

    async with Cluster.at(name="local") as cluster:
        for worker in await cluster.workers():
            print(worker.worker, worker.state)
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
from pydantic import ValidationError

from controlplane.client.config import Config
from controlplane.local.running import located
from controlplane.runtime.asking import ask_routers
from controlplane.runtime.carriers import open_carriers
from controlplane.runtime.service import CannotServe
from controlplane.runtime.settings import CommonSettings
from proto.codec import Producer, Reader, Unreadable
from proto.decisions import Decision
from proto.draining import DrainReply, DrainRequest
from proto.ids import RequestId, ServiceId, WorkerId, new_incarnation
from proto.load import LoadReport
from proto.progress import Progress
from proto.records import RequestRecord
from proto.route import Chosen, Queued, Rejected, RouteReply, RouteRequest
from proto.subjects import Subjects
from proto.transfers import Transition
from proto.wire.errors import NoResponder, RequestRefused
from proto.wire.ports import Bus, Store
from proto.workers import WorkerRecord, WorkersReply, WorkersRequest

ASK_S = 5.0

Event = LoadReport | Progress | Decision | RequestRecord | Transition
"""What a cluster says of itself."""

T = TypeVar("T")


class NotThere(CannotServe):
    """Nobody in the cluster answers to that; says who should."""


class Cluster:
    """Questions and orders; made by `at` or `connected`."""

    def __init__(self, bus: Bus, store: Store, cluster: str) -> None:
        self._bus = bus
        self._subjects = Subjects(cluster)
        self._producer = Producer(
            ServiceId(f"client-{secrets.token_hex(4)}"), new_incarnation(time.time()), time.time
        )
        self.config = Config(bus, store, cluster)
        """Its live settings."""

    @staticmethod
    @asynccontextmanager
    async def at(name: str = "local", **settings: object) -> AsyncIterator[Cluster]:
        """The cluster of that name on this machine, or the one that `settings` (as of any process:
        `nats`, `etcd`, `secret`) lead to. Raises `BusUnavailable`, `StoreUnavailable`."""
        whole = CommonSettings.model_validate({"cluster": name, **settings})
        async with Cluster.connected(located(whole)) as cluster:
            yield cluster

    @staticmethod
    @asynccontextmanager
    async def connected(settings: CommonSettings) -> AsyncIterator[Cluster]:
        """The cluster that these settings lead to."""
        async with open_carriers(settings, "client") as carriers:
            yield Cluster(carriers.bus, carriers.store, settings.cluster)

    async def workers(self, model: str = "") -> list[WorkerRecord]:
        """Who is there, all or those of one model. Raises `NotThere` without a registry."""
        question = WorkersRequest(model=model).model_dump_json().encode()
        answer = await self._ask(self._subjects.registry_workers, question, "a registry")
        try:
            return list(WorkersReply.model_validate_json(answer).workers)
        except ValidationError as error:
            raise NotThere(f"the registry speaks otherwise than this client: {error}") from error

    async def route(self, request: RouteRequest) -> Chosen | Rejected:
        """Where a prompt should go. The router books the work, so tell it how it went on, or
        do not ask. Raises `NotThere` without a router."""
        reader: Reader[RouteReply] = Reader(RouteReply)
        while True:
            sealed = self._producer.seal(request)
            answer = await self._ask(
                self._subjects.route, sealed, "a router", request.deadline_s + ASK_S
            )
            reply = reader.open(answer).body
            if not isinstance(reply, Queued):
                return reply

    async def explain(self, request: str, wait_s: float = 0.5) -> list[Decision]:
        """Every decision that routers remember of a request, first attempt first."""
        return await ask_routers(self._bus, self._subjects, RequestId(request), wait_s)

    async def drain(self, worker: str, *, undo: bool = False) -> DrainReply:
        """Let a worker finish what it has and take nothing new; or, with `undo`, serve again.
        Raises `NotThere` without such a worker, `RequestRefused` if its agent is stopping."""
        sealed = self._producer.seal(DrainRequest(not undo))
        subject = self._subjects.agent(WorkerId(worker), "drain")
        answer = await self._ask(subject, sealed, f"an agent of worker {worker!r}")
        return Reader[DrainReply](DrainReply).open(answer).body

    @asynccontextmanager
    async def loads(self) -> AsyncIterator[AsyncIterator[LoadReport]]:
        """Load reports as they come, some a second from each worker."""
        async with self._bus.subscribe(self._subjects.every_load) as messages:
            reader = Reader[LoadReport](LoadReport)

            async def each() -> AsyncIterator[LoadReport]:
                async for message in messages:
                    try:
                        yield reader.open(message.data).body
                    except Unreadable:
                        continue

            yield each()

    @asynccontextmanager
    async def events(
        self, *kinds: type[Event], queue_events: int = 1024
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """What happens, of these kinds or of all, as it comes. Who does not keep up misses
        events."""
        wanted: dict[type[Event], str] = {
            LoadReport: self._subjects.every_load,
            Progress: self._subjects.every_progress,
            Decision: self._subjects.decisions,
            RequestRecord: self._subjects.requests,
            Transition: self._subjects.transitions,
        }
        sending, receiving = anyio.create_memory_object_stream[Event](queue_events)

        async def follow(kind: type[Event], subject: str) -> None:
            reader: Reader[Event] = Reader(kind)
            async with self._bus.subscribe(subject, queue_messages=queue_events) as messages:
                async for message in messages:
                    try:
                        sending.send_nowait(reader.open(message.data).body)
                    except (Unreadable, anyio.WouldBlock):
                        continue

        async with anyio.create_task_group() as tasks:
            with sending, receiving:
                for kind, subject in wanted.items():
                    if not kinds or kind in kinds:
                        tasks.start_soon(follow, kind, subject)
                yield aiter(receiving)
                tasks.cancel_scope.cancel()

    async def _ask(self, subject: str, data: bytes, whom: str, timeout_s: float = ASK_S) -> bytes:
        try:
            return (await self._bus.request(subject, data, timeout_s=timeout_s)).data
        except NoResponder as error:
            raise NotThere(f"{whom} does not answer; is one running in this cluster?") from error


__all__ = ["Cluster", "Config", "Event", "NotThere", "RequestRefused"]
