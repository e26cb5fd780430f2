"""The `Frames` port within one process, and the engine's side of it.

An engine that lives in the same process binds its endpoints here, as it would bind ZeroMQ
sockets; whoever listens may come before it, stay when it goes, and hear its successor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import anyio
from anyio.lowlevel import checkpoint

from proto.wire.errors import FramesError
from proto.wire.inbox import Inbox

Answer = Callable[[Sequence[bytes]], Iterable[Sequence[bytes]]]
"""What a bound ROUTER socket does: a request in, replies out."""


class MemoryFrames:
    """A `Frames` port whose endpoints are names."""

    def __init__(self) -> None:
        self._queues: dict[str, list[Inbox[Sequence[bytes]]]] = defaultdict(list)
        self._answers: dict[str, Answer] = {}

    def publish(self, endpoint: str, frames: Sequence[bytes]) -> None:
        """As a PUB socket bound there: whoever listens now hears it, nobody waits."""
        for queue in self._queues[endpoint]:
            queue.offer(frames)

    @contextmanager
    def respond(self, endpoint: str, answer: Answer) -> Iterator[None]:
        """As a ROUTER socket bound there, while the context is open."""
        if endpoint in self._answers:
            raise ValueError(f"{endpoint} is bound already")
        self._answers[endpoint] = answer
        try:
            yield
        finally:
            del self._answers[endpoint]

    @asynccontextmanager
    async def subscribe(
        self, endpoint: str, *, queue_messages: int = 65_536
    ) -> AsyncGenerator[Inbox[Sequence[bytes]], None]:
        """Follow what is published there; see the port."""
        queue = Inbox[Sequence[bytes]](endpoint, queue_messages)
        self._queues[endpoint].append(queue)
        try:
            yield queue
        finally:
            self._queues[endpoint].remove(queue)

    async def ask(
        self, endpoint: str, request: Sequence[bytes], *, silence_s: float
    ) -> AsyncGenerator[Sequence[bytes], None]:
        """Ask whoever responds there; see the port."""
        if answer := self._answers.get(endpoint):
            for frames in answer(request):
                await checkpoint()
                yield frames
        await anyio.sleep(silence_s)
        raise FramesError(f"{endpoint} was silent for {silence_s:g} s")
