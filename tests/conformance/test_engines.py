"""The suite that a user may run on any engine, on those that need no GPU to be there.

Real vLLM passes it in `tests/engines`.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from agents.adapters.protocol import EngineAdapter
from agents.conformance.suite import Finding, Verdict, examine
from agents.engines import make_adapter
from agents.settings import AgentSettings
from proto.wire.http import HttpClient
from proto.wire.ports import Http
from proto.wire.zmq import ZmqFrames
from tests.support.engines.sglang import sglang
from tests.support.engines.standin import CONTEXT_TOKENS
from tests.support.engines.trtllm import trtllm
from tests.unit.workers.sim_process import sim

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def adapters(**settings: object) -> AsyncIterator[tuple[Http, EngineAdapter]]:
    said = AgentSettings.model_validate({"worker": "w", **settings})
    with closing(ZmqFrames()) as frames:
        async with HttpClient() as http:
            yield http, make_adapter(said, http, frames)


async def examined(url: str, **settings: object) -> dict[str, Finding]:
    async with adapters(engine_url=url, **settings) as (http, adapter):
        return {each.check: each async for each in examine(url, http, adapter, random.Random(7))}


def verdicts(findings: dict[str, Finding], verdict: Verdict) -> dict[str, str]:
    return {name: each.detail for name, each in findings.items() if each.verdict is verdict}


async def test_the_simulated_engine() -> None:
    options = ("--blocks", "96", "--max-model-len", "1024", "--speed", "5")
    with sim(*options, events=True) as process:
        findings = await examined(
            process.url,
            engine="sim",
            events=f"tcp://127.0.0.1:{process.events_port}",
            replay=f"tcp://127.0.0.1:{process.replay_port}",
        )
    assert verdicts(findings, Verdict.FAILED) == {}
    assert verdicts(findings, Verdict.SKIPPED) == {}


async def test_sglang(tmp_path: Path) -> None:
    async with sglang(tmp_path) as url:
        findings = await examined(url, engine="sglang")
    assert verdicts(findings, Verdict.FAILED) == {}
    assert verdicts(findings, Verdict.SKIPPED).keys() == {"goes_on"}


async def test_trtllm(tmp_path: Path) -> None:
    async with trtllm(tmp_path) as url:
        findings = await examined(url, engine="trtllm", context_tokens=CONTEXT_TOKENS)
    assert verdicts(findings, Verdict.FAILED) == {}
    assert verdicts(findings, Verdict.SKIPPED).keys() == {
        "goes_on",
        "keeps_tenants_apart",
        "stops_when_told",
        "tells_of_a_reset",
        "tells_the_past",
    }
