"""KV events over ZeroMQ in vLLM 0.32's wire, and in that of older versions.

Live, on a PUB socket: `topic | sequence (u64, big-endian, from 0) | payload`, the payload msgpack
`[timestamp, [event, ...], data_parallel_rank]`. On request, on a ROUTER socket, what a subscriber
missed: it sends `empty | first sequence wanted` and gets `empty | topic | sequence | payload` for
each batch still remembered, then the end mark `empty | empty | ff ff ff ff ff ff ff ff | empty`.

An event is a map with its kind under "type"; older versions wrote an array, the kind first.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum

import msgspec
import zmq
import zmq.asyncio

from workers.sim.cache import CacheEvent, Cleared, Removed, RequestId, Stored
from workers.sim.request import Sequenced

BATCHES_KEPT = 10_000
LIVE_BATCHES_QUEUED = 100_000
"""For each subscriber; vLLM's defaults, both."""

_END = b"\xff" * 8
_MEDIUM = "GPU"
_REPLAY_SLICE = 256

_log = logging.getLogger(__name__)


class EventFormat(Enum):
    """How an event is written; the array is that of vLLM before 0.26."""

    MAP = "map"
    ARRAY = "array"


class HashFormat(Enum):
    """How a block's name is written: its low 64 bits as an int, or all 32 bytes."""

    INT = "int"
    BYTES = "bytes"


class EventEncoder:
    """Turns the cache's events into what goes on the wire."""

    def __init__(
        self, block_tokens: int, event_format: EventFormat, hash_format: HashFormat
    ) -> None:
        self._block_tokens = block_tokens
        self._maps = event_format is EventFormat.MAP
        self._ints = hash_format is HashFormat.INT

    def encode(
        self, events: Iterable[CacheEvent], owner: Callable[[RequestId], Sequenced]
    ) -> list[object]:
        """Events in order; as in vLLM, every evicted block is an event of its own."""
        wire: list[object] = []
        for event in events:
            match event:
                case Stored():
                    wire.append(self._stored(event, owner(event.owner)))
                case Removed(names):
                    wire += [self._removed(name) for name in names]
                case Cleared():
                    wire.append(self._write({"type": "AllBlocksCleared"}))
        return wire

    def _stored(self, event: Stored, sequence: Sequenced) -> object:
        start = event.first_block * self._block_tokens
        end = start + len(event.names) * self._block_tokens
        extra_keys: list[list[str] | None] = [None] * len(event.names)
        if event.parent is None and sequence.cache_salt is not None:
            extra_keys[0] = [sequence.cache_salt]
        fields: dict[str, object] = {
            "type": "BlockStored",
            "block_hashes": [self.name_of(name) for name in event.names],
            "parent_block_hash": None if event.parent is None else self.name_of(event.parent),
            "token_ids": list(sequence.tokens[start:end]),
            "block_size": self._block_tokens,
            "lora_id": None,
            "medium": _MEDIUM,
            "lora_name": None,
            "extra_keys": extra_keys,
        }
        if self._maps:
            fields |= {"group_idx": 0, "kv_cache_spec_kind": "full_attention"}
        return self._write(fields)

    def _removed(self, name: int) -> object:
        fields: dict[str, object] = {
            "type": "BlockRemoved",
            "block_hashes": [self.name_of(name)],
            "medium": _MEDIUM,
        }
        if self._maps:
            fields["group_idx"] = 0
        return self._write(fields)

    def _write(self, fields: dict[str, object]) -> object:
        return fields if self._maps else list(fields.values())

    def name_of(self, name: int) -> int | bytes:
        """A block's name as it goes on the wire."""
        return name & (2**64 - 1) if self._ints else name.to_bytes(32, "big")


class EventPublisher:
    """Publishes batches and answers replay requests.

    Raises OSError, naming the endpoint, if one cannot be bound.
    """

    def __init__(self, endpoint: str, replay_endpoint: str | None, topic: str) -> None:
        self._topic = topic.encode()
        self._sequence = 0
        self._kept: deque[tuple[bytes, bytes]] = deque(maxlen=BATCHES_KEPT)
        self._encoder = msgspec.msgpack.Encoder()
        self._context = zmq.Context()
        self._live: zmq.Socket[bytes] = self._context.socket(zmq.PUB)
        self._replay: zmq.asyncio.Socket | None = None
        self._live.set_hwm(LIVE_BATCHES_QUEUED)
        self._bind(self._live, endpoint)
        if replay_endpoint is not None:
            self._replay = zmq.asyncio.Context(self._context).socket(zmq.ROUTER)
            # Whoever asks gets the whole buffer, which bounds what may be queued for it.
            self._replay.set_hwm(0)
            self._bind(self._replay, replay_endpoint)

    def publish(self, events: list[object], timestamp_s: float) -> None:
        """Send one batch; never waits: a subscriber that is too slow misses it, as with vLLM."""
        payload = self._encoder.encode([timestamp_s, events, 0])
        sequence = self._sequence.to_bytes(8, "big")
        self._sequence += 1
        self._kept.append((sequence, payload))
        self._live.send_multipart((self._topic, sequence, payload), flags=zmq.NOBLOCK)

    async def serve_replay(self) -> None:
        """Answer replay requests, one after another, until cancelled."""
        if self._replay is None:
            return
        while True:
            frames = await self._replay.recv_multipart()
            if len(frames) != 3 or len(frames[2]) != 8:
                _log.warning("a replay request of %d frames is not understood", len(frames))
                continue
            await self._resend(self._replay, frames[0], frames[2])

    async def _resend(self, replay: zmq.asyncio.Socket, reader: bytes, start: bytes) -> None:
        # Eight big-endian bytes compare as the numbers do.
        wanted = [(sequence, payload) for sequence, payload in self._kept if sequence >= start]
        for index, (sequence, payload) in enumerate(wanted):
            await replay.send_multipart((reader, b"", self._topic, sequence, payload))
            if index % _REPLAY_SLICE == 0:
                await asyncio.sleep(0)  # ten thousand batches must not hold up the engine
        await replay.send_multipart((reader, b"", b"", _END, b""))

    def _bind(self, socket: zmq.Socket[bytes] | zmq.asyncio.Socket, endpoint: str) -> None:
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            number = error.errno or 0
            raise OSError(number, os.strerror(number), endpoint) from error

    def close(self) -> None:
        """Free the ports; what was not sent yet is dropped."""
        if self._replay is not None:
            self._replay.close(linger=0)
        self._live.close(linger=0)
        self._context.term()
