"""The bounded queue behind every `FrameStream`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import anyio
from anyio.lowlevel import checkpoint

from proto.wire.errors import FramesError

TURN_MESSAGES = 256
"""Taken at one go before others get a turn: a full queue must not keep the loop to its reader."""


class FrameQueue:
    """A `FrameStream` for one reader. Cancelling a wait loses nothing."""

    def __init__(self, queue_messages: int) -> None:
        self._queue: deque[Sequence[bytes]] = deque()
        self._queue_messages = queue_messages
        self._waiting: anyio.Event | None = None
        self._failure: FramesError | None = None
        self._taken = 0
        self.dropped = 0

    def offer(self, frames: Sequence[bytes]) -> None:
        """Append a message, or count it as dropped."""
        if len(self._queue) >= self._queue_messages:
            self.dropped += 1
            return
        self._queue.append(frames)
        self._wake()

    def fail(self, failure: FramesError) -> None:
        """There will be no more: raise this once what is here has been read."""
        self._failure = failure
        self._wake()

    def __aiter__(self) -> FrameQueue:
        return self

    async def __anext__(self) -> Sequence[bytes]:
        while not self._queue:
            if self._failure:
                raise self._failure
            self._waiting = anyio.Event()
            await self._waiting.wait()
        self._taken += 1
        if self._taken % TURN_MESSAGES == 0:
            await checkpoint()
        return self._queue.popleft()

    def _wake(self) -> None:
        if self._waiting:
            self._waiting.set()
            self._waiting = None
