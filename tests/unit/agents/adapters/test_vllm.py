"""Probing, against an engine in memory."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest

from agents.adapters.protocol import EngineAway, EngineUnfit
from agents.adapters.vllm import VllmAdapter, VllmOptions
from tests.unit.agents.engine import EVENTS, MODEL, REPLAY, URL, MemoryEngine

pytestmark = pytest.mark.anyio


def adapter(engine: MemoryEngine, **options: object) -> VllmAdapter:
    said = {"url": URL, "events": EVENTS, "replay": REPLAY, **options}
    return VllmAdapter(engine, engine.frames, VllmOptions(**said))  # type: ignore[arg-type]


@pytest.fixture
def engine() -> MemoryEngine:
    return MemoryEngine()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


async def test_what_an_engine_tells_of_itself(engine: MemoryEngine) -> None:
    facts = await adapter(engine, max_running=16).probe()
    assert (facts.model, facts.version, facts.context_tokens) == (MODEL, "0.32.0", 2048)
    assert (facts.block_tokens, facts.total_blocks) == (4, 64)
    assert (facts.max_running, facts.tokenizer, facts.kv_events) == (16, None, True)


async def test_adapters_are_not_the_model(engine: MemoryEngine) -> None:
    lora = {"id": "poet", "root": "/loras/poet", "parent": MODEL, "max_model_len": None}
    base = {"id": MODEL, "root": None, "parent": None, "max_model_len": 2048}
    engine.answers["/v1/models"] = json.dumps({"object": "list", "data": [lora, base]})
    known = adapter(engine)
    assert (await known.probe()).model == MODEL
    assert (await known.load()).adapters == ("poet",)


async def test_the_tokenizer_lies_where_the_engine_says(
    engine: MemoryEngine, directory: Path
) -> None:
    model = {"id": MODEL, "root": str(directory), "max_model_len": 2048}
    engine.answers["/v1/models"] = json.dumps({"data": [model]})
    tokenizer = (await adapter(engine).probe()).tokenizer
    assert tokenizer is not None
    assert tokenizer.json == "{}"


async def test_the_operator_knows_better_where_it_lies(
    engine: MemoryEngine, directory: Path
) -> None:
    facts = await adapter(engine, model_directory=str(directory)).probe()
    assert facts.tokenizer is not None


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/v1/models", "<html>"),
        ("/v1/models", '{"data": []}'),
        ("/v1/models", '{"data": [{"id": "tiny"}]}'),
        ("/version", "[]"),
        ("/metrics", "up 1\n"),
    ],
)
async def test_something_else_than_an_engine_is_refused(
    engine: MemoryEngine, path: str, answer: str
) -> None:
    engine.answers[path] = answer
    with pytest.raises(EngineUnfit):
        await adapter(engine).probe()


async def test_an_engine_without_metrics_is_away(engine: MemoryEngine) -> None:
    known = adapter(engine)
    await known.probe()
    engine.answers["/metrics"] = None
    with pytest.raises(EngineAway, match="404"):
        await known.load()


async def test_an_engine_that_refuses_connections_is_away(engine: MemoryEngine) -> None:
    engine.reachable = False
    with pytest.raises(EngineAway, match="refused"):
        await adapter(engine).probe()


async def test_without_an_events_endpoint_nothing_is_heard(engine: MemoryEngine) -> None:
    deaf = adapter(engine, events=None)
    assert not (await deaf.probe()).kv_events
    with anyio.move_on_after(0.02) as listening:
        await deaf.follow(lambda events: pytest.fail(f"heard {events}"))
    assert listening.cancelled_caught
