"""The bus on NATS. Nothing outside this module knows nats-py.

nats-py runs on asyncio and keeps tasks of its own; here they are confined between `__aenter__` and
`__aexit__`. It reconnects for ever and subscribes again by itself.
"""

from __future__ import annotations

import logging
import ssl
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import anyio
import msgspec
import nats
import nats.errors
import nats.js.errors
import nats.micro
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, RetentionPolicy, StreamConfig
from nats.micro.request import Request

from proto.wire.errors import (
    BusError,
    BusTimeout,
    BusUnavailable,
    NoResponder,
    RequestRefused,
    StreamMissing,
)
from proto.wire.ports import (
    NO_HEADERS,
    Delivery,
    Endpoint,
    Headers,
    Message,
    ServiceInfo,
    StreamSpec,
    Subscription,
)

log = logging.getLogger(__name__)

PENDING_BYTES_MAX = 64 << 20
FETCH_WAIT_S = 2.0
CLOSE_S = 3.0
RETRY_S = 1
ERROR_HEADER = "Nats-Service-Error"
ERROR_CODE_HEADER = "Nats-Service-Error-Code"


class NatsSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the servers are and who we are. Secrets never show in `repr`."""

    servers: tuple[str, ...] = ("nats://127.0.0.1:4222",)
    name: str = "tokenplane"
    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials: Path | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    connect_s: float = 10.0
    """How long the first connection may take; later ones are tried for ever."""
    ping_interval_s: int = 4
    """A server that answers two pings in a row with silence is taken for dead."""
    outgoing_bytes: int = 8 << 20
    """What may wait to be sent while disconnected."""

    def __repr__(self) -> str:
        return f"NatsSettings(servers={self.servers!r}, name={self.name!r})"


class NatsBus:
    """The `Bus` port on a NATS server or cluster; an async context manager."""

    def __init__(self, settings: NatsSettings) -> None:
        self._settings = settings
        self._client = Client()

    async def __aenter__(self) -> NatsBus:
        settings = self._settings
        try:
            with anyio.fail_after(settings.connect_s):
                await self._connect()
        except (TimeoutError, nats.errors.Error, OSError) as error:
            await self._close()
            raise BusUnavailable(
                f"no NATS server at {', '.join(settings.servers)} within {settings.connect_s:g} s "
                f"({error or 'timeout'}); is it running, and are address and credentials right?"
            ) from error
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    @property
    def connected(self) -> bool:
        return bool(self._client.is_connected)

    async def publish(self, subject: str, data: bytes, *, headers: Headers = NO_HEADERS) -> None:
        try:
            await self._client.publish(subject, data, headers=dict(headers) or None)
        except nats.errors.OutboundBufferLimitError as error:
            raise BusUnavailable("not connected, and the outgoing buffer is full") from error
        except nats.errors.Error as error:
            raise _translated(error) from error

    @asynccontextmanager
    async def subscribe(
        self, subject: str, *, queue_messages: int = 65_536, group: str | None = None
    ) -> AsyncIterator[Subscription]:
        inbox = _Inbox(queue_messages)
        subscription = await self._subscribe(subject, group, inbox)
        try:
            yield inbox
        finally:
            await self._unsubscribe(subscription)
            if inbox.dropped:
                log.warning("%s: %d messages were dropped, queue full", subject, inbox.dropped)

    async def request(
        self, subject: str, data: bytes, *, timeout_s: float, headers: Headers = NO_HEADERS
    ) -> Message:
        try:
            reply = await self._client.request(
                subject, data, timeout=timeout_s, headers=dict(headers) or None
            )
        except nats.errors.NoRespondersError as error:
            raise NoResponder(f"nobody serves {subject}") from error
        except nats.errors.TimeoutError as error:
            raise BusTimeout(f"no answer on {subject} within {timeout_s:g} s") from error
        except nats.errors.Error as error:
            raise _translated(error) from error
        message = _as_message(reply)
        if ERROR_CODE_HEADER in message.headers:
            raise RequestRefused(
                int(message.headers[ERROR_CODE_HEADER]), message.headers.get(ERROR_HEADER, "")
            )
        return message

    @asynccontextmanager
    async def serve(
        self, service: ServiceInfo, endpoints: Sequence[Endpoint]
    ) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            try:
                micro = await nats.micro.add_service(
                    self._client,
                    name=service.name,
                    version=service.version,
                    description=service.description,
                    metadata=dict(service.metadata),
                )
            except nats.errors.Error as error:
                raise _translated(error) from error
            try:
                for endpoint in endpoints:
                    await micro.add_endpoint(
                        name=endpoint.name,
                        subject=endpoint.subject,
                        queue_group=endpoint.group or "",
                        handler=_Desk(endpoint, tasks).take,
                    )
                yield
            finally:
                with anyio.move_on_after(CLOSE_S, shield=True):
                    await micro.stop()

    async def ensure_stream(self, spec: StreamSpec, *, timeout_s: float = 10.0) -> None:
        config = StreamConfig(
            name=spec.name,
            subjects=list(spec.subjects),
            retention=RetentionPolicy.LIMITS,
            max_age=spec.max_age_s,
            max_bytes=spec.max_bytes,
        )
        manager = self._client.jsm(timeout=timeout_s)
        try:
            with anyio.fail_after(timeout_s):
                try:
                    await manager.update_stream(config)
                except nats.js.errors.NotFoundError:
                    await manager.add_stream(config)
        except (nats.errors.NoRespondersError, nats.js.errors.ServiceUnavailableError) as error:
            raise StreamMissing(
                "this NATS server has no JetStream; start nats-server with --jetstream"
            ) from error
        except nats.js.errors.APIError as error:
            raise StreamMissing(f"stream {spec.name}: {error.description}") from error
        except (TimeoutError, nats.errors.Error) as error:
            raise BusUnavailable(f"stream {spec.name}: no answer from JetStream") from error

    async def append(
        self, subject: str, data: bytes, *, timeout_s: float, headers: Headers = NO_HEADERS
    ) -> int:
        try:
            with anyio.fail_after(timeout_s):
                ack = await self._client.jetstream().publish(
                    subject, data, timeout=timeout_s, headers=dict(headers) or None
                )
        except nats.js.errors.NoStreamResponseError as error:
            raise StreamMissing(f"no stream keeps {subject}") from error
        except (TimeoutError, nats.errors.TimeoutError) as error:
            raise BusTimeout(f"{subject} was not stored within {timeout_s:g} s") from error
        except nats.errors.Error as error:
            raise _translated(error) from error
        return int(ack.seq)

    @asynccontextmanager
    async def consume(
        self, stream: str, *, durable: str | None = None, queue_messages: int = 256
    ) -> AsyncIterator[AsyncIterator[Delivery]]:
        config = ConsumerConfig(
            ack_policy=AckPolicy.EXPLICIT,
            deliver_policy=DeliverPolicy.ALL,
            max_ack_pending=queue_messages,
            ack_wait=30.0,
        )
        try:
            pull = await self._client.jetstream().pull_subscribe(
                "", durable=durable, stream=stream, config=config
            )
        except nats.js.errors.NotFoundError as error:
            raise StreamMissing(f"there is no stream {stream}") from error
        except nats.errors.Error as error:
            raise _translated(error) from error
        try:
            yield _deliveries(pull, queue_messages)
        finally:
            await self._unsubscribe(pull)

    async def _connect(self) -> None:
        settings = self._settings
        await self._client.connect(
            servers=list(settings.servers),
            name=settings.name,
            user=settings.user,
            password=settings.password,
            token=settings.token,
            user_credentials=str(settings.credentials) if settings.credentials else None,
            tls=_tls(settings),
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RETRY_S,
            connect_timeout=2,
            ping_interval=settings.ping_interval_s,
            max_outstanding_pings=2,
            pending_size=settings.outgoing_bytes,
            error_cb=_on_error,
            disconnected_cb=_on_disconnected,
            reconnected_cb=_on_reconnected,
        )

    async def _close(self) -> None:
        with anyio.move_on_after(CLOSE_S, shield=True):
            await self._client.close()

    async def _subscribe(self, subject: str, group: str | None, inbox: _Inbox) -> Any:
        try:
            subscription = await self._client.subscribe(
                subject,
                queue=group or "",
                cb=inbox.put,
                pending_msgs_limit=2 * inbox.limit,
                pending_bytes_limit=PENDING_BYTES_MAX,
            )
            await self._client.flush()  # once entered, every later message is seen
        except nats.errors.Error as error:
            raise _translated(error) from error
        return subscription

    async def _unsubscribe(self, subscription: Any) -> None:
        with anyio.move_on_after(CLOSE_S, shield=True):
            try:
                await subscription.unsubscribe()
            except nats.errors.Error as error:
                log.debug("unsubscribing from a connection that is gone: %s", error)


class _Inbox:
    """Bounded queue between nats-py's callback and the reader; the newest is dropped when full."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.dropped = 0
        self._waiting: deque[Message] = deque()
        self._arrived = anyio.Event()

    async def put(self, raw: Msg) -> None:
        if len(self._waiting) >= self.limit:
            self.dropped += 1
            return
        self._waiting.append(_as_message(raw))
        self._arrived.set()

    async def __aiter__(self) -> AsyncIterator[Message]:
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            self._arrived = anyio.Event()
            await self._arrived.wait()


class _Desk:
    """Takes the requests of one endpoint; at most `concurrency` are worked on at once."""

    def __init__(self, endpoint: Endpoint, tasks: anyio.abc.TaskGroup) -> None:
        self._endpoint = endpoint
        self._tasks = tasks
        self._slots = anyio.CapacityLimiter(endpoint.concurrency)
        self._open = 0

    async def take(self, request: Request) -> None:
        if self._open >= self._endpoint.concurrency + self._endpoint.queue_messages:
            await request.respond_error("503", f"{self._endpoint.name} has too many requests")
            return
        self._open += 1
        self._tasks.start_soon(self._answer, request)

    async def _answer(self, request: Request) -> None:
        message = Message(request.subject, request.data, request.headers or NO_HEADERS)
        try:
            async with self._slots:
                try:
                    await request.respond(await self._endpoint.handle(message))
                except RequestRefused as refusal:
                    await request.respond_error(str(refusal.code), refusal.description)
                except nats.errors.Error as error:
                    log.warning("%s: the answer was not sent: %s", self._endpoint.name, error)
                except Exception:
                    log.exception("%s: a handler failed", self._endpoint.name)
                    await request.respond_error("500", "internal error")
        finally:
            self._open -= 1


class _Delivered:
    """One message of a stream."""

    def __init__(self, raw: Msg) -> None:
        self._raw = raw
        self.message = _as_message(raw)
        self.sequence = int(raw.metadata.sequence.stream)

    async def ack(self) -> None:
        try:
            await self._raw.ack()
        except nats.errors.Error as error:
            raise _translated(error) from error


async def _deliveries(pull: Any, batch: int) -> AsyncIterator[Delivery]:
    while True:
        try:
            fetched = await pull.fetch(min(batch, 100), timeout=FETCH_WAIT_S)
        except nats.errors.TimeoutError:
            continue
        except nats.errors.Error as error:
            log.warning("reading a stream: %s; trying again", error)
            await anyio.sleep(RETRY_S)
            continue
        for raw in fetched:
            yield _Delivered(raw)


def _as_message(raw: Msg) -> Message:
    return Message(raw.subject, raw.data, raw.headers or NO_HEADERS)


def _translated(error: Exception) -> BusError:
    return BusUnavailable(str(error) or type(error).__name__)


def _tls(settings: NatsSettings) -> ssl.SSLContext | None:
    if settings.ca is None and settings.cert is None:
        return None
    context = ssl.create_default_context(cafile=settings.ca)
    if settings.cert is not None:
        context.load_cert_chain(settings.cert, settings.key)
    return context


async def _on_error(error: Exception) -> None:
    # Our own inboxes are shorter than nats-py's queues, so a slow consumer is counted there.
    log.warning("NATS: %s", str(error) or type(error).__name__)


async def _on_disconnected() -> None:
    log.warning("NATS: disconnected; reconnecting")


async def _on_reconnected() -> None:
    log.info("NATS: connected again")
