"""Which releases are known, and what becomes of an engine of another one."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path

import anyio
import pytest
from prometheus_client import CollectorRegistry

from agents.adapters.protocol import EngineEvent
from agents.adapters.versions import KNOWN, why_unknown
from agents.engines import make_adapter
from agents.live import LiveSet
from agents.metrics import AgentMetrics
from agents.settings import AgentSettings
from agents.watch import EngineWatch, Listener, Pace
from proto.wire.http import HttpClient
from proto.wire.zmq import ZmqFrames
from tests.support.engines.sglang import sglang
from tests.support.engines.trtllm import trtllm
from tests.unit.agents.engine import EVENTS, REPLAY, URL, MemoryEngine

pytestmark = pytest.mark.anyio

StandIn = Callable[[Path, str], AbstractAsyncContextManager[str]]


@pytest.mark.parametrize(
    ("engine", "version"),
    [
        ("vllm", "0.8.5"),
        ("vllm", "0.32.0+cpu"),
        ("vllm", "v0.20.1rc1"),
        ("sglang", "0.5.9.post1"),
        ("sglang", "0.5.23"),
        ("trtllm", "1.0.0"),
        ("trtllm", "1.3.0rc29"),
    ],
)
def test_releases_that_are_known(engine: str, version: str) -> None:
    assert why_unknown(engine, version) == ""


@pytest.mark.parametrize(
    ("engine", "version"),
    [
        ("vllm", "0.7.3"),
        ("vllm", "0.33.0"),
        ("vllm", "1.0"),
        ("vllm", "dev"),
        ("sglang", "0.5.8"),
        ("sglang", "0.6.0"),
        ("trtllm", "0.21.0"),
        ("trtllm", "1.4.0"),
        ("trtllm", ""),
    ],
)
def test_releases_that_are_not_are_named_with_the_way_out(engine: str, version: str) -> None:
    why = why_unknown(engine, version)
    assert version in why
    assert "agent.trust_version" in why


def test_every_engine_has_a_range() -> None:
    assert all(first < end for first, end in KNOWN.values())


@asynccontextmanager
async def attached(**settings: object) -> AsyncIterator[EngineWatch]:
    """A watch that has found its engine."""
    said = AgentSettings.model_validate({"worker": "w", **settings})
    with closing(ZmqFrames()) as frames:
        async with HttpClient() as http:
            watch = EngineWatch(
                make_adapter(said, http, frames),
                LiveSet(),
                b"k",
                Pace(0.05, 4, 0.05),
                Listener(lambda: None, lambda: None),
                AgentMetrics(CollectorRegistry()),
            )
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch.run)
                with anyio.fail_after(20):
                    while not watch.healthy:
                        await watch.next_poll()
                yield watch
                tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("engine", "stand_in", "version"),
    [("sglang", sglang, "0.6.1"), ("sglang", sglang, "0.5.3"), ("trtllm", trtllm, "1.5.0")],
    ids=["newer sglang", "older sglang", "newer trtllm"],
)
async def test_an_unknown_release_serves_without_its_events(
    engine: str,
    stand_in: StandIn,
    version: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    async with (
        stand_in(tmp_path, version) as url,
        attached(engine=engine, engine_url=url, context_tokens=1024) as watch,
    ):
        assert watch.facts is not None
        assert not watch.facts.kv_events
        assert f"NO KV EVENTS: {engine} {version}" in caplog.text


@pytest.mark.parametrize("trusted", [False, True])
async def test_an_operator_may_trust_it(trusted: bool) -> None:
    engine = MemoryEngine()
    engine.answers["/version"] = '{"version": "0.99.0"}'
    settings = {"engine_url": URL, "events": EVENTS, "replay": REPLAY, "trust_version": trusted}
    said = AgentSettings.model_validate({"worker": "w", **settings})
    adapter = make_adapter(said, engine, engine.frames)
    assert (await adapter.probe()).kv_events is trusted
    heard: list[EngineEvent] = []
    engine.serve(list(range(8)))
    with engine.replaying(), anyio.move_on_after(0.2):
        await adapter.follow(heard.extend)
    assert bool(heard) is trusted
