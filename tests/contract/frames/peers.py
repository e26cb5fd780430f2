"""The other side of the port: an engine's two sockets, real ones and ones in memory."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import anyio
import zmq

from controlplane.local.ports import free_ports
from proto.wire.memory.frames import Answer, MemoryFrames
from proto.wire.zmq import ZmqFrames

DEADLINE_S, BIND_RETRY_S = 10.0, 0.01
EVENTS, REPLAY = "memory://events", "memory://replay"


class Peer(Protocol):
    """An engine as the contract needs it. Its endpoints are known before it is there."""

    @property
    def frames(self) -> MemoryFrames | ZmqFrames: ...

    events: str
    replay: str

    def up(self, answer: Answer) -> AbstractAsyncContextManager[None]:
        """Bind both sockets."""

    async def heard_by(self, subscribers: int) -> None:
        """Wait until so many have subscribed since `up`."""

    def publish(self, frames: Sequence[bytes]) -> None: ...


class MemoryPeer:
    def __init__(self) -> None:
        self.frames = MemoryFrames()
        self.events, self.replay = EVENTS, REPLAY

    @asynccontextmanager
    async def up(self, answer: Answer) -> AsyncGenerator[None, None]:
        with self.frames.respond(REPLAY, answer):
            yield

    async def heard_by(self, subscribers: int) -> None:
        """At once: a subscription in memory is there when its context is entered."""

    def publish(self, frames: Sequence[bytes]) -> None:
        self.frames.publish(EVENTS, frames)


class ZmqPeer:
    def __init__(self, frames: ZmqFrames) -> None:
        self.frames = frames
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self.events = free_endpoint()
        self.replay = free_endpoint()

    @asynccontextmanager
    async def up(self, answer: Answer) -> AsyncGenerator[None, None]:
        # XPUB tells who subscribes, so that no test has to guess when a subscription is there.
        self._xpub = await self._bind(zmq.XPUB, self.events)
        self._xpub.set(zmq.XPUB_VERBOSE, 1)  # not only of the first subscriber
        router = await self._bind(zmq.ROUTER, self.replay)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_serve, router, answer)
                yield
                tasks.cancel_scope.cancel()
        finally:
            self._xpub.close(linger=0)
            router.close(linger=0)

    async def heard_by(self, subscribers: int) -> None:
        with anyio.fail_after(DEADLINE_S):
            for _ in range(subscribers):
                while not (await _receive(self._xpub))[0].startswith(b"\x01"):
                    pass  # somebody has left

    def publish(self, frames: Sequence[bytes]) -> None:
        self._xpub.send_multipart(frames)

    async def _bind(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        bound = self._context.socket(kind)
        bound.set(zmq.SNDHWM, 0)
        with anyio.fail_after(DEADLINE_S):
            while True:
                try:
                    bound.bind(endpoint)
                except zmq.ZMQError as error:
                    # ZeroMQ frees a closed socket's port in its own time.
                    assert error.errno == errno.EADDRINUSE
                    await anyio.sleep(BIND_RETRY_S)
                else:
                    return bound


async def _serve(router: zmq.Socket[bytes], answer: Answer) -> None:
    while True:
        caller, *request = await _receive(router)
        for reply in answer(request):
            router.send_multipart([caller, *reply])


async def _receive(socket: zmq.Socket[bytes]) -> list[bytes]:
    while not int(socket.get(zmq.EVENTS)) & zmq.POLLIN:
        await anyio.wait_readable(socket.fileno())
    return socket.recv_multipart(zmq.NOBLOCK)


def free_endpoint() -> str:
    """A loopback address that nobody listens on."""
    (port,) = free_ports(1)
    return f"tcp://127.0.0.1:{port}"


def no_answer(request: Sequence[bytes]) -> Sequence[Sequence[bytes]]:
    """A ROUTER that keeps silent."""
    del request
    return ()


MakePeer = Callable[[], Peer]
