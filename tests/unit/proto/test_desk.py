from __future__ import annotations

from contextvars import ContextVar

import anyio
import pytest
from anyio.lowlevel import checkpoint

from proto.wire.desk import UNSENDABLE, Answer, Desk, open_desks
from proto.wire.errors import RequestRefused
from proto.wire.ports import AtOnce, Endpoint, Handler, Message, ServiceInfo

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]
TOO_LARGE = b"too large"
SERVICE = ServiceInfo("test", "1.0.0")


class Counter:
    """A desk's public, and the way back to them."""

    free = True

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.answers: list[Answer] = []
        self._came = anyio.Event()

    def ask(self, what: bytes) -> None:
        self._desk.take(Message("s", what), self)

    async def until(self, answers: int) -> None:
        while len(self.answers) < answers:
            await self._came.wait()
            self._came = anyio.Event()

    def is_free(self) -> bool:
        return self.free

    def post(self, answer: Answer) -> None:
        if answer == TOO_LARGE:
            raise ValueError("too large")
        self.answers.append(answer)
        self._came.set()

    async def send(self, answer: Answer) -> None:
        self.post(answer)


def endpoint(handle: Handler, *, concurrency: int = 4, queue_messages: int = 4) -> Endpoint:
    return Endpoint("e", "s", handle, concurrency=concurrency, queue_messages=queue_messages)


async def test_requests_one_after_the_other_need_one_task() -> None:
    tasks: set[int] = set()

    async def handle(message: Message) -> bytes:
        tasks.add(anyio.get_current_task().id)
        return message.data

    async with open_desks(SERVICE, [endpoint(handle)]) as (desk,):
        public = Counter(desk)
        for number in range(1, 11):
            public.ask(b"%d" % number)
            await public.until(number)
    assert public.answers == [b"%d" % number for number in range(1, 11)]
    assert len(tasks) == 1


async def test_a_clerk_keeps_nothing_of_whoever_asked_first() -> None:
    trace = ContextVar("trace", default=b"none")

    async def handle(message: Message) -> bytes:
        return trace.get()

    async with open_desks(SERVICE, [endpoint(handle)]) as (desk,):
        public = Counter(desk)
        token = trace.set(b"of the first")
        public.ask(b"")
        await public.until(1)
        trace.reset(token)
        public.ask(b"")
        await public.until(2)
    assert public.answers == [b"none", b"none"]


async def test_requests_at_once_run_at_once_and_idle_clerks_take_the_next() -> None:
    tasks: set[int] = set()
    inside = 0
    go = anyio.Event()

    async def handle(message: Message) -> bytes:
        nonlocal inside
        tasks.add(anyio.get_current_task().id)
        inside += 1
        await go.wait()
        inside -= 1
        return message.data

    async with open_desks(SERVICE, [endpoint(handle, concurrency=3)]) as (desk,):
        public = Counter(desk)
        for round_end in (3, 6):
            for _ in range(3):
                public.ask(b"")
            while inside < 3:
                await checkpoint()
            go.set()
            await public.until(round_end)
            go = anyio.Event()
    assert len(tasks) == 3


async def test_what_is_too_much_is_refused_and_the_rest_waits() -> None:
    go = anyio.Event()

    async def handle(message: Message) -> bytes:
        await go.wait()
        return message.data

    async with open_desks(SERVICE, [endpoint(handle, concurrency=2, queue_messages=3)]) as (desk,):
        public = Counter(desk)
        for number in range(7):
            public.ask(b"%d" % number)
        refused, too = public.answers
        assert isinstance(refused, RequestRefused) and isinstance(too, RequestRefused)
        assert refused.code == too.code == 503
        go.set()
    assert sorted(bytes(answer) for answer in public.answers if isinstance(answer, bytes)) == [
        b"0", b"1", b"2", b"3", b"4",
    ]  # fmt: skip


async def test_a_long_queue_leaves_turns_to_others() -> None:
    seen: list[str] = []

    async def handle(message: Message) -> bytes:
        seen.append("request")
        return b""

    async def other() -> None:
        while len(seen) < 20:
            seen.append("other")
            await checkpoint()

    one_clerk = endpoint(handle, concurrency=1, queue_messages=10)
    async with anyio.create_task_group() as tasks, open_desks(SERVICE, [one_clerk]) as (desk,):
        public = Counter(desk)
        for _ in range(10):
            public.ask(b"")
        tasks.start_soon(other)
    assert "other" in seen[seen.index("request") : len(seen) - seen[::-1].index("request")]


async def test_what_comes_while_leaving_is_answered_too() -> None:
    async def handle(message: Message) -> bytes:
        await checkpoint()
        return message.data

    async with open_desks(SERVICE, [endpoint(handle)]) as (desk,):
        public = Counter(desk)
        public.ask(b"before")
        await public.until(1)
        desk.close()
        public.ask(b"meanwhile")
    assert public.answers == [b"before", b"meanwhile"]


def quick(at_once: AtOnce) -> Endpoint:
    async def handle(message: Message) -> bytes:
        return b"by a clerk"

    return Endpoint("e", "s", handle, at_once)


async def test_what_needs_no_clerk_is_answered_within_the_call() -> None:
    async with open_desks(SERVICE, [quick(lambda message: message.data or None)]) as (desk,):
        public = Counter(desk)
        public.ask(b"now")
        assert public.answers == [b"now"]
        public.ask(b"")
        assert public.answers == [b"now"]
        await public.until(2)
    assert public.answers == [b"now", b"by a clerk"]
    assert desk.tally.requests == 2


async def test_nothing_is_answered_within_the_call_while_the_way_back_is_full() -> None:
    async with open_desks(SERVICE, [quick(lambda message: message.data)]) as (desk,):
        public = Counter(desk)
        public.free = False
        public.ask(b"now")
        assert public.answers == []
        await public.until(1)
    assert public.answers == [b"by a clerk"]


async def test_what_goes_wrong_within_the_call_is_told_too() -> None:
    def at_once(message: Message) -> bytes:
        if message.data == b"refuse":
            raise RequestRefused(400, "no")
        if message.data == b"fail":
            raise KeyError("a bug")
        return TOO_LARGE

    async with open_desks(SERVICE, [quick(at_once)]) as (desk,):
        public = Counter(desk)
        for what in (b"refuse", b"fail", b"large"):
            public.ask(what)
    refused, failed, large = public.answers
    assert isinstance(refused, RequestRefused) and refused.code == 400
    assert isinstance(failed, RequestRefused) and failed.code == 500
    assert large == UNSENDABLE
    assert desk.tally.errors == 2
