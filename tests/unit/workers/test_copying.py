"""Two engines as processes: what one has cached, the other one gets, and says so."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from tests.unit.workers.sim_process import SimProcess, client, sim

pytestmark = pytest.mark.anyio

PROMPT = [7 + n % 90 for n in range(300)]
ASK = {"prompt": PROMPT, "max_tokens": 1, "ignore_eos": True}
BLOCKS = 300 // 16
MOVES = ("--kv-port", "0", "--speed", "20")


async def cached(engine: SimProcess, **more: Any) -> Any:
    """Have it answer, and say what it has cached."""
    async with client(engine) as asked:
        await asked.post("/v1/completions", {**ASK, **more})
        return (await asked.get("/kv_chains?limit=4"))["chains"]


async def offered(engine: SimProcess, chain: Any) -> Any:
    async with client(engine) as asked:
        return await asked.post("/offer_kv", {"request_id": "x", **chain})


async def used(engine: SimProcess) -> float:
    async with client(engine) as asked:
        return await asked.metric("vllm:kv_cache_usage_perc")


async def hits(engine: SimProcess) -> float:
    async with client(engine) as asked:
        await asked.post("/v1/completions", ASK)
        return await asked.metric("vllm:prefix_cache_hits_total")


async def test_a_prefix_is_copied_announced_and_hit() -> None:
    with sim(*MOVES) as one, sim(*MOVES) as two:
        [chain] = await cached(one)
        assert chain["blocks"] == BLOCKS
        offer = await offered(one, chain)
        assert offer["known"] and offer["blocks"] == BLOCKS
        assert await used(one) > 0
        async with client(two) as asked:
            copied = await asked.post("/replicate_kv", offer["kv_transfer_params"])
            assert copied["known"] and copied["blocks"] == BLOCKS and copied["bytes"] > 0
            again = await asked.get("/kv_chains")
        assert again["chains"] == [chain]
        assert (await used(one), await used(two)) == (0, 0)
        assert await hits(two) == BLOCKS * 16


async def test_what_is_told_of_a_copy_is_what_was_told_of_the_original() -> None:
    with sim(*MOVES, events=True) as one, sim(*MOVES, events=True) as two:
        [chain] = await cached(one, cache_salt="tenant")
        offer = await offered(one, chain)
        async with client(two) as asked:
            await asked.post("/replicate_kv", offer["kv_transfer_params"])
        assert await replayed(one) == await replayed(two) != []


async def test_what_is_gone_is_not_offered_and_no_copy_comes_of_it() -> None:
    with sim(*MOVES, "--blocks", "64") as one, sim(*MOVES) as two:
        [chain] = await cached(one)
        offer = await offered(one, chain)
        async with client(one) as asked:
            told = await asked.post("/release_kv", offer["kv_transfer_params"])
            assert told == {"known": True}
            await asked.post("/v1/completions", {**ASK, "prompt": [5 + n % 9 for n in range(1000)]})
        assert (await offered(one, chain))["known"] is False
        async with client(two) as asked:
            late = await asked.post("/replicate_kv", offer["kv_transfer_params"])
            assert late["known"] is False and "not any more" in late["error"]
            assert (await asked.get("/kv_chains"))["chains"] == []
        assert await used(two) == 0


async def test_an_abort_lets_go_of_an_offer() -> None:
    with sim(*MOVES) as one:
        [chain] = await cached(one)
        await offered(one, chain)
        async with client(one) as asked:
            assert await asked.post("/abort_requests", {"request_ids": ["x"]}) == {"known": True}
        assert await used(one) == 0


async def replayed(engine: SimProcess) -> list[Any]:
    """All events so far, but for when they were."""
    context = zmq.asyncio.Context()
    asked = context.socket(zmq.DEALER)
    asked.connect(f"tcp://127.0.0.1:{engine.replay_port}")
    await asked.send_multipart((b"", (0).to_bytes(8, "big")))
    told: list[Any] = []
    while True:
        frames = await asked.recv_multipart()
        if frames[-2] == b"\xff" * 8:
            break
        told += msgspec.msgpack.decode(frames[-1])[1]
    context.destroy(linger=0)
    merged = [block for event in told for block in event["block_hashes"]]
    tokens = [token for event in told for token in event["token_ids"]]
    salts = [key for event in told for key in event["extra_keys"] if key]
    return [merged, tokens, salts] if merged else []
