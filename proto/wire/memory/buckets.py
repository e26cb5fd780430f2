"""The `Bucket` port in memory. What is asked and what is answered may get lost as any message."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from proto.wire.errors import BucketFull, BusTimeout
from proto.wire.memory.cells import KeptBucket
from proto.wire.memory.exchange import Client, Exchange
from proto.wire.ports import Cell

T = TypeVar("T")


class Waiting(Client, Protocol):
    """A client that can be waited for."""

    async def until_up(self, timeout_s: float) -> float: ...


class MemoryBucket:
    """One client's hold on a bucket."""

    def __init__(self, exchange: Exchange, client: Waiting, kept: KeptBucket) -> None:
        self._exchange = exchange
        self._client = client
        self._kept = kept
        self._name = kept.spec.name

    async def get(self, key: str, *, timeout_s: float = 5.0) -> Cell | None:
        return await self._asked(lambda: self._kept.get(key, anyio.current_time()), timeout_s)

    async def create(self, key: str, value: bytes, *, timeout_s: float = 5.0) -> int | None:
        return await self._asked(lambda: self._write(key, value, 0), timeout_s)

    async def update(
        self, key: str, value: bytes, *, revision: int, timeout_s: float = 5.0
    ) -> int | None:
        return await self._asked(lambda: self._write(key, value, revision), timeout_s)

    async def delete(self, key: str, *, revision: int, timeout_s: float = 5.0) -> bool:
        written = await self._asked(lambda: self._write(key, None, revision), timeout_s)
        return written is not None

    async def list(self, *, timeout_s: float = 10.0) -> Sequence[Cell]:
        return await self._asked(lambda: self._kept.all(anyio.current_time()), timeout_s)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[Cell]]:
        cells = _Cells(self._client, self._kept)
        number = self._exchange.watch(cells.look_again)
        try:
            yield cells
        finally:
            self._exchange.unwatch(number)

    def _write(self, key: str, value: bytes | None, revision: int) -> int | None:
        written = self._kept.write(key, value, revision, anyio.current_time())
        self._exchange.stir()
        return written

    async def _asked(self, act: Callable[[], T], timeout_s: float) -> T:
        """Act at the server and bring back what came of it, as far as both get through."""
        left_s = await self._client.until_up(timeout_s)
        answers: list[T | BucketFull] = []
        answered = anyio.Event()

        def arrive(answer: T | BucketFull) -> None:
            if self._client.connected:
                answers.append(answer)
                answered.set()

        def serve() -> None:
            answer: T | BucketFull
            try:
                answer = act()
            except BucketFull as refusal:
                answer = refusal
            self._exchange.carry(self._name, self._name, self._client.name, lambda: arrive(answer))

        self._exchange.carry(self._client.name, self._name, self._name, serve)
        with anyio.move_on_after(left_s):
            await answered.wait()
        if not answers:
            raise BusTimeout(f"no answer from bucket {self._name} within {timeout_s:g} s")
        if isinstance(answers[0], BucketFull):
            raise answers[0]
        return answers[0]


class _Cells:
    """What a watcher has not seen yet."""

    def __init__(self, client: Client, kept: KeptBucket) -> None:
        self._client = client
        self._kept = kept
        self._seen = 0
        self._changed = anyio.Event()

    def look_again(self) -> None:
        self._changed.set()

    def __aiter__(self) -> _Cells:
        return self

    async def __anext__(self) -> Cell:
        while True:
            await checkpoint()
            self._changed = anyio.Event()
            cell = self._kept.after(self._seen) if self._client.connected else None
            if cell is not None:
                self._seen = cell.revision
                return cell
            await self._changed.wait()
