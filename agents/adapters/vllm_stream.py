"""vLLM's event sockets: every batch once and in order, or word that some are lost.

SGLang has the same sockets, with other words in their payloads: those are the reader's. Messages
are `[topic, sequence, payload]`; sequences count from 0 in each life of the engine. The replay
socket answers `["", start]` with the batches it still has from `start` on, each as
`["", topic, sequence, payload]` (older: without the topic), and ends with sequence -1.

- A hole is filled by replay; what cannot be filled is `Lost`.
- A new life shows in two ways: the PUB socket goes back in its numbers, or the last batch we know
  is replayed differently or not at all. The latter also finds a new life whose numbers have
  caught up with the old one's, and one that has said nothing yet.
- When it is quiet, or when we are told that the engine was away, a replay is asked for. So a lost
  last batch is found without waiting for another one, and so is what was said before our
  subscription took hold.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Protocol

import anyio
from anyio.lowlevel import checkpoint

from agents.adapters.protocol import Deliver, EngineEvent, LossReason, Lost
from proto.wire.errors import FramesError
from proto.wire.ports import Frames

log = logging.getLogger(__name__)

SEQUENCE_BYTES = 8
END_OF_REPLAY = (1 << 64) - 1
REPLAY_SILENCE_S = 2.0
QUIET_S = 5.0


class BatchReader(Protocol):
    """What the payload of one message says; knows one engine's words."""

    def read(self, payload: bytes) -> list[EngineEvent]:
        """The events of one batch, in order. Raises `EngineUnfit`."""


class EventStream(Protocol):
    """The KV events of one engine."""

    async def follow(self, deliver: Deliver) -> None:
        """As `EngineAdapter.follow`."""

    def recheck(self) -> None:
        """As `EngineAdapter.recheck`."""


class Silence:
    """Of an engine that has none, or none that are followed."""

    async def follow(self, deliver: Deliver) -> None:
        """Never deliver anything."""
        del deliver
        await anyio.sleep_forever()

    def recheck(self) -> None:
        """Nothing to find out."""


class VllmStream:
    """The KV events of one engine. `replay` None: what is lost stays lost."""

    def __init__(
        self, frames: Frames, events: str, replay: str | None, reader: BatchReader
    ) -> None:
        self._frames = frames
        self._events = events
        self._replay = replay
        self._reader = reader
        self._next: int | None = None  # the sequence to be delivered next, once one is known
        self._last = b""  # the payload delivered before it
        self._heard: int | None = None  # the last sequence from the PUB socket itself
        self._replays = True  # the replay socket answers
        self._listening: anyio.CancelScope | None = None

    async def follow(self, deliver: Deliver) -> None:
        """Deliver until cancelled; starts over each time it is called."""
        self._next = self._heard = None
        async with self._frames.subscribe(self._events) as stream:
            messages = aiter(stream)
            await self._catch_up(deliver)
            while True:
                message = None
                with anyio.move_on_after(QUIET_S) as self._listening:
                    message = await anext(messages)
                if message is None:
                    await self._catch_up(deliver)
                else:
                    await self._hear(message, deliver)
                await checkpoint()  # a burst must not keep the loop to itself

    def recheck(self) -> None:
        """The engine was away: find out soon whether it is still the same."""
        if self._listening is not None:
            self._listening.cancel()

    async def _hear(self, message: Sequence[bytes], deliver: Deliver) -> None:
        """One message of the PUB socket."""
        parts = _sequence_and_payload(message)
        if parts is None:
            deliver([Lost(LossReason.MALFORMED, f"a message of {len(message)} frames")])
            return
        sequence, payload = parts
        if self._heard is not None and sequence <= self._heard:
            self._begin_anew(f"sequence {sequence} came after {self._heard}", deliver)
        self._heard = sequence
        if self._next is not None and sequence > self._next:
            await self._catch_up(deliver)
        self._take(sequence, payload, deliver)

    async def _catch_up(self, deliver: Deliver) -> None:
        """Deliver what the engine can replay from the next sequence on."""
        if self._replay is None:
            return
        try:
            if not await self._replay_on(self._replay, deliver):
                self._begin_anew("the last batch is not replayed as it was", deliver)
                await self._replay_on(self._replay, deliver)
        except FramesError as error:
            level = logging.WARNING if self._replays else logging.DEBUG  # say it once
            log.log(level, "no replay of KV events: %s", error)
            self._replays = False
        else:
            self._replays = True

    async def _replay_on(self, endpoint: str, deliver: Deliver) -> bool:
        """False if the engine does not remember the last batch that we know of it."""
        known = self._next - 1 if self._next else None
        recognised = known is None
        batches = _replayed(self._frames, endpoint, known or 0)
        async with aclosing(batches):
            async for sequence, payload in batches:
                if sequence == known and payload != self._last:
                    return False
                recognised = True
                self._take(sequence, payload, deliver)
                await checkpoint()
        if self._next is None:
            self._next = 0  # nothing has happened in the engine yet
        return recognised

    def _begin_anew(self, detail: str, deliver: Deliver) -> None:
        self._next, self._heard = 0, None
        deliver([Lost(LossReason.RESTART, detail)])

    def _take(self, sequence: int, payload: bytes, deliver: Deliver) -> None:
        """Deliver a batch if it is new."""
        if self._next is not None:
            if sequence < self._next:
                return
            if sequence > self._next:
                deliver([Lost(LossReason.GAP, f"{self._next} to {sequence - 1}")])
        self._next, self._last = sequence + 1, payload
        deliver(self._reader.read(payload))


async def _replayed(
    frames: Frames, endpoint: str, start: int
) -> AsyncGenerator[tuple[int, bytes], None]:
    """The batches that the engine still has from `start` on. Raises `FramesError`."""
    request = [b"", start.to_bytes(SEQUENCE_BYTES, "big")]
    replies = frames.ask(endpoint, request, silence_s=REPLAY_SILENCE_S)
    try:
        async for message in replies:
            parts = _sequence_and_payload(message)
            if parts is None:
                raise FramesError(f"{endpoint} sent a reply of {len(message)} frames")
            if parts[0] == END_OF_REPLAY:
                return
            yield parts
    finally:
        await _hang_up(replies)


async def _hang_up(replies: AsyncIterator[Sequence[bytes]]) -> None:
    """The port promises an iterator; where it is a generator, it holds a socket until closed."""
    if isinstance(replies, AsyncGenerator):
        await replies.aclose()


def _sequence_and_payload(message: Sequence[bytes]) -> tuple[int, bytes] | None:
    """The last two frames, whatever comes before them; None if they cannot be those."""
    if len(message) < 2 or len(message[-2]) != SEQUENCE_BYTES:
        return None
    return int.from_bytes(message[-2], "big"), message[-1]
