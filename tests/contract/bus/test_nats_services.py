"""The services protocol (ADR-32), asked as `nats micro ls`, `info` and `stats` ask it."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import anyio
import nats
import nats.micro.service
import pytest
from anyio.lowlevel import checkpoint

from proto.wire.errors import NoResponder, RequestRefused
from proto.wire.nats.bus import NatsBus
from proto.wire.ports import Bus, Endpoint, Message
from tests.contract.bus.carriers import DEADLINE_S, ECHO, echo, nats_only, quick_settings, until
from tests.support.nats_server import NatsServer

pytestmark = [pytest.mark.anyio, nats_only]


async def ask(bus: Bus, subject: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(
        (await bus.request(subject, b"", timeout_s=DEADLINE_S)).data
    )
    return answer


async def test_ping_says_who_is_there(server: NatsServer) -> None:
    async with NatsBus(quick_settings(server)) as bus, bus.serve(ECHO, [echo()]):
        ping = await ask(bus, "$SRV.PING")
        assert ping == {
            "type": "io.nats.micro.v1.ping_response",
            "name": "echo",
            "id": ping["id"],
            "version": "1.2.3",
            "metadata": {"zone": "a"},
        }
        assert await ask(bus, "$SRV.PING.echo") == ping
        assert await ask(bus, f"$SRV.PING.echo.{ping['id']}") == ping
        for nobody in ("$SRV.PING.other", "$SRV.PING.echo.other", "$SRV.NONSENSE"):
            with pytest.raises(NoResponder):
                await ask(bus, nobody)
        assert nats.micro.service.ServicePing.from_dict(ping).to_dict() == ping


async def test_info_says_what_it_serves(server: NatsServer) -> None:
    async def handle(message: Message) -> bytes:
        return message.data

    endpoints = [echo(group="shared"), Endpoint("all", "to.all", handle, group=None)]
    async with NatsBus(quick_settings(server)) as bus, bus.serve(ECHO, endpoints):
        info = await ask(bus, "$SRV.INFO.echo")
        assert info == {
            "type": "io.nats.micro.v1.info_response",
            "name": "echo",
            "id": (await ask(bus, "$SRV.PING"))["id"],
            "version": "1.2.3",
            "metadata": {"zone": "a"},
            "description": "Says it again",
            "endpoints": [
                {"name": "echo", "subject": "echo", "queue_group": "shared", "metadata": {}},
                {"name": "all", "subject": "to.all", "queue_group": "", "metadata": {}},
            ],
        }
        assert nats.micro.service.ServiceInfo.from_dict(info).to_dict() == info


async def test_stats_count_requests_errors_and_time(server: NatsServer) -> None:
    async def handle(message: Message) -> bytes:
        await checkpoint()
        if message.data:
            raise RequestRefused(400, "no data is wanted")
        return b""

    async with NatsBus(quick_settings(server)) as bus, bus.serve(ECHO, [echo(handle)]):
        fresh = (await ask(bus, "$SRV.STATS.echo"))["endpoints"][0]
        assert fresh["last_error"] == ""
        assert fresh["num_requests"] == fresh["average_processing_time"] == 0
        await bus.request("echo", b"", timeout_s=DEADLINE_S)
        await bus.request("echo", b"", timeout_s=DEADLINE_S)
        with pytest.raises(RequestRefused):
            await bus.request("echo", b"data", timeout_s=DEADLINE_S)
        stats = await ask(bus, "$SRV.STATS.echo")
    assert stats["type"] == "io.nats.micro.v1.stats_response"
    assert datetime.fromisoformat(stats["started"]).utcoffset() is not None
    (endpoint,) = stats["endpoints"]
    assert endpoint == {
        "name": "echo",
        "subject": "echo",
        "queue_group": "q",
        "num_requests": 3,
        "num_errors": 1,
        "last_error": "400: no data is wanted",
        "processing_time": endpoint["processing_time"],
        "average_processing_time": endpoint["processing_time"] // 3,
    }
    assert endpoint["processing_time"] > 0
    nats.micro.service.ServiceStats.from_dict({**stats, "endpoints": [{**endpoint, "data": None}]})


async def test_every_instance_answers_under_an_id_of_its_own(server: NatsServer) -> None:
    heard: list[str] = []

    async def hear(answer: Any) -> None:
        heard.append(json.loads(answer.data)["id"])

    async with (
        NatsBus(quick_settings(server)) as one,
        NatsBus(quick_settings(server)) as two,
        one.serve(ECHO, [echo()]),
        one.serve(ECHO, [echo()]),
        two.serve(ECHO, [echo()]),
    ):
        client = await nats.connect(server.url)
        await client.subscribe("answers", cb=hear)
        await client.publish("$SRV.PING.echo", reply="answers")
        await until(lambda: len(heard) == 3)
        await client.close()
    assert len(set(heard)) == 3


async def test_a_request_on_its_way_when_the_service_leaves_is_still_answered(
    server: NatsServer,
) -> None:
    answers: list[bytes] = []

    async def request(bus: Bus, data: bytes) -> None:
        answers.append((await bus.request("echo", data, timeout_s=DEADLINE_S)).data)

    async with (
        NatsBus(quick_settings(server)) as bus,
        anyio.create_task_group() as callers,
        bus.serve(ECHO, [echo()]),  # left before the requests, which are sent first, come back
    ):
        for n in range(20):
            callers.start_soon(request, bus, bytes([n]))
        await checkpoint()
    assert sorted(answers) == [bytes([n]) for n in range(20)]


async def test_what_is_too_large_to_be_sent_is_refused_and_not_lost(server: NatsServer) -> None:
    async def handle(message: Message) -> bytes:
        return bytes(2 << 20)

    async with NatsBus(quick_settings(server)) as bus, bus.serve(ECHO, [echo(handle)]):
        with pytest.raises(RequestRefused) as refused:
            await bus.request("echo", b"", timeout_s=DEADLINE_S)
        assert refused.value.code == 500
        with pytest.raises(ValueError, match="payload"):
            await bus.request("echo", bytes(2 << 20), timeout_s=DEADLINE_S)
        with pytest.raises(ValueError, match="payload"):
            await bus.publish("echo", bytes(2 << 20))
