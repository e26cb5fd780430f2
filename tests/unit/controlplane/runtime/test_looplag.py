"""What blocks a loop is seen."""

from __future__ import annotations

import time

import anyio
import pytest

from controlplane.runtime.looplag import EVERY_S, watch_loop

BLOCKED_S = 4 * EVERY_S


def block() -> None:
    """Nothing else can run meanwhile."""
    time.sleep(BLOCKED_S)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_gw18_what_blocks_the_loop_is_seen_as_lag(anyio_backend: str) -> None:
    send, receive = anyio.create_memory_object_stream[float](100)
    with send, receive, anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch_loop, send.send_nowait)
            await receive.receive()
            block()
            assert await receive.receive() >= BLOCKED_S - EVERY_S - 0.01
            tasks.cancel_scope.cancel()
