from __future__ import annotations

import time

import anyio
import pytest
from anyio.lowlevel import checkpoint
from prometheus_client import CollectorRegistry, generate_latest

from bench.scrape import parse
from bench.watched_router import LONGEST_DELAY, LONGEST_RUN, LoopWatch

pytestmark = pytest.mark.anyio
BUSY_S = 0.05


async def test_a_busy_loop_is_seen_once() -> None:
    registry = CollectorRegistry()
    watch = LoopWatch(registry)
    async with anyio.create_task_group() as tasks:
        await tasks.start(lambda *, task_status: watch.run(task_status=task_status))
        await checkpoint()
        until_s = time.thread_time() + BUSY_S
        while time.thread_time() < until_s:
            pass
        while (seen := parse(generate_latest(registry).decode()).samples)[LONGEST_RUN] < BUSY_S:
            await checkpoint()
        tasks.cancel_scope.cancel()
    assert seen[LONGEST_DELAY] > BUSY_S / 2
    assert registry.get_sample_value(LONGEST_RUN) == 0.0
