"""One story in the dialects of three engines: the same blocks get the same canonical names."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from agents.adapters.protocol import (
    Cleared,
    EngineEvent,
    EngineUnfit,
    LossReason,
    Lost,
    Removed,
    Stored,
)
from agents.adapters.sglang_events import SglangEvents
from agents.adapters.trtllm_events import TrtllmEvents
from agents.adapters.vllm_events import VllmEvents
from agents.live import LiveSet
from agents.translator import Translator
from proto.hashing import BlockHasher, Scope, digest
from proto.kv import Tier

BLOCK = 4
PROMPT = list(range(12))
NAMES = BlockHasher(b"k", Scope("m"), BLOCK).names(PROMPT).tolist()


def vllm(*events: dict[str, Any]) -> Sequence[EngineEvent]:
    return VllmEvents().read(msgspec.msgpack.encode([1.0, events, 0]))


def sglang(*events: dict[str, Any], rank: int | None = 0) -> Sequence[EngineEvent]:
    return SglangEvents(0).read(msgspec.msgpack.encode([1.0, events, rank]))


def page(hash: int, parent: int | None, tokens: object, **more: object) -> dict[str, object]:
    fields = {"block_hashes": [hash], "parent_block_hash": parent, "token_ids": tokens}
    return {"type": "BlockStored", **fields, "block_size": BLOCK, "lora_id": None, **more}


def trtllm_block(hash: int, tokens: Sequence[int], level: int = 0) -> dict[str, object]:
    ids = [{"type": "unique_token", "token_id": t, "token_extra_id": 0} for t in tokens]
    return {"type": "stored_block", "block_hash": hash, "tokens": ids, "cache_level": level}


class Trtllm:
    """An engine that numbers its events."""

    def __init__(self) -> None:
        self.reader = TrtllmEvents(BLOCK)
        self.next_id = 0

    def __call__(self, *events: dict[str, Any], window: int | None = None) -> list[EngineEvent]:
        numbered = []
        for data in events:
            numbered.append({"event_id": self.next_id, "data": data, "window_size": window})
            self.next_id += 1
        return self.reader.read(json.dumps(numbered).encode())


def told_by_vllm() -> Sequence[EngineEvent]:
    blocks = {"block_hashes": [1, 2, 3], "parent_block_hash": None, "token_ids": PROMPT}
    removed = {"type": "BlockRemoved", "block_hashes": [3], "medium": "GPU"}
    return vllm({"type": "BlockStored", **blocks, "block_size": BLOCK}, removed)


def told_by_sglang() -> Sequence[EngineEvent]:
    pages = [page(-7, None, PROMPT[:4]), page(8, -7, PROMPT[4:8]), page(9, 8, PROMPT[8:])]
    return sglang(*pages, {"type": "BlockRemoved", "block_hashes": [9], "medium": "GPU"})


def told_by_trtllm() -> Sequence[EngineEvent]:
    blocks = [trtllm_block(10 + i, PROMPT[4 * i : 4 * i + 4]) for i in range(3)]
    return Trtllm()(
        {"type": "created", "num_blocks_per_cache_level": [100, 0]},
        {"type": "stored", "parent_hash": None, "blocks": [*blocks, trtllm_block(99, [5, 6])]},
        {"type": "removed", "block_hashes": [12]},
    )


@pytest.mark.parametrize("tell", [told_by_vllm, told_by_sglang, told_by_trtllm])
def test_the_same_blocks_have_the_same_names(tell: Callable[[], Sequence[EngineEvent]]) -> None:
    live = LiveSet()
    translator = Translator(live, b"k", "m", BLOCK)
    for event in tell():
        translator.apply(event)
    assert (live.blocks, live.digest) == (2, digest(NAMES[:2]))


def test_sglang_says_salt_adapter_and_tier() -> None:
    salted = page(1, None, PROMPT[:4], cache_salt="t", lora_name="fr", medium="CPU_PINNED")
    behind = page(2, 1, PROMPT[4:8], cache_salt="t")
    first, second = sglang(salted, behind)
    assert isinstance(first, Stored) and isinstance(second, Stored)
    assert (first.salt, first.adapter, first.tier) == ("t", "fr", Tier.HOST)
    assert (second.salt, second.adapter) == ("", "")


def test_sglang_pairs_are_their_first_token() -> None:
    [event] = sglang(page(1, None, [(t, t + 1) for t in PROMPT[:4]]))
    assert isinstance(event, Stored) and event.tokens == PROMPT[:4]


def test_what_sglang_keeps_elsewhere_is_not_the_workers() -> None:
    assert sglang(page(1, None, PROMPT[:4], medium="EXTERNAL")) == []


def test_sglang_nonsense_is_a_loss_and_another_rank_is_refused() -> None:
    cleared = {"type": "AllBlocksCleared"}
    lost, rest = sglang(page(1, None, [1]), cleared)
    assert isinstance(lost, Lost) and rest == Cleared()
    assert isinstance(SglangEvents().read(b"\xc1")[0], Lost)
    with pytest.raises(EngineUnfit, match="rank 3"):
        sglang(cleared, rank=3)


def test_trtllm_blocks_move_between_levels() -> None:
    engine = Trtllm()
    engine({"type": "stored", "parent_hash": None, "blocks": [trtllm_block(1, PROMPT[:4])]})
    change = {"type": "event_diff", "new_value": 1, "old_value": 0}
    stored, removed = engine({"type": "updated", "block_hash": 1, "cache_level": change})
    assert isinstance(stored, Stored) and (stored.tier, stored.tokens) == (Tier.HOST, ())
    assert removed == Removed((1,), Tier.GPU)
    assert engine({"type": "removed", "block_hashes": [1, 77]}) == [
        Removed((1,), Tier.HOST),
        Removed((77,), Tier.GPU),
    ]


def test_trtllm_gaps_and_restarts_are_losses() -> None:
    engine = Trtllm()
    engine({"type": "created"})
    engine.next_id += 2
    gap, *_ = engine({"type": "removed", "block_hashes": []})
    engine.next_id = 0
    restart, *_ = engine({"type": "created"})
    assert isinstance(gap, Lost) and gap.reason is LossReason.GAP
    assert isinstance(restart, Lost) and restart.reason is LossReason.RESTART


def test_trtllm_nonsense_is_a_loss_and_the_rest_is_read() -> None:
    engine = Trtllm()
    [lost, rest] = engine({"type": "stored"}, {"type": "created"})
    assert isinstance(lost, Lost) and rest == Cleared()
    assert isinstance(engine.reader.read(b"{")[0], Lost)


def test_trtllm_narrow_windows_do_not_hold_prefixes() -> None:
    engine = Trtllm()
    engine({"type": "created"}, window=4_096)
    block = {"type": "stored", "parent_hash": None, "blocks": [trtllm_block(1, PROMPT[:4])]}
    assert engine(block, window=512) == []
    assert len(engine(block, window=4_096)) == 1


def live_after(events: Sequence[EngineEvent]) -> int:
    live = LiveSet()
    translator = Translator(live, b"k", "m", BLOCK, 100)
    for event in events:
        translator.apply(event)
    return live.blocks


def test_trtllm_blocks_with_two_copies_live_until_both_are_removed() -> None:
    stored = {"type": "stored", "parent_hash": None, "blocks": [trtllm_block(1, PROMPT[:4])]}
    engine = Trtllm()
    events = engine({"type": "created"}, stored, stored)
    assert live_after(events) == 1
    for live in (1, 0):
        events += engine({"type": "removed", "block_hashes": [1]})
        assert live_after(events) == live


def test_trtllm_windows_of_the_next_life_may_be_narrower() -> None:
    engine = Trtllm()
    engine({"type": "created"}, window=32_768)
    engine.next_id = 0
    stored = {"type": "stored", "parent_hash": None, "blocks": [trtllm_block(1, PROMPT[:4])]}
    lost, *events = engine({"type": "created"}, stored, window=16_384)
    assert isinstance(lost, Lost) and lost.reason is LossReason.RESTART
    assert live_after(events) == 1


def test_trtllm_a_narrow_window_that_is_heard_first_leaves_nothing_behind() -> None:
    """Its blocks were taken for whole prefixes; what removes them is not listened to any more."""
    engine = Trtllm()
    engine.next_id = 7

    def told(kind: str, hash: int, window: int) -> list[EngineEvent]:
        if kind == "removed":
            return engine({"type": kind, "block_hashes": [hash]}, window=window)
        blocks = [trtllm_block(hash, PROMPT[:4])]
        return engine({"type": kind, "parent_hash": None, "blocks": blocks}, window=window)

    events = told("stored", 1, 16) + told("stored", 2, 64)
    assert live_after(events) == 1
    events += told("removed", 1, 16) + told("removed", 2, 64)
    assert live_after(events) == 0


def test_trtllm_ranks_of_attention_count_for_themselves() -> None:
    """One queue tells of all of them, in turns."""
    stored = {"type": "stored", "parent_hash": None, "blocks": [trtllm_block(1, PROMPT[:4])]}
    removed = {"type": "removed", "block_hashes": [1]}
    reader, events = TrtllmEvents(BLOCK), []
    for rank, id, data, live in [
        (0, 0, {"type": "created"}, 0),
        (0, 1, stored, 1),
        (1, 0, {"type": "created"}, 1),
        (1, 1, stored, 1),
        (0, 2, removed, 1),
        (1, 2, removed, 0),
    ]:
        told = {"event_id": id, "data": data, "window_size": 64, "attention_dp_rank": rank}
        events += reader.read(json.dumps([told]).encode())
        assert live_after(events) == live
    assert not [event for event in events if isinstance(event, Lost)]
