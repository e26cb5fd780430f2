"""Two data-parallel ranks of one vLLM are two workers, and are not mixed up."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing

import anyio
import pytest

from agents.adapters.protocol import EngineAdapter, EngineFacts, EngineUnfit
from agents.conformance.subject import SECRET, Cache
from agents.engines import make_adapter
from agents.settings import AgentSettings
from proto.hashing import BlockHasher, Scope
from proto.wire.http import HttpClient
from proto.wire.zmq import ZmqFrames
from tests.support.vllm import BLOCK_TOKENS, SERVED, Vllm, new_prompt, vllm
from tests.unit.agents.reader import wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800), pytest.mark.anyio]

RANKS = 2
PINNED = "X-data-parallel-rank"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    more = {"ranks": RANKS, "extra": ("--api-server-count", "1")}
    with vllm(tmp_path_factory.mktemp("ranks"), **more) as running:
        yield running


@asynccontextmanager
async def agent_of(
    engine: Vllm, rank: int, *, ports_of: int
) -> AsyncIterator[tuple[EngineAdapter, EngineFacts]]:
    """What one rank's agent sees, when it is told the ports of `ports_of`."""
    settings = AgentSettings.model_validate(
        {
            "worker": f"rank-{rank}",
            "engine_url": engine.url,
            "events": f"tcp://127.0.0.1:{engine.ports.events + ports_of}",
            "replay": f"tcp://127.0.0.1:{engine.ports.replay + ports_of}",
            "rank": rank,
        }
    )
    with closing(ZmqFrames()) as frames:
        async with HttpClient() as http:
            adapter = make_adapter(settings, http, frames)
            yield adapter, await adapter.probe()


async def test_each_rank_is_told_apart(engine: Vllm) -> None:
    rng = random.Random(1)
    prompts = [new_prompt(rng, (3 + rank) * BLOCK_TOKENS + 1) for rank in range(RANKS)]
    hasher = BlockHasher(SECRET, Scope(SERVED), BLOCK_TOKENS)
    names = [{int(name) for name in hasher.names(prompt)} for prompt in prompts]
    for rank, prompt in enumerate(prompts):
        engine.complete(prompt, 1, {PINNED: str(rank)})
    for rank in range(RANKS):
        seen, queried = await seen_by(engine, rank, names[rank])
        assert seen >= names[rank]
        assert not seen & names[1 - rank]
        assert queried == len(prompts[rank])


async def seen_by(engine: Vllm, rank: int, expected: set[int]) -> tuple[set[int], int]:
    """What a rank's agent hears of, and how many tokens that rank has looked up."""
    async with agent_of(engine, rank, ports_of=rank) as (adapter, facts):
        cache = Cache(facts)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(adapter.follow, cache.deliver)
            await wait_until(lambda: cache.names() >= expected)
            tasks.cancel_scope.cancel()
        return cache.names(), (await adapter.load()).queried_tokens


async def test_the_events_of_another_rank_are_refused(engine: Vllm) -> None:
    engine.complete(new_prompt(random.Random(2), 2 * BLOCK_TOKENS), 1, {PINNED: "1"})
    async with agent_of(engine, 0, ports_of=1) as (adapter, facts):
        with pytest.raises(EngineUnfit, match="rank 1"), anyio.fail_after(30):
            await adapter.follow(Cache(facts).deliver)
