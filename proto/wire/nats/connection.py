"""One connection to NATS and everything that may go wrong with it, in the words of the port.

nats-py runs on asyncio and keeps tasks of its own; they live between `open` and `close`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import uniform
from typing import NamedTuple, NoReturn

import anyio
import nats.errors
from anyio.lowlevel import checkpoint
from nats.aio.subscription import Subscription

from proto.wire.errors import BusUnavailable
from proto.wire.nats.answers import Answers
from proto.wire.nats.client import UNBOUNDED_BYTES, SturdyClient, Take
from proto.wire.nats.settings import NatsSettings
from proto.wire.ports import NO_HEADERS, Headers, Message

log = logging.getLogger(__name__)

DIAL_S = 2.0
"""For one attempt: TCP, TLS and the greeting."""
RETRY_S_MIN, RETRY_S_MAX = 0.2, 0.6
"""Between attempts; each connection keeps a pace of its own, lest a fleet return at one beat."""
PROBLEMS = 8
"""Different ones are told, until the connection stands again."""
TURN_BYTES = 64 << 10
"""So much unsent, and the sender lets the loop send."""


class Listener(NamedTuple):
    """A subscription to be."""

    subject: str
    take: Take
    group: str | None = None


class Connection:
    """Opened once, closed once; in between it comes back by itself, and tells `on_return`."""

    def __init__(self, settings: NatsSettings) -> None:
        self.settings = settings
        self.on_return: set[Callable[[], None]] = set()
        self._client: SturdyClient | None = None
        self._answers: Answers | None = None
        self._turn_bytes = min(TURN_BYTES, settings.outgoing_bytes)
        self._up = anyio.Event()
        self._closing = False
        self._problems: list[str] = []

    @property
    def client(self) -> SturdyClient:
        if self._client is None:
            raise RuntimeError("the bus is not open: use it inside `async with`")
        return self._client

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.is_connected

    async def open(self) -> None:
        """Connect for the first time. Raises `BusUnavailable` after `connect_s`."""
        settings = self.settings
        settings.check_credentials()
        try:
            with anyio.fail_after(settings.connect_s):
                while not await self._dial():
                    pass
        except TimeoutError as error:
            raise BusUnavailable(
                f"no NATS server let us in at {settings.addresses} within {settings.connect_s:g} s"
                f" ({'; '.join(self._problems) or 'no answer'}): start one (`nats-server"
                " --jetstream`), or check the address and the credentials"
            ) from error
        self._up.set()

    async def close(self) -> None:
        """Send what waits, as far as the server takes it within a deadline, and be gone."""
        client = self.client
        self._closing = True
        self._up.set()  # whoever waits for the connection shall know
        with anyio.CancelScope(shield=True):
            if client.is_connected:
                with anyio.move_on_after(self.settings.call_s):
                    await client.settle()
            if client.pending_data_size:
                log.warning("NATS: %d bytes were never sent", client.pending_data_size)
            await client.hang_up()
            await checkpoint()  # nats-py cancels its tasks but does not see them end

    async def until_up(self, timeout_s: float = math.inf) -> float:
        """Wait for the connection; returns the seconds left.

        Raises `BusUnavailable`: then nothing was sent, and the caller may safely try again.
        """
        client = self.client
        if client.is_connected:
            return timeout_s
        until_s = anyio.current_time() + timeout_s
        with anyio.move_on_after(timeout_s):
            while not client.is_connected:
                if self._closing:
                    raise RuntimeError("the bus is closed")
                await self._up.wait()
            return max(0.0, until_s - anyio.current_time())
        raise BusUnavailable(f"not connected to {self.settings.addresses} for {timeout_s:g} s")

    async def publish(
        self, subject: str, data: bytes, *, reply: str = "", headers: Headers = NO_HEADERS
    ) -> None:
        """Send, or buffer up to `outgoing_bytes`, then `BusUnavailable`."""
        if not self.has_room(len(data)):
            await self._make_room(len(data), self.settings.call_s)
        self.post(subject, data, reply=reply, headers=headers)

    def has_room(self, size_bytes: int) -> bool:
        """Whether `publish` would not have to wait."""
        return self.client.pending_data_size + size_bytes <= self._turn_bytes

    def post(
        self, subject: str, data: bytes, *, reply: str = "", headers: Headers = NO_HEADERS
    ) -> None:
        """`publish` for who cannot wait, and has seen that there is room."""
        try:
            self.client.post(subject, data, reply, headers)
        except nats.errors.Error as error:
            _raise(error, subject)

    async def ask(
        self, subject: str, data: bytes, timeout_s: float, headers: Headers = NO_HEADERS
    ) -> Message:
        """The first answer, whatever it says. Raises `NoResponder`, `BusTimeout`,
        `BusUnavailable`."""
        assert self._answers is not None, "the bus is open"
        if not (self.connected and self.has_room(len(data))):
            until_s = anyio.current_time() + timeout_s
            await self._make_room(len(data), await self.until_up(timeout_s))
            timeout_s = max(0.0, until_s - anyio.current_time())
        try:
            return await self._answers.ask(subject, data, timeout_s, headers)
        except nats.errors.Error as error:
            _raise(error, subject)

    @asynccontextmanager
    async def listen(
        self, *listeners: Listener, drain: bool = False
    ) -> AsyncIterator[list[Subscription]]:
        """Subscribe; once entered, the server knows. With `drain` what it has routed to us by
        the time of leaving is still handed over. A subscription that it does not grant is
        `BusUnavailable` too."""
        await self.until_up(self.settings.call_s)
        client = self.client
        subscriptions: list[Subscription] = []
        try:
            with client.complaints() as complaints:
                for listener in listeners:
                    subscription = await _subscribe(client, listener)
                    subscriptions.append(subscription)  # one by one: each is undone below
                await self._round_trip(self.settings.call_s)
            _check_granted(listeners, complaints)
            yield subscriptions
            if drain and self.connected:
                await self._drain(client, subscriptions)
        finally:
            with anyio.CancelScope(shield=True):
                for subscription in subscriptions:
                    await _unsubscribe(subscription)
                await checkpoint()  # for their tasks to end

    async def _dial(self) -> bool:
        """Try until connected. False if nats-py only believes it is, as it does when a server
        says anything between the greeting and its first PONG."""
        settings, client = self.settings, SturdyClient()
        try:
            await client.connect(
                servers=list(settings.servers),
                name=settings.name,
                user=settings.user,
                password=settings.password,
                token=settings.token,
                user_credentials=settings.credentials,
                nkeys_seed=str(settings.nkey_seed) if settings.nkey_seed else None,
                tls=settings.tls_context(),
                inbox_prefix=settings.inbox,
                no_echo=not settings.echo,
                max_reconnect_attempts=-1,
                reconnect_time_wait=uniform(RETRY_S_MIN, RETRY_S_MAX),  # type: ignore[arg-type]
                connect_timeout=DIAL_S,  # type: ignore[arg-type]
                ping_interval=settings.ping_interval_s,  # type: ignore[arg-type]
                pending_size=UNBOUNDED_BYTES,
                flusher_queue_size=0,
                error_cb=self._on_error,
                disconnected_cb=self._on_disconnected,
                reconnected_cb=self._on_reconnected,
            )
        except ModuleNotFoundError as error:
            raise RuntimeError("nkeys and credentials files need nats-py[nkeys]") from error
        finally:
            if not client.is_connected:
                with anyio.CancelScope(shield=True):
                    await client.hang_up()
        if not client.is_connected:
            await anyio.sleep(RETRY_S_MIN)
            return False
        self._client, self._answers = client, Answers(client)
        return True

    async def _make_room(self, size_bytes: int, wait_s: float) -> None:
        """Let the loop send; wait for the server once the buffer is full."""
        client = self.client
        await checkpoint()
        waiting_bytes = client.pending_data_size
        if not waiting_bytes or waiting_bytes + size_bytes <= self.settings.outgoing_bytes:
            return
        if client.is_connected:
            await self._round_trip(wait_s)
        elif not self._closing:
            raise BusUnavailable(
                f"not connected to {self.settings.addresses}, and {waiting_bytes} bytes wait"
            )

    async def _round_trip(self, wait_s: float) -> None:
        """Once back, the server has read everything that was sent before."""
        with anyio.move_on_after(wait_s):
            if await self.client.settle():
                return
        raise BusUnavailable(f"{self.settings.addresses} did not answer within {wait_s:g} s")

    async def _drain(self, client: SturdyClient, subscriptions: list[Subscription]) -> None:
        for subscription in subscriptions:
            await client.stop_routing(subscription)
        try:
            await self._round_trip(self.settings.call_s)
        except BusUnavailable as error:
            log.warning("leaving without what was still on its way: %s", error)

    async def _on_error(self, error: Exception) -> None:
        """Say each problem once, not at every attempt."""
        problem = str(error) or type(error).__name__
        if problem not in self._problems and len(self._problems) < PROBLEMS and not self._closing:
            log.warning("NATS: %s", problem)
            self._problems.append(problem)

    async def _on_disconnected(self) -> None:
        if not self._closing:
            log.warning("NATS: the connection to %s is lost", self.settings.addresses)
            if self._up.is_set():
                self._up = anyio.Event()

    async def _on_reconnected(self) -> None:
        self._problems.clear()
        log.info("NATS: connected to %s again", self.settings.addresses)
        self._up.set()
        for returned in tuple(self.on_return):
            returned()


async def _subscribe(client: SturdyClient, listener: Listener) -> Subscription:
    try:
        return await client.hear(listener.subject, listener.group or "", listener.take)
    except nats.errors.Error as error:
        _raise(error, listener.subject)


def _check_granted(listeners: Sequence[Listener], complaints: Sequence[str]) -> None:
    for complaint in complaints:
        ours = any(f'"{listener.subject.lower()}"' in complaint for listener in listeners)
        if "subscription" in complaint and (ours or "maximum" in complaint):
            raise BusUnavailable(f"the server said {complaint}")


async def _unsubscribe(subscription: Subscription) -> None:
    try:
        await subscription.unsubscribe()
    except nats.errors.Error as error:
        log.debug("unsubscribing from a connection that is closed: %s", error)


def _raise(error: nats.errors.Error, what: str) -> NoReturn:
    """Misuse is a ValueError or RuntimeError, everything else the world's fault."""
    match error:
        case (
            nats.errors.BadSubjectError()
            | nats.errors.BadHeaderError()
            | nats.errors.MaxPayloadError()
        ):
            raise ValueError(f"{what}: {error}") from error
        case nats.errors.ConnectionClosedError() | nats.errors.ConnectionDrainingError():
            raise RuntimeError("the bus is closed") from error
        case _:
            raise BusUnavailable(f"{what}: {error}") from error
