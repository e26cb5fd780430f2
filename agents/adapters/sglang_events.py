"""SGLang's KV events: bytes of one batch to events. By its public contract (0.5), not run.

The frames, the numbers and the replay are vLLM's (`vllm_stream`). A batch is an array
`[ts, events, attn_dp_rank]` of maps, one `BlockStored` a page, with signed 64-bit hashes; a
`BlockRemoved` names a whole node of its radix tree. Salt and adapter are labelled fields. With
EAGLE a token is a pair of neighbours, of which the first is the token.
"""

from __future__ import annotations

import msgspec

from agents.adapters.protocol import (
    Cleared,
    EngineEvent,
    EngineUnfit,
    LossReason,
    Lost,
    Removed,
    Stored,
)
from proto.kv import Tier

TIERS = {"GPU": Tier.GPU, "CPU_PINNED": Tier.HOST, "DISK": Tier.DISK}
ELSEWHERE = "EXTERNAL"
"""In a store that all engines share: nothing of this worker's own."""
_MASK = (1 << 64) - 1


class _Stored(msgspec.Struct, tag="BlockStored"):
    block_hashes: list[int]
    parent_block_hash: int | None = None
    token_ids: list[int | list[int]] = []
    block_size: int = 0
    lora_id: int | None = None
    lora_name: str | None = None
    medium: str | None = None
    cache_salt: str | None = None


class _Removed(msgspec.Struct, tag="BlockRemoved"):
    block_hashes: list[int]
    medium: str | None = None


class _Cleared(msgspec.Struct, tag="AllBlocksCleared"):
    pass


class _Batch(msgspec.Struct, array_like=True):
    ts: float
    events: list[msgspec.Raw]
    attn_dp_rank: int | None = None


_batch = msgspec.msgpack.Decoder(_Batch)
_event = msgspec.msgpack.Decoder(_Stored | _Removed | _Cleared)


class SglangEvents:
    """Reads the batches of one engine; `rank` is the data-parallel rank it must be, if known."""

    def __init__(self, rank: int | None = None) -> None:
        self._rank = rank

    def read(self, payload: bytes) -> list[EngineEvent]:
        """The events of one batch. Raises `EngineUnfit` if it comes from another rank."""
        try:
            batch = _batch.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return [Lost(LossReason.MALFORMED, f"batch: {error}")]
        if self._rank is not None and batch.attn_dp_rank not in (None, self._rank):
            raise EngineUnfit(
                f"the KV events are those of data-parallel rank {batch.attn_dp_rank}, this agent "
                f"serves rank {self._rank}"
            )
        return [event for raw in batch.events if (event := _read(raw)) is not None]


def _read(raw: msgspec.Raw) -> EngineEvent | None:
    """None for what lies in no tier of this worker."""
    try:
        event = _event.decode(raw)
        if isinstance(event, _Cleared):
            return Cleared()
        if event.medium == ELSEWHERE:
            return None
        if isinstance(event, _Removed):
            return Removed(_hashes(event.block_hashes), _tier(event.medium))
        return _stored(event)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Lost(LossReason.MALFORMED, str(error))


def _stored(event: _Stored) -> Stored:
    tokens = [_token(token) for token in event.token_ids]
    if not event.block_size or len(tokens) not in (0, len(event.block_hashes) * event.block_size):
        raise msgspec.ValidationError(
            f"{len(event.block_hashes)} blocks of {event.block_size} tokens, {len(tokens)} tokens"
        )
    parent = event.parent_block_hash
    return Stored(
        hashes=_hashes(event.block_hashes),
        parent=None if parent is None else parent & _MASK,
        tokens=tokens,
        block_tokens=event.block_size,
        adapter=event.lora_name or ("" if event.lora_id is None else str(event.lora_id)),
        salt=(event.cache_salt or "") if parent is None else "",
        tier=_tier(event.medium),
    )


def _token(token: int | list[int]) -> int:
    value = token if isinstance(token, int) else token[0] if token else -1
    if not 0 <= value < 1 << 32:
        raise msgspec.ValidationError(f"{token!r} is no token")
    return value


def _tier(medium: str | None) -> Tier:
    if medium is None:
        return Tier.GPU
    if medium not in TIERS:
        raise msgspec.ValidationError(f"unknown medium {medium!r}")
    return TIERS[medium]


def _hashes(hashes: list[int]) -> tuple[int, ...]:
    return tuple([value & _MASK for value in hashes])
