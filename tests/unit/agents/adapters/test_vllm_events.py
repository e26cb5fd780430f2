from __future__ import annotations

from collections import Counter
from pathlib import Path
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
from agents.adapters.vllm_events import VllmEvents
from agents.live import LiveSet
from agents.translator import Translator
from proto.kv import Tier
from tests.recordings.reading import frames, payloads

STORIES = (
    "arrays-2",
    "arrays-3",
    "maps-in-array",
    "maps-in-map",
    "maps-future",
    "bytes-hashes",
    "signed-hashes",
)


def read(*batches: bytes, rank: int | None = None) -> list[EngineEvent]:
    reader = VllmEvents(rank)
    return [event for batch in batches for event in reader.read(batch)]


def batch(*events: Any) -> bytes:
    return msgspec.msgpack.encode([1.0, events, 0])


def stored(**fields: Any) -> dict[str, Any]:
    return {
        "type": "BlockStored",
        "block_hashes": [1],
        "parent_block_hash": None,
        "token_ids": [5, 6],
        "block_size": 2,
        **fields,
    }


def only_stored(**fields: Any) -> Stored:
    (event,) = read(batch(stored(**fields)))
    assert isinstance(event, Stored)
    return event


@pytest.mark.parametrize("name", STORIES)
def test_every_encoding_tells_the_same_story(name: str) -> None:
    first, second, removed, cleared = read(*payloads(f"vllm/{name}"))
    assert isinstance(first, Stored)
    assert isinstance(second, Stored)
    assert (first.parent, list(first.tokens), first.block_tokens) == (None, list(range(8)), 4)
    assert first.salt == ("" if name == "arrays-2" else "tenant-a")
    assert (first.media, first.adapter, first.tier, first.reused) == ((), "", Tier.GPU, False)
    assert len(set(first.hashes)) == 2
    assert (second.parent, list(second.tokens), second.salt) == (first.hashes[1], [9] * 4, "")
    assert removed == Removed(second.hashes)
    assert cleared == Cleared()


def test_numbers_are_unsigned_whichever_way_they_were_written() -> None:
    unsigned = read(*payloads("vllm/maps-in-array"))
    assert read(*payloads("vllm/signed-hashes")) == unsigned
    assert all(
        isinstance(block, int) and 0 <= block < 1 << 64
        for event in unsigned
        if isinstance(event, Stored)
        for block in event.hashes
    )


def test_bytes_hashes_stay_whole() -> None:
    first = read(*payloads("vllm/bytes-hashes"))[0]
    assert isinstance(first, Stored)
    assert [len(block) for block in first.hashes if isinstance(block, bytes)] == [32, 32]


@pytest.mark.parametrize(
    "bad",
    [
        {"type": "BlockMoved", "block_hashes": [1]},
        {"type": "BlockStored"},
        {"type": "BlockRemoved", "block_hashes": ["text"]},
        stored(token_ids=[1, 2, 3]),
        stored(token_ids=[1, -2]),
        stored(block_size=0),
        stored(medium="TAPE"),
        17,
    ],
    ids=str,
)
def test_a_malformed_event_stands_as_lost_among_the_others(bad: Any) -> None:
    removed = {"type": "BlockRemoved", "block_hashes": [7]}
    one, lost, two = read(batch(removed, bad, removed))
    assert one == two == Removed((7,))
    assert isinstance(lost, Lost)
    assert lost.reason is LossReason.MALFORMED
    assert lost.detail


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x93\x01", b"\xa4text", b"\x92\xc0\x90"])
def test_a_malformed_batch_is_lost(payload: bytes) -> None:
    (lost,) = read(payload)
    assert isinstance(lost, Lost)
    assert lost.reason is LossReason.MALFORMED


def test_salt_adapter_and_media_are_told_apart() -> None:
    event = only_stored(
        block_hashes=[1, 2, 3],
        token_ids=[0] * 6,
        lora_name="poet",
        extra_keys=[["poet", ["cat.png", 4], "tenant-a"], ["poet", ["cat.png", -4]], ["poet"]],
    )
    assert (event.adapter, event.salt) == ("poet", "tenant-a")
    assert event.media == (("cat.png",), ("cat.png",), ())


def test_kr8_a_salt_that_is_spelled_like_the_adapter_is_a_salt() -> None:
    event = only_stored(lora_name="acme", extra_keys=[["acme", "acme"]])
    assert (event.adapter, event.salt, event.media) == ("acme", "acme", ())


def test_a_salt_counts_at_the_start_of_a_prompt_only() -> None:
    event = only_stored(parent_block_hash=9, extra_keys=[["cat.png"]])
    assert (event.salt, event.media) == ("", (("cat.png",),))


def test_an_old_engine_names_adapters_by_number() -> None:
    assert only_stored(lora_id=3).adapter == "3"


@pytest.mark.parametrize(
    ("medium", "tier"),
    [(None, Tier.GPU), ("GPU", Tier.GPU), ("CPU", Tier.HOST), ("STORAGE", Tier.DISK)],
)
def test_media_are_tiers(medium: str | None, tier: Tier) -> None:
    assert only_stored(medium=medium).tier is tier
    assert read(batch({"type": "BlockRemoved", "block_hashes": [7], "medium": medium})) == [
        Removed((7,), tier)
    ]


def test_blocks_that_were_moved_between_tiers_come_without_tokens() -> None:
    event = only_stored(token_ids=[], medium="CPU")
    assert (event.hashes, list(event.tokens)) == ((1,), [])


def test_a_hit_that_is_marked_as_one_stores_nothing() -> None:
    assert only_stored(origin="REUSED").reused
    assert not only_stored(origin="NEW").reused


def test_groups_that_hold_part_of_a_prompt_are_left_out() -> None:
    window = stored(group_idx=1, kv_cache_spec_kind="sliding_window")
    gone = {"type": "BlockRemoved", "block_hashes": [1]}
    events = read(batch(window, {**gone, "group_idx": 1}, {**gone, "group_idx": 0}))
    assert events == [Removed((1,))]


def test_a_group_that_holds_whole_prompts_in_the_engines_next_life_counts() -> None:
    window = stored(group_idx=0, kv_cache_spec_kind="sliding_window")
    full = stored(group_idx=0, kv_cache_spec_kind="full_attention")
    gone = {"type": "BlockRemoved", "block_hashes": [1], "group_idx": 0}
    assert [type(event) for event in read(batch(window), batch(full, gone))] == [Stored, Removed]


def test_batches_of_another_rank_are_refused() -> None:
    payload = msgspec.msgpack.encode([1.0, [{"type": "AllBlocksCleared"}], 1])
    assert read(payload, rank=1) == read(payload) == [Cleared()]
    with pytest.raises(EngineUnfit, match="rank 1"):
        read(payload, rank=0)


# --- what a real vLLM 0.32 said


def replay(path: Path, *, total_blocks: int) -> tuple[Counter[str], LiveSet, Translator]:
    live = LiveSet()
    translator = Translator(live, b"a secret of tests", "tiny", 32, total_blocks)
    events = read(*(message[-1] for message in frames(path) if message[-1]))
    for event in events:
        translator.apply(event)
    return Counter(type(event).__name__ for event in events), live, translator


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "counts", "blocks"),
    [
        ("a_bs32.bin", {"Stored": 5}, 10),
        ("ev_eviction.bin", {"Stored": 67, "Removed": 137, "Cleared": 1}, 4),
        ("replay_from0.bin.gz", {"Stored": 659, "Removed": 747, "Cleared": 1}, 1011),
        ("dp2_rank0.bin", {"Stored": 8}, 48),
        ("dp2_rank1.bin", {"Stored": 6}, 26),
        ("p_nixl_events.bin", {"Stored": 3}, 18),
        ("d_nixl_events.bin", {"Stored": 4}, 14),
    ],
)
def test_recordings_of_vllm_0_32(
    shared_data: Path, name: str, counts: dict[str, int], blocks: int
) -> None:
    """`blocks` were counted by hand from the raw bytes, one reference a physical block."""
    seen, live, translator = replay(shared_data / "vllm" / name, total_blocks=1024)
    assert dict(seen) == counts
    assert live.blocks == blocks
    assert translator.orphans == 0


@pytest.mark.data
def test_the_tenant_in_a_recording_has_names_of_its_own(shared_data: Path) -> None:
    events = read(*(message[-1] for message in frames(shared_data / "vllm" / "a_bs32.bin")))
    assert [event.salt for event in events if isinstance(event, Stored)] == [
        *("", "", "", "tenantA", "")
    ]


@pytest.mark.data
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_reads_its_own_recording_only(shared_data: Path, rank: int) -> None:
    recorded = [m[-1] for m in frames(shared_data / "vllm" / f"dp2_rank{rank}.bin")]
    assert read(*recorded, rank=rank)
    with pytest.raises(EngineUnfit):
        read(*recorded, rank=1 - rank)
