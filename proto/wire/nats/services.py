"""Services on NATS, as the services protocol (ADR-32) wants them: `nats micro ls`, `info`, `stats`.

nats-py has a framework for this; it puts every endpoint into a queue group and measures only how
long a request takes to be handed over, so the few subjects are answered here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import uuid4

import msgspec

from proto.wire.desk import Answer, Desk, open_desks, refusal_headers
from proto.wire.errors import RequestRefused
from proto.wire.nats.client import Take
from proto.wire.nats.connection import Connection, Listener
from proto.wire.ports import NO_HEADERS, Endpoint, Headers, Message, ServiceInfo


class Identity(msgspec.Struct, frozen=True, tag_field="type", tag="io.nats.micro.v1.ping_response"):
    """The answer to PING, and the beginning of the others."""

    name: str
    id: str
    version: str
    metadata: Mapping[str, str]


class EndpointInfo(msgspec.Struct, frozen=True):
    """Where to ask; an empty `queue_group` is none: every replica answers."""

    name: str
    subject: str
    queue_group: str
    metadata: Mapping[str, str] = {}


class Info(Identity, frozen=True, tag="io.nats.micro.v1.info_response"):
    """The answer to INFO."""

    description: str
    endpoints: list[EndpointInfo]


class EndpointStats(msgspec.Struct, frozen=True):
    """Times in nanoseconds."""

    name: str
    subject: str
    queue_group: str
    num_requests: int
    num_errors: int
    last_error: str
    processing_time: int
    average_processing_time: int


class Stats(Identity, frozen=True, tag="io.nats.micro.v1.stats_response"):
    """The answer to STATS; `started` is an RFC 3339 time in UTC."""

    started: str
    endpoints: list[EndpointStats]


@asynccontextmanager
async def serve(
    connection: Connection, service: ServiceInfo, endpoints: Sequence[Endpoint]
) -> AsyncIterator[Sequence[Desk]]:
    """See the port. Requests that are on their way to us when we leave are still answered."""
    async with open_desks(service, endpoints) as desks:
        instance = _Instance(connection, service, desks)
        listeners = [_desk_listener(connection, desk) for desk in desks]
        async with connection.listen(*listeners, *instance.listeners(), drain=True):
            yield desks


class _Instance:
    """One instance of a service, as it shows on the `$SRV` subjects."""

    def __init__(self, connection: Connection, service: ServiceInfo, desks: Sequence[Desk]) -> None:
        self._connection = connection
        self._service = service
        self._desks = desks
        self._id = uuid4().hex
        self._started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def listeners(self) -> list[Listener]:
        """Each verb is asked of all, of all of a name, and of one."""
        name = self._service.name
        verbs: dict[str, Callable[[], Identity]] = {
            "PING": self._identity,
            "INFO": self._info,
            "STATS": self._stats,
        }
        return [
            Listener(f"$SRV.{verb}{whom}", self._answering(answer))
            for verb, answer in verbs.items()
            for whom in ("", f".{name}", f".{name}.{self._id}")
        ]

    def _answering(self, answer: Callable[[], Identity]) -> Take:
        def take(message: Message, reply: str) -> None:
            told = msgspec.json.encode(answer())
            if reply and self._connection.has_room(len(told)):
                self._connection.post(reply, told)

        return take

    def _identity(self) -> Identity:
        service = self._service
        return Identity(service.name, self._id, service.version, service.metadata)

    def _info(self) -> Info:
        service = self._service
        return Info(
            service.name,
            self._id,
            service.version,
            service.metadata,
            service.description,
            [
                EndpointInfo(each.endpoint.name, each.endpoint.subject, each.endpoint.group or "")
                for each in self._desks
            ],
        )

    def _stats(self) -> Stats:
        service = self._service
        return Stats(
            service.name,
            self._id,
            service.version,
            service.metadata,
            self._started,
            [_stats_of(desk) for desk in self._desks],
        )


def _stats_of(desk: Desk) -> EndpointStats:
    endpoint, tally = desk.endpoint, desk.tally
    return EndpointStats(
        endpoint.name,
        endpoint.subject,
        endpoint.group or "",
        tally.requests,
        tally.errors,
        tally.last_error,
        tally.processing_ns,
        tally.processing_ns // max(1, tally.requests),
    )


def _desk_listener(connection: Connection, desk: Desk) -> Listener:
    def take(message: Message, reply: str) -> None:
        desk.take(message, _Way(connection, reply))

    return Listener(desk.endpoint.subject, take, desk.endpoint.group)


class _Way(NamedTuple):
    """Back to who has asked, by the `reply` subject; there is none if that was a plain message."""

    connection: Connection
    reply: str

    def is_free(self) -> bool:
        return self.connection.has_room(0)

    def post(self, answer: Answer) -> None:
        if self.reply:
            data, headers = _as_sent(answer)
            self.connection.post(self.reply, data, headers=headers)

    async def send(self, answer: Answer) -> None:
        if self.reply:
            data, headers = _as_sent(answer)
            await self.connection.publish(self.reply, data, headers=headers)


def _as_sent(answer: Answer) -> tuple[bytes, Headers]:
    if isinstance(answer, RequestRefused):
        return b"", refusal_headers(answer)
    return answer, NO_HEADERS
