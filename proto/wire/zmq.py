"""The ZeroMQ carrier of the `Frames` port.

Plain sockets, read without blocking, and waited for through their file descriptor: no event loop
is known by name here. ZeroMQ signals that descriptor on an edge and not on a level, so what can
be read is always asked of the socket (`EVENTS`) before and after a wait.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

import anyio
import zmq
from anyio.lowlevel import checkpoint

from proto.wire.errors import FramesError
from proto.wire.inbox import Inbox

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]

READ_MESSAGES = 256
"""Read at one go before others get a turn."""
RECONNECT_MS, RECONNECT_MS_MAX = 100, 2_000
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 5_000, 15_000
"""A peer that vanished without closing is noticed, and connected to anew."""


class ZmqFrames:
    """A `Frames` port; one for a process. `close` it after the last subscription."""

    def __init__(self) -> None:
        self._context: Context = zmq.Context()

    def close(self) -> None:
        """Let go of ZeroMQ's threads; waits for nobody."""
        self._context.destroy(linger=0)

    def subscribe(self, endpoint: str, *, queue_messages: int = 65_536) -> _Subscription:
        """Follow a PUB socket; see the port. A malformed endpoint is a ValueError."""
        return _Subscription(self._context, endpoint, queue_messages)

    async def ask(
        self, endpoint: str, request: Sequence[bytes], *, silence_s: float
    ) -> AsyncGenerator[Sequence[bytes], None]:
        """Ask a ROUTER socket; see the port. Closing the generator closes the socket."""
        with _connected(self._context, zmq.DEALER, endpoint) as socket:
            socket.send_multipart(request, zmq.NOBLOCK)
            while True:
                with anyio.move_on_after(silence_s) as waiting:
                    await _readable(socket)
                if waiting.cancelled_caught:
                    raise FramesError(f"{endpoint} was silent for {silence_s:g} s")
                for frames in _read(socket):
                    yield frames
                await checkpoint()


class _Subscription:
    """Reads its socket all the time, so that what a slow reader loses is counted here.

    While the event loop is held up ZeroMQ keeps as many messages again; what it loses beyond is
    lost at the publisher, and shows only as a hole in the publisher's numbers.
    """

    def __init__(self, context: Context, endpoint: str, queue_messages: int) -> None:
        self._queue = Inbox[Sequence[bytes]](endpoint, queue_messages)
        self._connection = _connected(context, zmq.SUB, endpoint, queue_messages)
        self._tasks = anyio.create_task_group()

    async def __aenter__(self) -> Inbox[Sequence[bytes]]:
        socket = self._connection.__enter__()
        socket.subscribe(b"")
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._pump, socket)
        return self._queue

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            # The pump never fails, so the body's error is not the task group's to wrap.
            self._tasks.cancel_scope.cancel()
            await self._tasks.__aexit__(None, None, None)
        finally:
            self._connection.__exit__(None, None, None)

    async def _pump(self, socket: Socket) -> None:
        while True:
            await _readable(socket)
            for frames in _read(socket):
                self._queue.offer(frames)
            await checkpoint()


@contextmanager
def _connected(
    context: Context, kind: int, endpoint: str, queue_messages: int = 0
) -> Iterator[Socket]:
    """A socket, open as long as the context is; `queue_messages` 0 sets no bound."""
    socket = context.socket(kind)
    try:
        socket.set(zmq.RCVHWM, queue_messages)
        socket.set(zmq.RECONNECT_IVL, RECONNECT_MS)
        socket.set(zmq.RECONNECT_IVL_MAX, RECONNECT_MS_MAX)
        socket.set(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.set(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise ValueError(f"not a ZeroMQ endpoint to connect to: {endpoint!r}") from error
        yield socket
    finally:
        socket.close(linger=0)


async def _readable(socket: Socket) -> None:
    while not int(socket.get(zmq.EVENTS)) & zmq.POLLIN:
        await anyio.wait_readable(socket.fileno())


def _read(socket: Socket) -> Iterator[Sequence[bytes]]:
    """What has arrived, up to `READ_MESSAGES`."""
    for _ in range(READ_MESSAGES):
        try:
            yield socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
