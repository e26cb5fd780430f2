"""Speculation over HTTP: the same words, in bursts, counted as vLLM counts; on and off."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.unit.workers.sim_process import SimProcess, client, sim

pytestmark = pytest.mark.anyio

CONFIG = {
    "num_speculative_tokens": 4,
    "acceptance": 0.8,
    "acceptance_of": {"structured": 0.95},
    "draft_memory": 0.25,
}
DRAFTING = ("--speculative-config", json.dumps(CONFIG))
DRAFTS, DRAFTED = "vllm:spec_decode_num_drafts_total", "vllm:spec_decode_num_draft_tokens_total"
ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"
AT = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
BODY: dict[str, object] = {
    "prompt": "tell me", "max_tokens": 60, "temperature": 0, "return_token_ids": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def speculating() -> Iterator[SimProcess]:
    with sim("--speed", "20", "--blocks", "1000", *DRAFTING) as started:
        yield started


@pytest.fixture
def slowly_speculating() -> Iterator[SimProcess]:
    """So slow that it never catches up with a whole step, and so every step's tokens come alone."""
    with sim("--speed", "0.2", *DRAFTING) as started:
        yield started


@pytest.fixture(scope="module")
def plain() -> Iterator[SimProcess]:
    with sim("--speed", "20") as started:
        yield started


async def test_greedy_answers_are_token_for_token_the_same(
    speculating: SimProcess, plain: SimProcess
) -> None:
    """SD4."""
    said = []
    for engine in (speculating, plain):
        async with client(engine) as c:
            said.append((await c.post("/v1/completions", BODY))["choices"][0])
    assert said[0]["token_ids"] == said[1]["token_ids"]
    assert said[0]["text"] == said[1]["text"]


async def test_sampled_answers_are_the_same_seed_by_seed(
    speculating: SimProcess, plain: SimProcess
) -> None:
    """SD4: so their distribution is, too; and they differ from seed to seed."""
    drawn: list[list[list[int]]] = []
    for engine in (speculating, plain):
        async with client(engine) as c:
            bodies = [{**BODY, "max_tokens": 12, "temperature": 1, "seed": s} for s in range(20)]
            answers = [await c.post("/v1/completions", body) for body in bodies]
            drawn.append([answer["choices"][0]["token_ids"] for answer in answers])
    assert drawn[0] == drawn[1]
    assert len({tuple(tokens) for tokens in drawn[0]}) > 10


async def test_tokens_come_in_bursts_and_are_counted_as_vllm_counts(
    slowly_speculating: SimProcess,
) -> None:
    """SD7, SD12."""
    async with client(slowly_speculating) as c:
        names = (DRAFTS, DRAFTED, ACCEPTED)
        before = [await c.metric(name) for name in names]
        options = {"stream_options": {"include_usage": True}}
        *chunks, last = await c.stream("/v1/completions", {**BODY, **options})
        drafts, drafted, accepted = [
            await c.metric(name) - was for name, was in zip(names, before, strict=True)
        ]
        assert await c.metric(AT) == await c.metric(ACCEPTED)
    sizes = [len(chunk["choices"][0]["token_ids"]) for chunk in chunks]
    assert sum(sizes) == 60
    assert sizes[0] == 1 and max(sizes) > 1
    assert drafts < 59 and drafted == 4 * drafts
    told = last["usage"]["completion_tokens_details"]
    assert told["accepted_prediction_tokens"] == accepted > 0
    assert told["rejected_prediction_tokens"] == drafted - accepted


async def test_off_bypasses_drafts_and_on_brings_them_back(speculating: SimProcess) -> None:
    """SD8."""
    async with client(speculating) as c:
        assert await c.get("/speculation") == {"enabled": True}
        assert await c.post("/speculation", {"enabled": False}) == {"enabled": False}
        before = await c.metric(DRAFTS)
        answer = await c.post("/v1/completions", BODY)
        assert await c.metric(DRAFTS) == before
        assert answer["usage"]["completion_tokens_details"] is None
        await c.post("/speculation", {"enabled": True})
        await c.post("/v1/completions", BODY)
        assert await c.metric(DRAFTS) > before


async def test_structured_text_is_accepted_more_often(speculating: SimProcess) -> None:
    """SD3: the acceptance is that of the kind of text."""

    async def rate(more: dict[str, object]) -> float:
        body = {"messages": [{"role": "user", "content": "go on"}], "max_tokens": 600}
        answer = await c.post("/v1/chat/completions", {**body, "temperature": 0, **more})
        told = answer["usage"]["completion_tokens_details"]
        accepted: float = told["accepted_prediction_tokens"]
        rejected: float = told["rejected_prediction_tokens"]
        return accepted / (accepted + rejected)

    async with client(speculating) as c:
        assert await rate({}) < await rate({"response_format": {"type": "json_object"}})


async def test_the_drafts_memory_is_not_advertised(speculating: SimProcess) -> None:
    """SD10."""
    async with client(speculating) as c, c.session.get("/metrics") as response:
        assert 'num_gpu_blocks="750"' in await response.text()


async def test_an_engine_without_drafts_cannot_be_told_to_use_them(plain: SimProcess) -> None:
    async with client(plain) as c:
        assert await c.get("/speculation") == {"enabled": False}
        await c.post("/speculation", {"enabled": True}, status=400)
        await c.post("/speculation", {"enabled": False})
        async with c.session.get("/metrics") as response:
            assert "spec_decode" not in await response.text()
