"""SGLang tells means of its drafts, and agents need sums."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from agents.adapters.protocol import EngineDrafts, EngineLoad, EngineWork
from agents.adapters.sglang_drafts import SglangDrafts
from agents.conformance.subject import Subject
from agents.speculation import Advice, DraftPolicy, DraftWatch, Reason
from agents.steps import WINDOW_S, StepMeter
from tests.conformance.test_engines import adapters
from tests.support.engines.sglang import ACCEPT_LENGTH, ACCEPT_RATE, sglang


def test_sums_follow_from_means_and_tokens() -> None:
    """Two of three tokens were drafts, of which half were kept: four drafts a verification."""
    drafts = SglangDrafts()
    assert drafts.take(30, 3.0, 0.5) == EngineDrafts(10, 40, 20)
    assert drafts.take(60, 3.0, 0.5) == EngineDrafts(20, 80, 40)
    # None are kept any more, so its means no longer tell how many there are.
    assert drafts.take(70, 1.0, 0.0) == EngineDrafts(30, 120, 40)
    assert drafts.take(70, 1.0, 0.0) == EngineDrafts(30, 120, 40)


def test_an_engine_without_drafts_has_none() -> None:
    drafts = SglangDrafts()
    assert [drafts.take(tokens, 0.0, 0.0) for tokens in (0, 100, 200)] == [None] * 3


def test_another_life_begins_anew() -> None:
    drafts = SglangDrafts()
    drafts.take(300, 3.0, 0.5)
    assert drafts.take(30, 3.0, 0.5) == EngineDrafts(10, 40, 20)


def test_drafts_alone_are_enough_for_advice() -> None:
    """SD8, of an engine that tells no steps."""
    drafts, watch = SglangDrafts(), DraftWatch(DraftPolicy(acceptance_min=0.3))
    meter = StepMeter()
    advice = []
    for look, rate in enumerate([0.5] * 5 + [0.1] * 20):
        load = _load(drafts.take(1_000.0 * look, 1 + 4 * rate, rate), 1_000 * look)
        advice.append(watch.observe(meter.take(load, look * WINDOW_S), look * WINDOW_S))
    assert [each for each in advice if each] == [Advice(on=False, reason=Reason.ACCEPTANCE)]


def _load(drafts: EngineDrafts | None, generated: int) -> EngineLoad:
    work = EngineWork(0, 0, generated, 0, 0.0, drafts)
    return EngineLoad(1, 0, 0, 0, 0, 0, 0, 0, None, work)


@pytest.mark.anyio
async def test_the_adapter_reads_them(tmp_path: Path) -> None:
    """SD9: from the engine's gauges to the accept length that routers and planner hear."""
    async with (
        sglang(tmp_path) as url,
        adapters(engine_url=url, engine="sglang") as (http, adapter),
    ):
        engine = Subject(url, http, adapter, random.Random(1))
        await engine.meet()
        before = await adapter.load()
        await engine.complete(engine.prompt(blocks=1), 300)
        after = await adapter.load()
    assert before.work is not None and after.work is not None and after.work.drafts is not None
    assert after.work.generated_tokens - before.work.generated_tokens == 300
    meter = StepMeter()
    meter.take(before, 0.0)
    sums = meter.take(after, WINDOW_S)
    assert sums.accept_length == pytest.approx(ACCEPT_LENGTH)
    assert sums.accepted_drafts / sums.drafted_tokens == pytest.approx(ACCEPT_RATE)
