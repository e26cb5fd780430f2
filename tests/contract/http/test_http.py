"""What every carrier of the `Http` port promises, against an origin that can misbehave."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, cast

import anyio
import pytest
from aiohttp import web

from controlplane.local.ports import free_ports
from proto.wire.errors import HttpBroken, HttpTimeout, HttpTooLong, HttpUnreachable
from proto.wire.http import HttpClient
from proto.wire.http.client import KEEP_ALIVE_RACE_S
from proto.wire.memory.http import Answer, MemoryHttp, Request
from proto.wire.ports import Http, HttpTimeouts

pytestmark = pytest.mark.anyio

CARRIERS = [("asyncio", "memory"), ("trio", "memory"), ("asyncio", "httptools")]
PATIENT = HttpTimeouts(2.0, 5.0, 5.0)
IMPATIENT = HttpTimeouts(2.0, 0.3, 0.3)

OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok"


class World:
    """A client, an origin's URL, and what the origin saw."""

    def __init__(self, http: Http, url: str) -> None:
        self.http = http
        self.url = url
        self.left_early = anyio.Event()


async def body_of(path: str, request: bytes, world: World) -> AsyncGenerator[bytes]:
    """The origin's answers, the same for every carrier."""
    if path == "/echo":
        yield request
        return
    yield b"one,"
    if path == "/break":
        raise HttpBroken("the origin breaks off")
    try:
        if path == "/stall":
            await anyio.sleep(30)
    except anyio.get_cancelled_exc_class():
        world.left_early.set()
        raise
    except GeneratorExit:
        world.left_early.set()
        raise
    yield b"two"


@pytest.fixture(params=CARRIERS, ids="-".join)
def carrier(request: pytest.FixtureRequest) -> tuple[str, str]:
    loop, name = request.param
    return loop, name


@pytest.fixture
def anyio_backend(carrier: tuple[str, str]) -> str:
    return carrier[0]


@pytest.fixture
async def world(carrier: tuple[str, str]) -> AsyncIterator[World]:
    if carrier[1] == "memory":
        http = MemoryHttp()
        ours = World(http, "http://engine")

        def origin(request: Request) -> Answer:
            headers = {"content-type": "text/plain"}
            return Answer(200, body_of(request.path, request.body, ours), headers)

        http.origins["http://engine"] = origin
        yield ours
        return
    [port] = free_ports(1)
    async with HttpClient() as client:
        ours = World(client, f"http://127.0.0.1:{port}")
        runner = web.AppRunner(_application(ours), handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield ours
        await runner.cleanup()


def _application(world: World) -> web.Application:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        try:
            async for piece in body_of(request.path, await request.read(), world):
                await response.write(piece)
        except HttpBroken:
            assert request.transport is not None
            request.transport.abort()
        return response

    application = web.Application()
    application.router.add_route("*", "/{any}", handle)
    return application


async def read(world: World, path: str, **how: Any) -> bytes:
    async with world.http.exchange("POST", world.url + path, **how) as response:
        assert response.status == 200
        assert response.headers["content-type"] == "text/plain"
        return await response.read()


async def test_what_is_sent_comes_back(world: World) -> None:
    assert await read(world, "/echo", body=b"\0hello") == b"\0hello"


async def test_pieces_come_as_they_are_sent(world: World) -> None:
    async with world.http.exchange("GET", world.url + "/stall", timeouts=PATIENT) as response:
        pieces = cast(AsyncGenerator[bytes], response.chunks())
        with anyio.fail_after(5):
            async with aclosing(pieces):
                assert await anext(pieces) == b"one,"


async def test_poured_pieces_come_as_they_are_sent(world: World) -> None:
    """In the context of who pours, with the loop's time, and no further than is wanted."""
    colour: ContextVar[str] = ContextVar("colour", default="none")
    taken: list[tuple[bytes, str]] = []

    def take(piece: bytes, now_s: float) -> bool:
        assert abs(anyio.current_time() - now_s) < 1
        taken.append((piece, colour.get()))
        return False

    async with world.http.exchange("GET", world.url + "/two") as response:
        colour.set("green")
        while not await response.pour(take):
            colour.set("blue")
    assert b"".join(piece for piece, _ in taken) == b"one,two"
    assert [seen for _, seen in taken] == ["green", "blue"][: len(taken)]


async def test_what_a_taker_raises_is_raised_where_it_is_poured(world: World) -> None:
    def take(piece: bytes, now_s: float) -> bool:
        raise LookupError(piece)

    async with world.http.exchange("GET", world.url + "/stall") as response:
        with pytest.raises(LookupError, match="one"):
            await response.pour(take)


async def test_pouring_ends_by_silence_and_by_a_break(world: World) -> None:
    for path, how in (("/stall", HttpTimeout), ("/break", HttpBroken)):
        taken: list[bytes] = []

        def take(piece: bytes, now_s: float, taken: list[bytes] = taken) -> bool:
            taken.append(piece)
            return True

        async with world.http.exchange("GET", world.url + path, timeouts=IMPATIENT) as response:
            with pytest.raises(how):
                await response.pour(take)
        assert taken == [b"one,"]


async def test_while_nothing_is_wanted_nothing_is_late(world: World) -> None:
    async with world.http.exchange("GET", world.url + "/stall", timeouts=IMPATIENT) as response:
        assert not await response.pour(lambda piece, now_s: False)
        await anyio.sleep(0.9 * IMPATIENT.idle_s)
        began_s = anyio.current_time()
        with pytest.raises(HttpTimeout, match="idle"):
            await response.pour(lambda piece, now_s: True)
        assert anyio.current_time() - began_s > 0.5 * IMPATIENT.idle_s


async def test_who_leaves_over_pouring_is_handed_nothing_more(world: World) -> None:
    taken: list[bytes] = []

    def take(piece: bytes, now_s: float) -> bool:
        taken.append(piece)
        return True

    async with world.http.exchange("GET", world.url + "/stall", timeouts=PATIENT) as response:
        with anyio.move_on_after(0.2):
            await response.pour(take)
    with anyio.fail_after(5):
        await world.left_early.wait()
    assert taken == [b"one,"]


async def test_leaving_early_reaches_the_origin(world: World, carrier: tuple[str, str]) -> None:
    async with world.http.exchange("GET", world.url + "/stall", timeouts=PATIENT) as response:
        with anyio.move_on_after(0.2):
            async for _ in response.chunks():
                pass
    with anyio.fail_after(5):
        await world.left_early.wait()


async def test_an_origin_that_breaks_off_is_broken(world: World) -> None:
    with pytest.raises(HttpBroken):
        await read(world, "/break")


async def test_silence_in_the_middle_is_a_timeout(world: World) -> None:
    with pytest.raises(HttpTimeout, match="idle"):
        await read(world, "/stall", timeouts=IMPATIENT)


async def test_an_answer_over_the_limit_is_refused(world: World) -> None:
    async with world.http.exchange("POST", world.url + "/echo", body=b"x" * 100) as response:
        with pytest.raises(HttpTooLong, match="more than 10 bytes"):
            await response.read(limit_bytes=10)


async def test_nobody_there_is_unreachable(world: World) -> None:
    [port] = free_ports(1)
    with pytest.raises(HttpUnreachable):
        await read(World(world.http, f"http://127.0.0.1:{port}"), "/echo")


@pytest.mark.parametrize("carrier", [("asyncio", "httptools")], indirect=True)
async def test_no_head_in_time_is_a_timeout(world: World) -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        silent = World(world.http, f"http://127.0.0.1:{port}")
        with pytest.raises(HttpTimeout, match="first_byte"):
            await read(silent, "/echo", timeouts=HttpTimeouts(0.2, 0.1, 5.0))


@pytest.mark.parametrize("carrier", [("asyncio", "httptools")], indirect=True)
async def test_a_kept_connection_that_was_closed_meanwhile_is_replaced(world: World) -> None:
    connections = 0

    async def answer_once(stream: anyio.abc.SocketStream) -> None:
        nonlocal connections
        connections += 1
        async with stream:
            await stream.receive()
            await stream.send(OK)
            if connections == 1:  # takes the second request in, and dies over it
                await stream.receive()

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, answer_once)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        there = World(world.http, f"http://127.0.0.1:{port}")
        assert [await read(there, "/") for _ in range(2)] == [b"ok", b"ok"]
        assert connections == 2
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("carrier", [("asyncio", "httptools")], indirect=True)
@pytest.mark.parametrize("for_good", [False, True], ids=["after some work", "for good"])
async def test_what_may_have_been_executed_is_neither_repeated_nor_denied(
    world: World, for_good: bool
) -> None:
    """Of an origin that takes a second request in on the same connection, and dies over it."""
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listeners,
        anyio.create_task_group() as tasks,
    ):
        listener = cast(anyio.abc.SocketListener, listeners.listeners[0])

        async def serve_once() -> None:
            async with await listener.accept() as stream:
                await stream.receive()
                await stream.send(OK)
                await stream.receive()
                if for_good:
                    await listener.aclose()
                else:
                    await anyio.sleep(2 * KEEP_ALIVE_RACE_S)

        tasks.start_soon(serve_once)
        port = listeners.extra(anyio.abc.SocketAttribute.local_port)
        there = World(world.http, f"http://127.0.0.1:{port}")
        assert await read(there, "/") == b"ok"
        with pytest.raises(HttpBroken):
            await read(there, "/", timeouts=HttpTimeouts(2.0, 1.0, 1.0))


@pytest.mark.parametrize("carrier", [("asyncio", "httptools")], indirect=True)
async def test_what_follows_an_answer_unasked_is_not_part_of_it(world: World) -> None:
    connections = 0

    async def say_more(stream: anyio.abc.SocketStream) -> None:
        nonlocal connections
        connections += 1
        async with stream:
            async for _ in stream:
                await stream.send(OK + OK.replace(b"200 OK", b"500 No").replace(b"ok", b"no"))

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, say_more)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        there = World(world.http, f"http://127.0.0.1:{port}")
        assert [await read(there, "/") for _ in range(2)] == [b"ok", b"ok"]
        assert connections == 2
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("carrier", [("asyncio", "httptools")], indirect=True)
@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nto the end", b"to the end"),
        (
            b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n%b\r\nok"
            % b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n",
            b"ok",
        ),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nhalf of it", None),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhalf", None),
        (b"SSH-2.0-OpenSSH_9.2\r\n", None),
    ],
)
async def test_every_kind_of_ending(world: World, answer: bytes, body: bytes | None) -> None:
    async def say(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(answer)

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, say)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        there = World(world.http, f"http://127.0.0.1:{port}")
        if body is None:
            with pytest.raises(HttpBroken):
                async with there.http.exchange("GET", there.url, timeouts=PATIENT) as response:
                    await response.read()
        else:
            assert await read(there, "/") == body
        tasks.cancel_scope.cancel()
