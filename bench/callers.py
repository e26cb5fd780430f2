"""Many clients in one process that each ask again as soon as they are answered, over connections
kept alive, reading as little of the answers as tells when tokens came."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, cast

import anyio

from bench.http import END_OF_HEAD, LENGTH

EVENT = b"data: {"
DONE = b"data: [DONE]"
LAST_CHUNK = b"0\r\n\r\n"
TAIL_BYTES = 64
"""What the end of an answer is looked for in."""


class WrongStatus(Exception):
    """An answer that is none."""


class Call(NamedTuple):
    """One request that was answered; times in seconds from when it was sent."""

    first_s: float
    total_s: float
    events: int


class Caller(asyncio.Protocol):
    """One client."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Call] | None = None
        self._received = bytearray()
        self._body_at = -1
        self._length = -1
        self._events = 0
        self._began_s = self._first_s = 0.0

    @classmethod
    async def open(cls, host: str, port: int) -> Caller:
        """Connect. Raises OSError."""
        _, caller = await asyncio.get_running_loop().create_connection(cls, host, port)
        return caller

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    async def ask(self, request: bytes) -> Call:
        """Send a whole request and wait for all of the answer. Raises `WrongStatus`, OSError."""
        assert self._transport is not None, "made by `open`"
        self._answer = asyncio.get_running_loop().create_future()
        self._received.clear()
        self._body_at, self._length, self._events, self._first_s = -1, -1, 0, 0.0
        self._began_s = time.perf_counter()
        self._transport.write(request)
        return await self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        if self._body_at < 0 and not self._read_head():
            return
        self._events += received.count(EVENT, max(self._body_at, len(received) - len(data)))
        if not self._first_s and len(received) > self._body_at:
            self._first_s = time.perf_counter()
        if self._length >= 0:
            ended = len(received) - self._body_at >= self._length
        else:
            ended = received.endswith(LAST_CHUNK)
        if ended and self._answer is not None and not self._answer.done():
            now_s = time.perf_counter()
            self._answer.set_result(
                Call(self._first_s - self._began_s, now_s - self._began_s, self._events)
            )

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError(f"the connection ended: {error}"))

    def _read_head(self) -> bool:
        end = self._received.find(END_OF_HEAD)
        if end < 0:
            return False
        head = bytes(self._received[:end]).lower()
        self._body_at = end + len(END_OF_HEAD)
        at = head.find(LENGTH)
        if at >= 0:
            self._length = int(head[at + len(LENGTH) :].split(b"\r\n", 1)[0])
        if head[9:12] != b"200" and self._answer is not None and not self._answer.done():
            self._answer.set_exception(WrongStatus(bytes(self._received[:500])))
        return True


class Load(NamedTuple):
    """What all callers together saw."""

    opening: Sequence[Call]
    """What each caller asked first, all at once, which is not how clients come."""
    later: Sequence[Call]
    wall_s: float

    @property
    def calls(self) -> Sequence[Call]:
        return [*self.opening, *self.later]


async def drive(host: str, port: int, requests: Iterable[bytes], callers: int) -> Load:
    """Every request once, `callers` at a time. Raises `WrongStatus`, OSError."""
    order: Iterator[bytes] = iter(requests)
    opening: list[Call] = []
    later: list[Call] = []

    async def call() -> None:
        caller = await Caller.open(host, port)
        try:
            opening.extend([await caller.ask(request) for request in islice(order, 1)])
            later.extend([await caller.ask(request) for request in order])
        finally:
            caller.close()

    began_s = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for _ in range(callers):
            tasks.start_soon(call)
    return Load(opening, later, time.perf_counter() - began_s)
