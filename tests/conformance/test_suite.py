"""The suite tells an engine that does not do it: each fault is found by its check."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agents.adapters.protocol import (
    Cleared,
    Deliver,
    EngineAdapter,
    EngineEvent,
    EngineFacts,
    EngineLoad,
    Removed,
    Stored,
)
from agents.conformance import checks
from agents.conformance.checks import Check
from agents.conformance.suite import Verdict, examine
from tests.conformance.test_engines import adapters
from tests.support.engines.sglang import sglang

pytestmark = pytest.mark.anyio

SETTLE_S = 1.5
Spoil = Callable[[Sequence[EngineEvent]], Iterable[EngineEvent]]


class Faulty:
    """An engine as seen through its adapter, with one fault."""

    def __init__(
        self,
        engine: EngineAdapter,
        *,
        events: Spoil = lambda events: events,
        load: Callable[[EngineLoad], EngineLoad] = lambda load: load,
        facts: Callable[[EngineFacts], EngineFacts] = lambda facts: facts,
    ) -> None:
        self._engine = engine
        self._events = events
        self._load = load
        self._facts = facts
        self.handoff = engine.handoff

    async def probe(self) -> EngineFacts:
        return self._facts(await self._engine.probe())

    async def load(self) -> EngineLoad:
        return self._load(await self._engine.load())

    async def cancel(self, request: str) -> bool:
        del request
        return True  # and does nothing

    async def follow(self, deliver: Deliver) -> None:
        await self._engine.follow(lambda events: deliver(list(self._events(events))))

    def recheck(self) -> None:
        self._engine.recheck()


def without(kind: type[EngineEvent]) -> Spoil:
    return lambda events: [event for event in events if not isinstance(event, kind)]


def other_tokens(events: Sequence[EngineEvent]) -> Iterable[EngineEvent]:
    """As of an engine whose events tell of other tokens than those it was asked with."""
    for event in events:
        if isinstance(event, Stored):
            event = replace(event, tokens=[token + 1 for token in event.tokens])
        yield event


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        (checks.tells_what_it_caches, {"events": other_tokens}),
        (checks.tells_of_evictions, {"events": without(Removed)}),
        (checks.tells_of_a_reset, {"events": without(Cleared)}),
        (checks.finds_what_it_told, {"load": lambda load: replace(load, cached_tokens=0)}),
        (checks.says_how_busy_it_is, {"load": lambda load: replace(load, running=0)}),
        (checks.says_when_it_is_idle, {"load": lambda load: replace(load, waiting=1)}),
        (checks.stops_when_told, {}),
        (checks.tells_what_it_is, {"facts": lambda facts: replace(facts, total_blocks=2)}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_fault_is_found(check: Check, fault: dict[str, Any], tmp_path: Path) -> None:
    async with (
        sglang(tmp_path) as url,
        adapters(engine="sglang", engine_url=url) as (http, adapter),
    ):
        engine = Faulty(adapter, **fault)
        [finding] = [
            each
            async for each in examine(
                url, http, engine, random.Random(1), checks=[check], settle_s=SETTLE_S
            )
        ]
    assert finding.verdict is Verdict.FAILED, finding
    assert finding.detail
