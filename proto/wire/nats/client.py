"""nats-py, made to hold on for ever.

Its client is meant to reconnect without end and mostly does. What is overridden here are the ways
in which release 2.16 ends, hangs or leaks instead; each says which, and a contract test breaks
each. These are nats-py's own methods: look here first when it is updated.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import ParseResult

from anyio.lowlevel import checkpoint
from nats import errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport

from proto.wire.ports import NO_HEADERS, Headers, Message

Take = Callable[[Message, str], None]
"""Is handed a message, and where an answer to it goes, "" if nobody wants one. Must not wait."""

FOR_EVER_S = 24 * 3600
SUBSCRIBING = (b"SUB ", b"UNSUB ")
UNBOUNDED_BYTES = sys.maxsize
"""nats-py blocks without a deadline at its own bound; `Connection` keeps ours instead."""
TURN_MESSAGES = 16
"""Handed over before the loop gets a turn: who takes a message may answer it on the spot."""


class SturdyClient(Client):
    """A client that only `close` ends."""

    def __init__(self) -> None:
        super().__init__()
        self._ears: dict[int, list[str]] = {}
        self._takes: dict[int, Take] = {}
        self._handed_over = 0
        self._transport = PromptTransport()  # type: ignore[no-untyped-call]

    async def hang_up(self) -> None:
        """Close, and wait for nobody: what the server has not taken by now is lost."""
        if self._flush_queue is None:
            return  # it never came as far as connecting
        self._pending.clear()
        self._pending_data_size = 0
        await self.close()

    async def settle(self) -> bool:
        """Wait until the server has read all that was sent before; False if the connection was
        lost over it. Without a deadline: the caller has one.

        nats-py writes its PING ahead of what waits to be sent, so that has to leave first.
        """
        await self._flush_pending(force_flush=True)
        await checkpoint()  # it swallows cancellations
        try:
            await self.flush(timeout=FOR_EVER_S)
        except (errors.Error, ConnectionError):  # the latter where the reader has not noticed yet
            return False
        return bool(self.is_connected)

    async def hear(self, subject: str, group: str, take: Take) -> Subscription:
        """Subscribe, and have `take` called where messages are read: nats-py would put each one
        into a queue, from which a task of the subscription would take it, for three times the
        price."""
        subscription = await self.subscribe(subject, queue=group)
        self._takes[subscription._id] = take
        return subscription

    def post(
        self, subject: str, data: bytes, reply: str = "", headers: Headers = NO_HEADERS
    ) -> None:
        """Publish, from where nothing can be awaited. `publish` is a coroutine that never waits, as
        neither what is to be sent nor the flusher's queue has a bound of nats-py's."""
        sending = self.publish(subject, data, reply, dict(headers) if headers else None)
        try:
            sending.send(None)
        except StopIteration:
            return
        sending.close()
        raise AssertionError("nats-py waits where it is not expected to")

    async def stop_routing(self, subscription: Subscription) -> None:
        """Ask the server to send no more; what it has sent already is still handed over."""
        await self._send_unsubscribe(subscription._id)

    async def _attempt_reconnect(self) -> None:
        """An answer that nats-py cannot read would end the attempts.

        It subscribes to everything anew by itself. What else waits to be subscribed would be even
        if it was left meanwhile, and the server would go on routing to nobody.
        """
        self._pending = [each for each in self._pending if not each.startswith(SUBSCRIBING)]
        self._pending_data_size = sum(map(len, self._pending))
        while not self.is_closed:
            try:
                await super()._attempt_reconnect()
            except Exception as error:  # noqa: BLE001 the top of a task that must not end
                await self._error_cb(error)
                await asyncio.sleep(self.options["reconnect_time_wait"])
            else:
                return

    @contextmanager
    def complaints(self) -> Iterator[list[str]]:
        """What the server complains about meanwhile, in lower case."""
        heard: list[str] = []
        self._ears[id(heard)] = heard
        try:
            yield heard
        finally:
            del self._ears[id(heard)]

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        """Whatever a message is like, and whoever takes it does, the reader must go on."""
        take = self._takes.get(sid)
        if take is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        try:
            said = await self._process_headers(headers) if headers else None
            take(Message(subject.decode(), data, said or NO_HEADERS), reply.decode())
        except Exception as error:  # noqa: BLE001
            await self._error_cb(error)
        self._handed_over += 1
        if self._handed_over % TURN_MESSAGES == 0:
            await asyncio.sleep(0)

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._takes.pop(sid, None)
        super()._remove_sub(sid, max_msgs)

    async def _process_err(self, err_msg: str) -> None:
        """Most errors would close the client for good: an expired login, a limit of the server.
        Where one ends a connection the server closes it, and that is a reason to come back."""
        for heard in self._ears.values():
            heard.append(err_msg)
        await self._error_cb(errors.Error(f"the server said {err_msg}"))

    async def _process_pong(self) -> None:
        """The answer to a flush that was cancelled meanwhile would end the reading task."""
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()


class PromptTransport(TcpTransport):
    """TCP that lets go at once.

    A graceful close waits until everything is written, which a frozen server never lets happen:
    nats-py would sit in `wait_closed` instead of reconnecting (its issue 671).
    """

    def __bool__(self) -> bool:
        return True  # or the client makes itself a transport of its own

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        self.close()  # a handshake that failed leaves its socket open
        await super().connect(uri, buffer_size, connect_timeout)

    def close(self) -> None:
        if self._io_writer is not None:
            self._io_writer.transport.abort()

    async def readline(self) -> bytes:
        try:
            return bytes(await super().readline())  # type: ignore[no-untyped-call]
        except ValueError as error:  # a line without end: whoever answers there, it is not NATS
            raise errors.ProtocolError from error

    def write(self, payload: bytes) -> None:
        self.writelines([payload])

    def writelines(self, payload: Sequence[bytes]) -> None:
        try:
            super().writelines(payload)  # type: ignore[no-untyped-call]
        except RuntimeError as error:  # how uvloop says that the connection is gone
            raise ConnectionResetError(str(error)) from error
