"""Messages that nobody waits for: they leave in order, a moment later, those of a moment together.

A message costs its sender little and a write to its socket much.
"""

from __future__ import annotations

import logging
from collections import deque

import anyio
import msgspec

from controlplane.runtime.tracing import inject
from proto.codec import Producer
from proto.wire.errors import BusError
from proto.wire.ports import Bus, Headers

log = logging.getLogger(__name__)

WAITING_MAX = 16_384
"""What is too much is dropped, and so is what the bus does not take."""


class Outbox:
    """Of one service; `put` never waits."""

    def __init__(self, bus: Bus, producer: Producer, *, gather_s: float) -> None:
        """With `gather_s` 0 what is put leaves right behind the answer of who puts it, mostly in
        the same write: nobody who acts on the answer is told of sooner."""
        self._gather_s = gather_s
        self._bus = bus
        self._producer = producer
        self._waiting: deque[tuple[str, msgspec.Struct, Headers]] = deque()
        self._publishing = anyio.Lock(fast_acquire=True)
        self._news = anyio.Event()

    def put(self, subject: str, body: msgspec.Struct) -> None:
        """To be published, in the trace of who puts it."""
        if len(self._waiting) < WAITING_MAX:
            self._waiting.append((subject, body, inject()))
            self._news.set()

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            await anyio.sleep(self._gather_s)
            await self.settled()

    async def settled(self) -> None:
        """All that was put has been published, whoever of several that wait for it does that."""
        async with self._publishing:
            while self._waiting:
                subject, body, headers = self._waiting[0]
                try:
                    await self._bus.publish(subject, self._producer.seal(body), headers=headers)
                except BusError as error:
                    log.debug("nobody was told on %s: %s", subject, error)
                self._waiting.popleft()
