"""What the contract's tests share: which carriers there are, and how to wait."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import anyio
import msgspec
import pytest
from anyio.abc import SocketAttribute, SocketStream

from proto.wire.errors import BusTimeout, NoResponder
from proto.wire.memory.bus import MemoryHub
from proto.wire.nats.settings import NatsSettings
from proto.wire.ports import Bus, Endpoint, Handler, ServiceInfo
from tests.support.nats_server import NatsServer

DEADLINE_S = 15.0
POLL_S = 0.005
SILENCE_S = 0.05
"""So long nothing comes before we believe that nothing will."""
ACK_WAIT_S = 0.6
"""For tests in which an unacknowledged message has to come again by itself."""

ECHO = ServiceInfo("echo", "1.2.3", "Says it again", {"zone": "a"})

Connect = Callable[[str], AbstractAsyncContextManager[Bus]]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Carrier:
    """A carrier on an event loop."""

    kind: str
    loop: str

    @property
    def backend(self) -> tuple[str, dict[str, bool]]:
        if self.loop == "trio":
            return "trio", {}
        return "asyncio", {"use_uvloop": self.loop == "uvloop"}

    def __str__(self) -> str:
        return f"{self.kind}-{self.loop}"


ON_MEMORY = [Carrier("memory", "asyncio"), Carrier("memory", "trio")]
ON_NATS = [Carrier("nats", "asyncio"), Carrier("nats", "uvloop")]
NEAR = [Carrier("near", "asyncio"), Carrier("near", "uvloop")]
EVERY_CARRIER = ON_MEMORY + ON_NATS + NEAR

memory_only = pytest.mark.parametrize("carrier", ON_MEMORY, ids=str, indirect=True)
nats_only = pytest.mark.parametrize("carrier", ON_NATS, ids=str, indirect=True)


def quick_settings(server: NatsServer, **changes: object) -> NatsSettings:
    """Settings that notice everything soon."""
    quick = NatsSettings(
        servers=(server.url,),
        connect_s=5.0,
        call_s=2.0,
        ping_interval_s=0.25,
    )
    return msgspec.structs.replace(quick, **changes)


def memory_connect(hub: MemoryHub) -> Connect:
    @asynccontextmanager
    async def connect(name: str) -> AsyncGenerator[Bus, None]:
        yield hub.connect(name)

    return connect


def echo(handle: Handler | None = None, **changes: object) -> Endpoint:
    """An endpoint on the subject `echo`."""

    async def say_again(message: object) -> bytes:
        return getattr(message, "data", b"")

    return msgspec.structs.replace(Endpoint("echo", "echo", handle or say_again), **changes)


async def take(source: AsyncIterable[Item], count: int) -> list[Item]:
    """The next `count`, within a deadline."""
    items = aiter(source)
    with anyio.fail_after(DEADLINE_S):
        return [await anext(items) for _ in range(count)]


async def nothing_comes(source: AsyncIterable[Item]) -> bool:
    """Whether it stays silent for a moment."""
    with anyio.move_on_after(SILENCE_S) as waiting:
        await anext(aiter(source))
    return waiting.cancelled_caught


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, within a deadline."""
    with anyio.fail_after(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 what is waited for has no event to tell of it
            await anyio.sleep(POLL_S)


async def nobody_serves(bus: Bus, subject: str) -> None:
    """Wait until the server knows; what is asked before gets no answer."""
    with anyio.fail_after(DEADLINE_S), pytest.raises(NoResponder):
        while True:
            with suppress(BusTimeout):
                await bus.request(subject, b"", timeout_s=POLL_S)


@asynccontextmanager
async def stranger(
    handle: Callable[[SocketStream], Awaitable[None]], port: int = 0
) -> AsyncGenerator[int, None]:
    """Somebody who is no NATS server listens; yields the port."""

    async def once(stream: SocketStream) -> None:
        async with stream:
            with suppress(anyio.BrokenResourceError):  # the other side has heard enough
                await handle(stream)

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port) as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, once)
        yield int(listener.extra(SocketAttribute.local_port))
        tasks.cancel_scope.cancel()
