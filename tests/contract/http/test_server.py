"""What the HTTP server promises, to clients that speak plain bytes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from proto.wire.errors import HttpCannotListen, HttpTimeout
from proto.wire.http import HttpServer
from proto.wire.http.server import CLOSE_S
from proto.wire.ports import Headers, HttpCall, HttpLimits, HttpPort

pytestmark = pytest.mark.anyio

LIMITS = HttpLimits(body_bytes_max=1000, request_s=5.0, stall_s=0.3)
GET = b"GET /hello?x=1 HTTP/1.1\r\nhost: x\r\n\r\n"
Handler = Callable[[HttpCall], Awaitable[None]]


@pytest.fixture
def anyio_backend() -> str:
    """The server is asyncio's."""
    return "asyncio"


def refuse(status: int, why: str) -> tuple[Headers, bytes]:
    return {"x-refused": "yes"}, f"{status}: {why}".encode()


@asynccontextmanager
async def serving(handle: Handler, limits: HttpLimits = LIMITS) -> AsyncIterator[HttpPort]:
    async with HttpServer().serve("127.0.0.1", 0, handle, refuse=refuse, limits=limits) as port:
        yield port


@asynccontextmanager
async def connected(port: HttpPort) -> AsyncIterator[anyio.abc.SocketStream]:
    with anyio.fail_after(10):
        async with await anyio.connect_tcp("127.0.0.1", port.port) as stream:
            yield stream


async def until(stream: anyio.abc.SocketStream, end: bytes) -> bytes:
    read = b""
    while end not in read:
        read += await stream.receive()
    return read


async def rest(stream: anyio.abc.SocketStream) -> bytes:
    """All that comes until the server closes."""
    read = b""
    try:
        while True:
            read += await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return read


async def echo(call: HttpCall) -> None:
    said = f"{call.method} {call.path} ".encode() + call.body
    call.start(200, {"content-type": "text/plain"}, len(said))
    await call.write(said)


async def in_pieces(call: HttpCall) -> None:
    call.start(200, {})
    await call.write(b"one,")
    await call.write(b"two")


async def test_one_connection_serves_many_requests_and_bodies_of_both_kinds() -> None:
    chunked = (
        b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    )
    sized = b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nho"
    async with serving(echo) as port, connected(port) as stream:
        for request, answer in (
            (GET, b"GET /hello "),
            (chunked, b"POST /a hi"),
            (sized, b"POST /b ho"),
        ):
            await stream.send(request)
            read = await until(stream, answer)
            assert read.startswith(b"HTTP/1.1 200 OK\r\n")
            assert re.search(rb"\r\ndate: \w{3}, \d\d ", read)


async def test_what_comes_behind_a_chunked_body_is_no_header() -> None:
    seen: list[str] = []

    async def handle(call: HttpCall) -> None:
        seen.append(call.headers.get("authorization", "none"))
        await echo(call)

    trailed = (
        b"POST /a HTTP/1.1\r\nhost: x\r\nauthorization: real\r\ntransfer-encoding: chunked\r\n\r\n"
        b"2\r\nhi\r\n0\r\nx: 1\r\nauthorization: evil\r\n\r\n"
    )
    async with serving(handle) as port, connected(port) as stream:
        await stream.send(trailed + GET)
        await until(stream, b"GET /hello ")
        assert seen == ["real", "none"]


async def test_requests_sent_ahead_are_answered_in_order() -> None:
    async with serving(echo) as port, connected(port) as stream:
        await stream.send(GET + GET.replace(b"hello", b"second") + GET.replace(b"hello", b"last"))
        read = await until(stream, b"GET /last ")
        assert read.index(b"/hello ") < read.index(b"/second ") < read.index(b"/last ")


async def test_an_answer_in_pieces_ends_with_the_handler() -> None:
    async with serving(in_pieces) as port, connected(port) as stream:
        await stream.send(GET)
        read = await until(stream, b"0\r\n\r\n")
        assert read.endswith(b"\r\n\r\n4\r\none,\r\n3\r\ntwo\r\n0\r\n\r\n")


async def test_a_client_of_http_1_0_gets_it_plain_and_a_close() -> None:
    async with serving(in_pieces) as port, connected(port) as stream:
        await stream.send(b"GET / HTTP/1.0\r\n\r\n")
        assert (await rest(stream)).endswith(b"\r\n\r\none,two")


async def test_who_waits_to_be_told_to_send_is_told() -> None:
    async with serving(echo) as port, connected(port) as stream:
        await stream.send(
            b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n"
        )
        await until(stream, b"100 Continue\r\n\r\n")
        await stream.send(b"hi")
        await until(stream, b"POST / hi")


async def test_who_asks_ahead_whether_to_send_is_told_between_two_answers() -> None:
    asked = anyio.Event()

    async def handle(call: HttpCall) -> None:
        if call.method == "POST":
            await echo(call)
            return
        call.start(200, {})
        await call.write(b"one,")
        await asked.wait()
        await call.write(b"two")

    async with serving(handle) as port, connected(port) as stream:
        await stream.send(GET)
        read = await until(stream, b"one,")
        await stream.send(
            b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n"
        )
        await anyio.sleep(0.05)  # nothing tells that it has come and is not answered yet
        asked.set()
        read += await until(stream, b"100 Continue\r\n\r\n")
        assert read.endswith(b"\r\n3\r\ntwo\r\n0\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
        await stream.send(b"hi")
        assert b"100 Continue" not in await until(stream, b"POST / hi")


async def test_a_client_of_http_1_0_is_not_told_to_send() -> None:
    async with serving(echo) as port, connected(port) as stream:
        await stream.send(b"POST / HTTP/1.0\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\nhi")
        assert (await rest(stream)).startswith(b"HTTP/1.1 200 OK\r\n")


UPGRADE = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAAA\r\n"
UPGRADED = b"POST / HTTP/1.1\r\nhost: x\r\n" + UPGRADE
WISH = UPGRADED + b"content-length: 2\r\n\r\nhi"


@pytest.mark.parametrize(
    "parts",
    [
        (WISH,),
        (WISH[:40], WISH[40:90], WISH[90:-1], WISH[-1:]),
        (UPGRADED + b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",),
        (UPGRADED + b"x:\r\nx: \xe9\r\ncontent-length: 2\r\n\r\n", b"hi"),
        (WISH.replace(b"1.1", b"1.0"),),
    ],
    ids=["at once", "in several reads", "in chunks", "the body later", "of HTTP/1.0"],
)
async def test_who_wants_to_speak_something_else_is_answered_all_the_same(
    parts: tuple[bytes, ...],
) -> None:
    """Java's own client wants HTTP/2 with every request, and sends its body."""
    async with serving(echo) as port, connected(port) as stream:
        for part in parts:
            await stream.send(part)
            await anyio.lowlevel.checkpoint()
        read = await until(stream, b"POST / hi")
        assert read.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_wishes_to_speak_something_else_can_be_sent_ahead() -> None:
    many = 1500
    async with serving(echo) as port, connected(port) as stream:
        await stream.send(WISH * many + GET)
        read = await until(stream, b"GET /hello ")
        assert read.count(b"POST / hi") == many


async def test_who_wants_to_speak_something_else_is_told_once_to_send() -> None:
    async with serving(echo) as port, connected(port) as stream:
        await stream.send(UPGRADED + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        read = await until(stream, b"100 Continue\r\n\r\n")
        await stream.send(b"hi")
        read += await until(stream, b"POST / hi")
        assert read.count(b"100 Continue") == 1


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1001\r\n\r\n", 413),
        (
            b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n"
            + b"x" * 0x3E9,
            413,
        ),
        (b"GET / HTTP/1.1\r\nhost: x\r\nlong: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (
            b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\nlong: "
            + b"x" * 70_000
            + b"\r\n\r\n",
            431,
        ),
        (b"GET / HTTP/1.1\r\nhost: x\r\nendless: " + b"x" * (1 << 20), 431),
        (b"what is this?\r\n\r\n", 400),
        (b"CONNECT engine:80 HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (UPGRADED + b"content-length: 1001\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", 400),
    ],
)
async def test_what_is_too_large_or_no_http_is_refused_in_words(
    request_: bytes, status: int
) -> None:
    async with serving(echo) as port, connected(port) as stream:
        await stream.send(request_)
        read = await until(stream, f"{status}: ".encode())
        assert read.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"x-refused: yes" in read and b"connection: close" in read


async def test_a_client_that_goes_cancels_its_handler() -> None:
    began, ended = anyio.Event(), anyio.Event()

    async def handle(call: HttpCall) -> None:
        began.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async with serving(handle) as port:
        async with connected(port) as stream:
            await stream.send(GET)
            await began.wait()
        with anyio.fail_after(5):
            await ended.wait()


async def finished(call: HttpCall) -> None:
    await in_pieces(call)
    call.finish()
    await call.write(b"too late")


@pytest.mark.parametrize(
    ("answer", "told", "end"),
    [
        (echo, b"content-length: 12", b"GET /hello "),
        (in_pieces, b"transfer-encoding: chunked", b"0\r\n\r\n"),
        (finished, b"transfer-encoding: chunked", b"0\r\n\r\n"),
    ],
)
async def test_who_asks_for_the_head_alone_gets_no_more(
    answer: Handler, told: bytes, end: bytes
) -> None:
    async with serving(answer) as port, connected(port) as stream:
        await stream.send(GET.replace(b"GET", b"HEAD") + GET)
        head, _, behind = (await until(stream, end)).partition(b"\r\n\r\n")
        assert told in head and behind.startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("answer", "request_line", "end"),
    [
        (echo, b"GET /hello HTTP/1.1", b"GET /hello "),
        (finished, b"GET / HTTP/1.1", b"\r\n3\r\ntwo\r\n0\r\n\r\n"),
        (finished, b"GET / HTTP/1.0", b"\r\n\r\none,two"),
    ],
    ids=["its length is told", "in chunks", "to a client of HTTP/1.0"],
)
async def test_a_client_that_goes_with_its_whole_answer_leaves_its_handler_to_work(
    answer: Handler, request_line: bytes, end: bytes
) -> None:
    gone, worked = anyio.Event(), anyio.Event()

    async def handle(call: HttpCall) -> None:
        await answer(call)
        await gone.wait()
        for _ in range(10):  # the server sees it, and nothing comes of that
            await anyio.sleep(0.01)
        worked.set()

    async with serving(handle) as port:
        async with connected(port) as stream:
            await stream.send(request_line + b"\r\nhost: x\r\n\r\n")
            assert (await until(stream, end)).endswith(end)
        gone.set()
        with anyio.fail_after(5):
            await worked.wait()


async def test_behind_an_answer_that_was_finished_the_next_request_waits_for_its_handler() -> None:
    work, began = anyio.Event(), 0

    async def handle(call: HttpCall) -> None:
        nonlocal began
        began += 1
        await finished(call)
        await work.wait()

    async with serving(handle) as port, connected(port) as stream:
        await stream.send(GET)
        await until(stream, b"0\r\n\r\n")
        await stream.send(GET)
        await anyio.sleep(0.05)  # nothing tells that it has come and is not begun
        assert began == 1
        work.set()
        await until(stream, b"0\r\n\r\n")
        assert began == 2


async def test_gw2_who_does_not_read_makes_its_handler_wait_and_then_fail() -> None:
    failed = anyio.Event()

    async def handle(call: HttpCall) -> None:
        call.start(200, {})
        try:
            while True:
                await call.write(b"x" * 65536)
        except HttpTimeout as error:
            assert error.phase == "reading"
            failed.set()
            raise

    async with serving(handle) as port, connected(port) as stream:
        await stream.send(GET)
        await failed.wait()


async def fill(call: HttpCall) -> None:
    """All that is taken for a client that does not read, and the end at once."""
    call.start(200, {})
    while call.put(b"x" * 65536):
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    "ask",
    [GET, GET.replace(b"host: x", b"connection: close"), b"GET / HTTP/1.0\r\n\r\n"],
    ids=["keep-alive", "close", "HTTP/1.0"],
)
async def test_who_does_not_read_the_end_of_an_answer_is_hung_up_on(ask: bytes) -> None:
    hasty = HttpLimits(request_s=0.2, stall_s=0.2)
    async with serving(fill, hasty) as port, connected(port) as stream:
        await stream.send(ask)
        await anyio.sleep(1.0)  # longer than both limits, in which it does not read
        if b"HTTP/1.0" in ask:
            with pytest.raises(anyio.BrokenResourceError):
                await until(stream, b"the end")
        else:
            assert not (await rest(stream)).endswith(b"0\r\n\r\n")


async def test_a_client_that_goes_wakes_who_waits_for_it_to_read() -> None:
    worked = anyio.Event()

    async def handle(call: HttpCall) -> None:
        body = b"x" * (32 << 20)
        call.start(200, {}, len(body))
        await call.write(body)
        worked.set()

    async with serving(handle, HttpLimits(stall_s=30.0)) as port:
        async with connected(port) as stream:
            await stream.send(GET)
            await until(stream, b"\r\n\r\n")
        with anyio.fail_after(5):
            await worked.wait()


async def test_a_slow_reader_gets_everything() -> None:
    size = 8 << 20

    async def handle(call: HttpCall) -> None:
        call.start(200, {}, size)
        for _ in range(size >> 16):
            await call.write(b"x" * 65536)

    patient = HttpLimits(stall_s=30.0)
    async with serving(handle, patient) as port, connected(port) as stream:
        await stream.send(GET)
        read = len(await until(stream, b"\r\n\r\n"))
        while read < size:
            await anyio.lowlevel.checkpoint()
            read += len(await stream.receive(32768))


async def test_a_handler_that_fails_is_a_500_or_a_broken_answer() -> None:
    async def handle(call: HttpCall) -> None:
        if call.path == "/late":
            call.start(200, {}, 10)
            await call.write(b"half")
        raise RuntimeError("a bug")

    async with serving(handle) as port:
        async with connected(port) as stream:
            await stream.send(GET)
            assert (await rest(stream)).startswith(b"HTTP/1.1 500 ")
        async with connected(port) as stream:
            await stream.send(GET.replace(b"/hello", b"/late"))
            assert not (await rest(stream)).endswith(b"\r\n\r\n")


@pytest.mark.parametrize("body", [b"half", b"far too long"])
async def test_a_body_of_another_length_than_was_said_ends_the_connection(body: bytes) -> None:
    async def handle(call: HttpCall) -> None:
        call.start(200, {}, 10)
        await call.write(body)

    patient = HttpLimits(request_s=30.0)
    async with serving(handle, patient) as port, connected(port) as stream:
        await stream.send(GET)
        with anyio.fail_after(5):
            await rest(stream)


async def test_a_handler_that_does_not_answer_is_a_500() -> None:
    async def handle(call: HttpCall) -> None:
        pass

    async with serving(handle) as port, connected(port) as stream:
        await stream.send(GET)
        assert (await rest(stream)).startswith(b"HTTP/1.1 500 ")


async def test_a_header_cannot_bring_another_one() -> None:
    async def handle(call: HttpCall) -> None:
        call.start(200, {"x": "a\r\nset-cookie: evil"}, 0)

    async with serving(handle) as port, connected(port) as stream:
        await stream.send(GET)
        read = await rest(stream)
        assert b"evil" not in read


async def test_a_status_without_a_name_is_sent_as_it_is() -> None:
    async def overloaded(call: HttpCall) -> None:
        call.start(529, {}, 0)

    async with serving(overloaded) as port, connected(port) as stream:
        await stream.send(GET)
        assert (await until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 529 \r\n")


async def test_who_sends_nothing_is_left() -> None:
    hasty = HttpLimits(request_s=0.2)
    async with serving(echo, hasty) as port, connected(port) as stream:
        await stream.send(GET[:20])
        assert await rest(stream) == b""


async def test_after_retiring_clients_are_told_to_go() -> None:
    async with serving(echo) as port, connected(port) as stream:
        await stream.send(GET)
        await until(stream, b"GET /hello ")
        port.retire(stop_listening=False)
        await stream.send(GET)
        assert b"connection: close" in await rest(stream)


async def test_who_leaves_lets_clients_read_the_ends_of_their_answers() -> None:
    answered = anyio.Event()

    async def handle(call: HttpCall) -> None:
        await fill(call)
        answered.set()

    async with anyio.create_task_group() as tasks, serving(handle) as port:
        stream = await anyio.connect_tcp("127.0.0.1", port.port)
        await stream.send(GET)
        await answered.wait()

        async def read() -> None:
            async with stream:
                assert (await rest(stream)).endswith(b"0\r\n\r\n")

        tasks.start_soon(read)


async def test_who_leaves_does_not_wait_long_for_clients_that_do_not_read() -> None:
    async with serving(fill) as port:
        stream = await anyio.connect_tcp("127.0.0.1", port.port)
        await stream.send(GET)
        await until(stream, b"\r\n\r\n")
        began_s = anyio.current_time()
    async with stream:
        assert anyio.current_time() - began_s < 2 * CLOSE_S
        assert not (await rest(stream)).endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("fails", [True, False], ids=["its handler fails", "the server is left"])
async def test_a_plain_answer_that_is_cut_does_not_look_whole(fails: bool) -> None:
    """HTTP/1.0 ends a body by hanging up; what is cut must end in another way."""
    read, cut = anyio.Event(), anyio.Event()

    async def handle(call: HttpCall) -> None:
        await in_pieces(call)
        await read.wait()
        if fails:
            raise RuntimeError("a bug")
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks, serving(handle) as port:
        stream = await anyio.connect_tcp("127.0.0.1", port.port)
        await stream.send(b"GET / HTTP/1.0\r\n\r\n")
        await until(stream, b"one,two")

        async def see() -> None:
            async with stream:
                with pytest.raises(anyio.BrokenResourceError), anyio.fail_after(5):
                    await stream.receive()
                cut.set()

        tasks.start_soon(see)
        read.set()
        if fails:
            await cut.wait()


async def test_two_can_share_a_port_and_a_taken_one_is_said_so() -> None:
    server = HttpServer()
    taken: dict[str, int] = {}

    async def count(call: HttpCall) -> None:
        taken[call.headers["host"]] = 1
        await echo(call)

    async with server.serve("127.0.0.1", 0, count, refuse=refuse, limits=LIMITS) as port:
        with pytest.raises(HttpCannotListen, match="in use"):
            async with server.serve("127.0.0.1", port.port, count, refuse=refuse, limits=LIMITS):
                pass
    async with (
        server.serve("127.0.0.1", 0, count, refuse=refuse, limits=LIMITS, shared=True) as one,
        server.serve(
            "127.0.0.1", one.port, count, refuse=refuse, limits=LIMITS, shared=True
        ) as two,
    ):
        one.retire(stop_listening=True)
        async with connected(two) as stream:
            await stream.send(GET)
            await until(stream, b"GET /hello ")
