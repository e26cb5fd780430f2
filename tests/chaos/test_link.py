"""Links do to what goes over them what they are told to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from anyio.abc import SocketStream

from controlplane.local.ports import free_ports
from tests.support.link import LOOPBACK, Link, Trouble

pytestmark = pytest.mark.anyio

SOON_S = 0.1


class Echo:
    """What is said to it, and says it again."""

    def __init__(self) -> None:
        self.heard = b""
        self.more = anyio.Event()

    async def serve(self, stream: SocketStream) -> None:
        with suppress(anyio.BrokenResourceError):
            async with stream:
                async for data in stream:
                    self.heard += data
                    self.more.set()
                    await stream.send(data)


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Echo, Link, SocketStream]]:
    """An echo behind a link, and somebody who is connected to it."""
    far, near = free_ports(2)
    echo, link = Echo(), Link(near, far)
    listener = await anyio.create_tcp_listener(local_host=LOOPBACK, local_port=far)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, echo.serve)
        await tasks.start(link.run)
        async with await anyio.connect_tcp(LOOPBACK, near) as stream:
            yield echo, link, stream
        tasks.cancel_scope.cancel()


async def comes_back(stream: SocketStream, word: bytes) -> None:
    with anyio.fail_after(10):
        assert await stream.receive() == word


@pytest.mark.parametrize("trouble", [None, Trouble.SLOW])
async def test_words_come_through(trouble: Trouble | None) -> None:
    async with linked() as (_, link, stream):
        link.be(trouble)
        await stream.send(b"one")
        await comes_back(stream, b"one")


@pytest.mark.parametrize("trouble", [Trouble.HELD, Trouble.DEAF])
async def test_what_is_held_comes_when_it_is_over(trouble: Trouble) -> None:
    async with linked() as (echo, link, stream):
        link.be(trouble)
        await stream.send(b"one")
        if trouble is Trouble.DEAF:
            with anyio.fail_after(10):
                await echo.more.wait()
        with anyio.move_on_after(SOON_S) as waited:
            await stream.receive()
        assert waited.cancelled_caught
        assert (echo.heard == b"one") is (trouble is Trouble.DEAF)
        link.be(None)
        await comes_back(stream, b"one")


async def test_who_is_cut_off_sees_it_and_comes_back_later() -> None:
    async with linked() as (_, link, stream):
        await stream.send(b"one")
        await comes_back(stream, b"one")
        link.be(Trouble.CUT)
        with anyio.fail_after(10), pytest.raises(anyio.BrokenResourceError):
            await stream.receive()
        async with await anyio.connect_tcp(LOOPBACK, link.port) as late:
            with anyio.fail_after(10), pytest.raises(anyio.BrokenResourceError):
                await late.receive()
        link.be(None)
        async with await anyio.connect_tcp(LOOPBACK, link.port) as again:
            await again.send(b"two")
            await comes_back(again, b"two")
