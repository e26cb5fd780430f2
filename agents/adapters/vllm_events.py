"""vLLM's KV events: bytes of one batch to events, in every encoding seen so far.

A batch is an array `[ts, events, data_parallel_rank]`, whose last element may be missing, or a map
with those keys; an event is an array that begins with its type, or a map with the key `type`.
Hashes are 64-bit numbers, signed or not, or bytes. Fields may be missing where they have their
default, and unknown ones are skipped.

An event that cannot be read may have stored or removed anything, so `Lost` stands in its place;
the others of its batch are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from agents.adapters.protocol import (
    Cleared,
    EngineEvent,
    EngineHash,
    EngineUnfit,
    LossReason,
    Lost,
    Removed,
    Stored,
    Token,
)
from proto.kv import Tier

TIERS = {"GPU": Tier.GPU, "CPU": Tier.HOST, "STORAGE": Tier.DISK}
PARTIAL_KINDS = ("sliding_window", "chunked_local", "mamba", "encoder_only", "cross")
"""Cache groups that do not hold a whole prompt; a prefix hit is decided by those that do."""
REUSED = "REUSED"
_MASK = (1 << 64) - 1

ExtraKeys = list[Any] | None
"""One block's: a LoRA's name, media keys (text, or text and offset), a salt, in this order."""


class VllmEvents:
    """Reads the batches of one engine; `rank` is the data-parallel rank it must be, if known."""

    def __init__(self, rank: int | None = None) -> None:
        self._rank = rank
        self._partial_groups: set[int] = set()

    def read(self, payload: bytes) -> list[EngineEvent]:
        """The events of one batch. Raises `EngineUnfit` if it comes from another rank."""
        try:
            batch = _decode_batch(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return [Lost(LossReason.MALFORMED, f"batch: {error}")]
        if self._rank is not None and batch.data_parallel_rank not in (None, self._rank):
            raise EngineUnfit(
                f"the KV events are those of data-parallel rank {batch.data_parallel_rank}, this "
                f"agent serves rank {self._rank}: vLLM adds the rank to the endpoints' ports"
            )
        return [event for raw in batch.events if (event := self._read_event(raw)) is not None]

    def _read_event(self, raw: msgspec.Raw) -> EngineEvent | None:
        """None for what does not tell of whole prefixes."""
        try:
            event = _decode_event(raw)
            match event:
                case _Stored():
                    return self._stored(event)
                case _Removed():
                    return self._removed(event)
                case _Cleared():
                    return Cleared()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return Lost(LossReason.MALFORMED, str(error))

    def _stored(self, event: _Stored) -> Stored | None:
        group, kind = event.group_idx, event.kv_cache_spec_kind
        if group is not None and kind:
            # Kept, as removals name the group only. An engine's next life may have others.
            self._partial_groups.discard(group)
            if kind.startswith(PARTIAL_KINDS):
                self._partial_groups.add(group)
        if group in self._partial_groups:
            return None
        tokens = len(event.block_hashes) * event.block_size
        if not event.block_size or len(event.token_ids) not in (0, tokens):
            raise msgspec.ValidationError(
                f"{len(event.block_hashes)} blocks of {event.block_size} tokens "
                f"with {len(event.token_ids)} tokens"
            )
        adapter = event.lora_name or ("" if event.lora_id is None else str(event.lora_id))
        salt, media = _scope_of(event, adapter)
        return Stored(
            hashes=_hashes(event.block_hashes),
            parent=None if event.parent_block_hash is None else _hash(event.parent_block_hash),
            tokens=event.token_ids,
            block_tokens=event.block_size,
            adapter=adapter,
            salt=salt,
            media=media,
            tier=_tier(event.medium),
            reused=isinstance(event, _StoredMap) and event.origin == REUSED,
        )

    def _removed(self, event: _Removed) -> Removed | None:
        if event.group_idx in self._partial_groups:
            return None
        return Removed(_hashes(event.block_hashes), _tier(event.medium))


def _scope_of(event: _Stored, adapter: str) -> tuple[str, tuple[tuple[str, ...], ...]]:
    """The salt, and the media keys of each block, from keys that are published without labels.

    vLLM hashes the salt into the first block of a prompt only, as its last text. An older vLLM
    gives media keys as texts too: an image in the first block may be taken for a salt, which
    names its blocks apart from all others, as it must.
    """
    if not event.extra_keys or not any(event.extra_keys):
        return "", ()
    salt = ""
    blocks = []
    for index, block_keys in enumerate(event.extra_keys):
        keys = list(block_keys or ())
        if adapter and keys[:1] == [adapter]:
            del keys[0]  # only there: a salt may be spelled like it
        if index == 0 and event.parent_block_hash is None and keys and isinstance(keys[-1], str):
            salt = keys.pop()
        blocks.append(tuple([_text(key) for key in keys]))
    return salt, tuple(blocks) if any(blocks) else ()


def _text(key: Any) -> str:
    """An image comes as its digest, or as digest and offset; where it lies the tokens tell."""
    if isinstance(key, list) and key:
        return _text(key[0])
    return key if isinstance(key, str) else str(key)


def _tier(medium: str | None) -> Tier:
    if medium is None:
        return Tier.GPU
    if medium not in TIERS:
        raise msgspec.ValidationError(f"unknown medium {medium!r}")
    return TIERS[medium]


def _hashes(hashes: Sequence[EngineHash]) -> tuple[EngineHash, ...]:
    return tuple([_hash(value) for value in hashes])


def _hash(value: EngineHash) -> EngineHash:
    return value if isinstance(value, bytes) else value & _MASK


# --- the wire


class _Batch(msgspec.Struct):
    events: list[msgspec.Raw]
    data_parallel_rank: int | None = None


class _BatchArray(msgspec.Struct, array_like=True):
    ts: float
    events: list[msgspec.Raw]
    data_parallel_rank: int | None = None


class _Stored(msgspec.Struct):
    """Fields stand in the order of the positional encoding."""

    block_hashes: list[EngineHash]
    parent_block_hash: EngineHash | None = None
    token_ids: list[Token] = []
    block_size: int = 0
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[ExtraKeys] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class _Removed(msgspec.Struct):
    block_hashes: list[EngineHash]
    medium: str | None = None
    group_idx: int | None = None


class _Cleared(msgspec.Struct):
    pass


class _StoredMap(_Stored, tag="BlockStored"):
    origin: str | None = None
    """Proposed, not yet in a release: `NEW` or `REUSED`."""


class _RemovedMap(_Removed, tag="BlockRemoved"):
    pass


class _ClearedMap(_Cleared, tag="AllBlocksCleared"):
    pass


class _StoredArray(_Stored, array_like=True, tag="BlockStored"):
    pass


class _RemovedArray(_Removed, array_like=True, tag="BlockRemoved"):
    pass


class _ClearedArray(_Cleared, array_like=True, tag="AllBlocksCleared"):
    pass


_Event = _Stored | _Removed | _Cleared
_batch_map = msgspec.msgpack.Decoder(_Batch)
_batch_array = msgspec.msgpack.Decoder(_BatchArray)
_event_map = msgspec.msgpack.Decoder(_StoredMap | _RemovedMap | _ClearedMap)
_event_array = msgspec.msgpack.Decoder(_StoredArray | _RemovedArray | _ClearedArray)


def _decode_batch(payload: bytes) -> _Batch | _BatchArray:
    return _batch_array.decode(payload) if _is_array(payload) else _batch_map.decode(payload)


def _decode_event(raw: msgspec.Raw) -> _Event:
    data = bytes(raw)
    event: _Event = (_event_array if _is_array(data) else _event_map).decode(data)
    return event


def _is_array(data: bytes) -> bool:
    """Whether a msgpack value is an array: fixarray, array 16 or array 32."""
    return bool(data) and (data[0] & 0xF0 == 0x90 or data[0] in (0xDC, 0xDD))
