"""What one client or one pool does is felt by no other, and by an engine not for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing

from bench.http import request
from bench.measure import percentile
from bench.stream_engine import Connection, Engine
from controlplane.gateway.openai import Api, ClientError
from controlplane.gateway.settings import GatewaySettings
from controlplane.local.ports import free_ports
from proto.wire.http import HttpClient
from tests.support.gateway_world import (
    DONE,
    PIECES,
    SETTINGS,
    Client,
    asked,
    broken_at_once,
    broken_later,
    silent,
    world,
)
from tests.support.router_core import record

STEP_S = 0.01
FREED_STEPS = 1 + round(0.25 / STEP_S)
"""Within one step and 250 ms, told in steps: the engine and the gateway share a loop here, so a
machine that is busy slows both."""
STREAMED = 90


@asynccontextmanager
async def engine_listening() -> AsyncIterator[tuple[Engine, str]]:
    """An engine on a port of its own, which gives each of its streams a token a step."""
    engine, [port] = Engine(STEP_S), free_ports(1)
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(engine), "127.0.0.1", port
    )
    async with server, anyio.create_task_group() as tasks:
        tasks.start_soon(engine.run)
        yield engine, f"http://127.0.0.1:{port}"
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("leave", ["close", "abort"])
async def test_gw3_a_client_that_leaves_frees_its_slot_within_a_step_and_250_ms(
    anyio_backend: str, leave: str
) -> None:
    [port] = free_ports(1)
    settings = SETTINGS.model_copy(update={"port": port, "gap_s": 60.0, "total_s": 600.0})
    async with (
        engine_listening() as (engine, url),
        HttpClient() as carrier,
        world(
            settings=settings, http_server=True, carrier=carrier, fleet=[record("a", url=url)]
        ) as ours,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("POST", Api.COMPLETIONS.value, asked(max_tokens=STREAMED)))
        with anyio.fail_after(30):
            await reader.readuntil(b"data: ")
            assert len(engine.streams) == 1
            getattr(writer.transport, leave)()
            left = engine.steps
            while engine.streams:
                await anyio.lowlevel.checkpoint()
            assert engine.steps - left <= FREED_STEPS < STREAMED
        assert (await ours.told())[-1].outcome == "cancelled"


POISON: dict[str, Callable[[], AsyncGenerator[bytes]]] = {
    "dies at once": broken_at_once,
    "dies amid an answer": broken_later,
    "says nothing": silent,
}
SHARED = (record("a", model="poisoned"), record("b", model="well"))
GAP_S, TOKEN_S = 0.02, 0.03
REQUESTS, CROWD = 100, 3
"""Of the well pool; and for each of those so many of the other."""


async def steady() -> AsyncGenerator[bytes]:
    for piece in (*PIECES, DONE):
        await anyio.sleep(TOKEN_S)
        yield piece


async def taken_s(poison: Callable[[], AsyncGenerator[bytes]] | None) -> list[float]:
    """What requests of the well pool take while the other one is asked as well, or is not."""
    times: list[float] = []
    settings = GatewaySettings(port=0, first_token_s=2.0, pool_requests_max=64)

    async def well() -> None:
        client, began_s = Client(), anyio.current_time()
        await ours.serve(client, model="well")
        assert client.read.endswith(DONE)
        times.append(anyio.current_time() - began_s)

    async def poisoned() -> None:
        client = Client()
        try:
            await ours.serve(client, model="poisoned")
        except ClientError as error:
            assert error.status >= 500
        else:
            assert b'"error"' in client.read and DONE not in client.read

    async with world(settings=settings, fleet=SHARED) as ours, anyio.create_task_group() as tasks:
        ours.engine("a", poison or steady)
        ours.engine("b", steady)
        for _ in range(REQUESTS):
            tasks.start_soon(well)
            for _ in range(CROWD if poison else 0):
                tasks.start_soon(poisoned)
            await anyio.sleep(GAP_S)
    return times


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON.keys())
def test_gw8_the_p99_of_one_pool_is_the_same_while_another_is_poisoned(
    poison: Callable[[], AsyncGenerator[bytes]],
) -> None:
    """In virtual time, where a wait for anything that the two share would show."""
    alone, beside = (
        trio.run(taken_s, each, clock=trio.testing.MockClock(autojump_threshold=0))
        for each in (None, poison)
    )
    assert len(alone) == len(beside) == REQUESTS
    assert percentile(beside, 0.99) == pytest.approx(percentile(alone, 0.99))
