"""Whatever is cancelled leaves no task, no subscription and no warning behind."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from proto.wire.ports import Bus, Message, StreamSpec
from tests.contract.bus.carriers import (
    DEADLINE_S,
    ECHO,
    SILENCE_S,
    Carrier,
    Connect,
    echo,
    nobody_serves,
    until,
)

pytestmark = pytest.mark.anyio

Work = Callable[[Bus], Coroutine[Any, Any, None]]

SPEC = StreamSpec("S", ("stored",), max_age_s=60.0, max_bytes=1 << 20)


async def subscribe(bus: Bus) -> None:
    async with bus.subscribe("s") as messages:
        async for _ in messages:
            pass


async def serve(bus: Bus) -> None:
    async with bus.serve(ECHO, [echo()]):
        await anyio.sleep_forever()


async def request(bus: Bus) -> None:
    await bus.request("silent", b"", timeout_s=3600)


async def consume(bus: Bus) -> None:
    async with bus.consume("S") as deliveries:
        async for _ in deliveries:
            pass


async def serve_for_ever(bus: Bus) -> None:
    async def handle(message: Message) -> bytes:
        await anyio.sleep_forever()
        return message.data

    async with bus.serve(ECHO, [echo(handle)]):
        await bus.request("echo", b"", timeout_s=3600)


@pytest.mark.parametrize("work", [subscribe, serve, request, consume, serve_for_ever])
async def test_work_that_is_cancelled_under_way_leaves_nothing(
    connect: Connect, carrier: Carrier, work: Work
) -> None:
    tasks = running_tasks(carrier)
    async with connect("a") as bus, connect("other") as other:
        await bus.ensure_stream(SPEC)
        async with other.subscribe("silent"):
            with anyio.move_on_after(SILENCE_S) as scope:
                await work(bus)
        assert scope.cancelled_caught
        for subject in ("echo", "silent", "s"):
            await nobody_serves(other, subject)
    await until(lambda: running_tasks(carrier) == tasks)
    gc.collect()


@pytest.mark.parametrize("work", [subscribe, serve, request, consume, serve_for_ever])
async def test_work_that_is_cancelled_at_any_step_leaves_the_bus_at_work(
    connect: Connect, work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    async with connect("a") as bus, connect("other") as other, other.subscribe("silent"):
        await bus.ensure_stream(SPEC)
        for steps in range(12):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(work, bus)
                for _ in range(steps):
                    await checkpoint()
                tasks.cancel_scope.cancel()
            async with bus.serve(ECHO, [echo()]):
                answer = await bus.request("echo", b"alive", timeout_s=DEADLINE_S)
            assert answer.data == b"alive"
    assert caplog.records == []


def running_tasks(carrier: Carrier) -> int:
    return 0 if carrier.loop == "trio" else len(asyncio.all_tasks())
