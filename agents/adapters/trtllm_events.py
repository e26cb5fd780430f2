"""TensorRT-LLM's KV events: the JSON of `/kv_cache_events` to events. By its contract, not run.

An answer is a list of `{event_id, data}`, numbered from 0 by the engine; `data` is

- `created`: the cache is there, and empty;
- `stored`: blocks that follow each other behind `parent_hash`, each with its tokens and the level
  of memory where it lies (0 GPU, 1 host). The last one of a prompt may be partly filled: it cannot
  be found by its prefix until it is full, and is left out;
- `removed`: hashes, without the level, which is why it is remembered here;
- `updated`: a block that moved to another level.

With sliding windows each window has a cache of its own; only that of the widest window holds whole
prefixes. With attention data parallelism each rank has a cache and numbers of its own, and one
answer tells of all: what any of them has, the engine has.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from agents.adapters.protocol import (
    Cleared,
    EngineEvent,
    LossReason,
    Lost,
    Removed,
    Stored,
    Token,
)
from proto.kv import Tier

LEVELS = {0: Tier.GPU, 1: Tier.HOST, 2: Tier.DISK}
_MASK = (1 << 64) - 1


class _Token(msgspec.Struct):
    token_id: Token


class _Block(msgspec.Struct):
    block_hash: int
    tokens: list[_Token] = []
    cache_level: int = 0
    lora_id: int | None = None


class _Change(msgspec.Struct):
    new_value: int


class _Created(msgspec.Struct, tag="created"):
    pass


class _Stored(msgspec.Struct, tag="stored"):
    blocks: list[_Block]
    parent_hash: int | None = None


class _Removed(msgspec.Struct, tag="removed"):
    block_hashes: list[int]


class _Updated(msgspec.Struct, tag="updated"):
    block_hash: int
    cache_level: _Change | None = None


class _Event(msgspec.Struct):
    event_id: int
    data: _Created | _Stored | _Removed | _Updated
    window_size: int | None = None
    attention_dp_rank: int | None = None


_Place = tuple[int | None, int]
"""A rank and a block."""

_answer = msgspec.json.Decoder(list[msgspec.Raw])
_event = msgspec.json.Decoder(_Event)


class TrtllmEvents:
    """Reads the answers of one engine, in order; `block_tokens` as its configuration says."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._next_ids: dict[int | None, int] = {}
        """By rank, of those that were heard."""
        self._widest = 0
        self._tiers: dict[_Place, Tier] = {}
        """Where each block lies, as removals do not say."""

    def read(self, payload: bytes) -> list[EngineEvent]:
        """The events of one answer."""
        try:
            raws = _answer.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return [Lost(LossReason.MALFORMED, f"answer: {error}")]
        return [event for raw in raws for event in self._read(raw)]

    def _read(self, raw: msgspec.Raw) -> Iterator[EngineEvent]:
        try:
            event = _event.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._next_ids[None] = self._next_ids.get(None, 0) + 1
            yield Lost(LossReason.MALFORMED, str(error))
            return
        rank = event.attention_dp_rank
        yield from self._numbered(rank, event.event_id)
        yield from self._windowed(event.window_size or 0)
        if event.window_size is None or event.window_size == self._widest:
            yield from self._told(rank, event.data)

    def _numbered(self, rank: int | None, event_id: int) -> Iterator[EngineEvent]:
        expected = self._next_ids.get(rank)
        if expected is not None and event_id < expected:
            self._tiers.clear()
            self._next_ids.clear()
            self._widest = 0
            yield Lost(LossReason.RESTART, f"event {event_id} after {expected - 1}")
        elif event_id > (expected or 0):
            yield Lost(LossReason.GAP, f"event {event_id} instead of {expected or 0}")
        self._next_ids[rank] = event_id + 1

    def _windowed(self, tokens: int) -> Iterator[EngineEvent]:
        """Who comes late may hear of a narrow window first, and take it for the widest."""
        if tokens > self._widest:
            self._widest = tokens
            if self._tiers:
                yield Lost(LossReason.GAP, f"some blocks were those of less than {tokens} tokens")

    def _told(
        self, rank: int | None, data: _Created | _Stored | _Removed | _Updated
    ) -> Iterator[EngineEvent]:
        match data:
            case _Created():
                # Another rank may have begun sooner.
                if all(of == rank for of, _ in self._tiers):
                    self._tiers.clear()
                    yield Cleared()
            case _Stored(blocks, parent):
                yield from self._stored(rank, blocks, None if parent is None else parent & _MASK)
            case _Removed(hashes):
                for block in hashes:
                    # One that was removed before may have had a copy, or have come in a gap.
                    tier = self._tiers.pop((rank, block & _MASK), Tier.GPU)
                    yield Removed((block & _MASK,), tier)
            case _Updated(block, level):
                yield from self._moved(rank, block & _MASK, level)

    def _stored(
        self, rank: int | None, blocks: list[_Block], parent: int | None
    ) -> Iterator[EngineEvent]:
        for block in blocks:
            if len(block.tokens) < self._block_tokens:
                return  # what follows a block that is not full cannot be there
            name = block.block_hash & _MASK
            tier = self._tiers[rank, name] = LEVELS.get(block.cache_level, Tier.DISK)
            yield Stored(
                hashes=(name,),
                parent=parent,
                tokens=[token.token_id for token in block.tokens],
                block_tokens=len(block.tokens),
                adapter="" if block.lora_id is None else str(block.lora_id),
                tier=tier,
            )
            parent = name

    def _moved(self, rank: int | None, block: int, level: _Change | None) -> Iterator[EngineEvent]:
        before = self._tiers.get((rank, block))
        if level is None or before is None:
            return
        tier = self._tiers[rank, block] = LEVELS.get(level.new_value, Tier.DISK)
        yield Stored((block,), None, (), self._block_tokens, tier=tier)
        yield Removed((block,), before)
