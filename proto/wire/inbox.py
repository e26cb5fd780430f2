"""The bounded queue behind every subscription of the bus, whatever carries it."""

from __future__ import annotations

import logging
from collections import deque
from typing import Generic, TypeVar

import anyio
from anyio.lowlevel import checkpoint

log = logging.getLogger(__name__)

Item = TypeVar("Item")

TURN_MESSAGES = 256
"""Taken at one go before others get a turn: a full queue must not keep the loop to its reader."""


class Inbox(Generic[Item]):
    """A `Subscription`: keeps what came first, drops and counts the newest when full.

    Cancelling a wait loses nothing. Once closed, what is left can be read and then it ends.
    """

    def __init__(self, name: str, queue_messages: int) -> None:
        if queue_messages < 1:
            raise ValueError(f"{name}: a queue needs room for a message, not {queue_messages}")
        self.dropped = 0
        self._name = name
        self._queue_messages = queue_messages
        self._waiting: deque[Item] = deque()
        self._arrived: anyio.Event | None = None
        self._closed = False
        self._taken = 0

    @property
    def waiting(self) -> int:
        """Items that were not taken yet."""
        return len(self._waiting)

    def offer(self, item: Item) -> None:
        """Append an item, or count it as dropped."""
        if len(self._waiting) >= self._queue_messages:
            if not self.dropped:
                log.warning("%s: %d messages wait unread; dropping", self._name, len(self._waiting))
            self.dropped += 1
            return
        self._waiting.append(item)
        self._wake()

    def take(self) -> Item | None:
        """The next item, if one waits."""
        return self._waiting.popleft() if self._waiting else None

    def close(self) -> None:
        """There will be no more."""
        self._closed = True
        self._wake()

    def __aiter__(self) -> Inbox[Item]:
        return self

    async def __anext__(self) -> Item:
        self._taken += 1
        if self._taken % TURN_MESSAGES == 0:
            await checkpoint()
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            if self._arrived is None:
                self._arrived = anyio.Event()
            await self._arrived.wait()
        return self._waiting.popleft()

    def _wake(self) -> None:
        if self._arrived is not None:
            self._arrived.set()
            self._arrived = None
