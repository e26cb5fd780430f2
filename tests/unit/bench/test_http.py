from __future__ import annotations

import anyio
import pytest
from aiohttp import web

from bench.http import HttpConnection, request

pytestmark = pytest.mark.anyio


async def test_one_connection_carries_one_request_after_the_other() -> None:
    peers: set[object] = set()

    async def echo(asked: web.Request) -> web.Response:
        peers.add(asked.transport)
        return web.Response(status=201, body=await asked.read())

    app = web.Application(client_max_size=1 << 22)
    app.router.add_route("*", "/echo", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        async with await HttpConnection.open("127.0.0.1", port) as connection:
            for body in (b"", b"small", b"x" * 1_000_000):
                assert await connection.ask(request("POST", "/echo", body)) == (201, body)
            status, _ = await connection.ask(request("GET", "/nowhere"))
            assert status == 404
        assert len(peers) == 1
    finally:
        await runner.cleanup()


async def test_a_connection_that_ends_is_an_error() -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)

        async def hang_up(stream: anyio.abc.SocketStream) -> None:
            async with stream:
                await stream.receive()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, hang_up)
            async with await HttpConnection.open("127.0.0.1", port) as connection:
                with pytest.raises(ConnectionError):
                    await connection.ask(request("GET", "/"))
            tasks.cancel_scope.cancel()
