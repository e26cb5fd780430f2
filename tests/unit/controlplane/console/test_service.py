"""The console over HTTP, in front of a fleet that is played."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

import aiohttp
import anyio
import pytest

from controlplane.console.http import PortTaken
from controlplane.console.service import ConsoleService
from controlplane.console.settings import ConsoleSettings
from proto.codec import Producer, Reader
from proto.decisions import Decision, Explained, ExplainRequest
from proto.ids import Incarnation, RequestId, WorkerId
from proto.wire.memory.bus import MemoryBus
from proto.workers import WorkerState
from tests.unit.controlplane.console.stage import SUBJECTS, on_stage

pytestmark = pytest.mark.anyio
WEB = files("controlplane.console") / "web"
HEARD_S = 10.0


class Page:
    """What a browser hears."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._lines = response.content

    async def until(self, kind: str) -> Mapping[str, Any]:
        """The next event of a kind."""
        with anyio.fail_after(HEARD_S):
            while True:
                line = (await self._lines.readuntil(b"\n\n")).decode()
                head, _, data = line.partition("\ndata: ")
                if head == f"event: {kind}":
                    loaded: Mapping[str, Any] = json.loads(data)
                    return loaded


@asynccontextmanager
async def page(console: ConsoleService) -> AsyncIterator[Page]:
    url = f"http://127.0.0.1:{console.port}/api/events"
    async with aiohttp.ClientSession(read_bufsize=1 << 22) as session, session.get(url) as response:
        assert response.status == 200
        yield Page(response)


async def fetch(
    console: ConsoleService, path: str, host: str | None = None
) -> tuple[int, str, Mapping[str, str]]:
    headers = {"Host": host} if host else {}
    url = f"http://127.0.0.1:{console.port}{path}"
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        return response.status, await response.text(), dict(response.headers)


async def test_a_page_hears_who_is_there_and_then_what_they_do() -> None:
    async with on_stage(4) as (console, stage), page(console) as heard:
        hello = await heard.until("hello")
        assert hello["cluster"] == "stage"
        fleet = await heard.until("fleet")
        assert [w["worker"] for w in fleet["workers"]] == [f"engine-{n}" for n in range(4)]
        await stage.play(0.0, arrivals=3)
        told: list[object] = []
        while len(told) < 3:
            frame = await heard.until("frame")
            told += frame["decisions"]
        assert frame["point"]["in_flight"] == 3
        assert sum(frame["columns"]["running"]) == 3


async def test_a_worker_that_changes_is_told_to_open_pages() -> None:
    async with on_stage(2) as (console, stage), page(console) as heard:
        await heard.until("fleet")
        await stage.put(stage.records[0].model_copy(update={"state": WorkerState.DRAINING}))
        while True:
            fleet = await heard.until("fleet")
            if fleet["workers"][0]["state"] == "draining":
                break


async def test_a_page_that_opens_late_gets_the_curves_so_far() -> None:
    async with on_stage(2) as (console, stage):
        async with page(console) as heard:
            await stage.play(0.0, arrivals=1)
            for _ in range(3):
                await heard.until("frame")
        async with page(console) as late:
            hello = await late.until("hello")
            assert len(hello["curves"]["time_s"]) >= 3
            assert len(hello["decisions"]) == 1


async def test_no_more_pages_than_may_be_open_and_a_closed_one_makes_room() -> None:
    settings = ConsoleSettings(port=0, every_s=0.2, pages_max=1)
    async with on_stage(1, settings) as (console, _):
        async with page(console) as heard:
            await heard.until("hello")
            assert (await fetch(console, "/api/events"))[0] == 503
        with anyio.fail_after(HEARD_S):
            while True:
                async with aiohttp.ClientSession() as session:
                    url = f"http://127.0.0.1:{console.port}/api/events"
                    async with session.get(url) as response:
                        if response.status == 200:
                            break


async def test_other_peoples_names_are_refused_and_ours_are_not() -> None:
    settings = ConsoleSettings(port=0, hosts=("console.example",))
    async with on_stage(1, settings) as (console, _):
        assert (await fetch(console, "/", "evil.example"))[0] == 421
        assert (await fetch(console, "/", "console.example"))[0] == 200
        status, _, headers = await fetch(console, "/", "localhost:8001")
        assert status == 200
        assert "default-src 'self'" in headers["Content-Security-Policy"]


async def test_a_taken_port_is_named_with_the_way_out() -> None:
    async with on_stage(1) as (console, _):
        with pytest.raises(ExceptionGroup) as raised:
            async with on_stage(1, ConsoleSettings(port=console.port)):
                pytest.fail("it cannot listen there")
        assert raised.group_contains(PortTaken, match="--console.port")


async def test_routers_are_asked_for_a_request_and_their_words_are_passed_on() -> None:
    request = RequestId("abc")
    decision = Decision(request, 1, "sim", "router-1", "kv", 5.0, 10, WorkerId("w1"))
    async with on_stage(1) as (console, stage), anyio.create_task_group() as tasks:
        await tasks.start(remember, stage.bus, decision)
        status, body, _ = await fetch(console, "/api/explain/abc")
        assert status == 200
        assert [d["worker"] for d in json.loads(body)] == ["w1"]
        assert (await fetch(console, "/api/explain/a%20b"))[0] == 400
        tasks.cancel_scope.cancel()


async def remember(
    bus: MemoryBus, decision: Decision, *, task_status: anyio.abc.TaskStatus[None]
) -> None:
    """A router that knows one decision."""
    producer, reader = Producer("r", Incarnation(1), lambda: 0.0), Reader[object](ExplainRequest)
    async with bus.subscribe(SUBJECTS.explain) as questions:
        task_status.started()
        async for question in questions:
            asked = reader.open(question.data).body
            assert isinstance(asked, ExplainRequest)
            answer = Explained(asked.request, "router-1", (decision,))
            await bus.publish(SUBJECTS.explained(asked.request), producer.seal(answer))


async def test_every_file_that_the_page_names_is_served_and_none_is_from_elsewhere() -> None:
    async with on_stage(1) as (console, _):
        served = {"/"}
        for name in served_by("index.html", r'(?:src|href)="([^"]+)"'):
            served.add(name)
        for file in WEB.iterdir():
            if file.name.endswith(".js"):
                served |= {f"/assets/{n}" for n in served_by(file.name, r'from "\./([^"]+)"')}
        assert len(served) > 15
        for path in served:
            assert (await fetch(console, path))[0] == 200, path
        assert (await fetch(console, "/assets/settings.py"))[0] == 404


def served_by(name: str, pattern: str) -> list[str]:
    return re.findall(pattern, (WEB / name).read_text())


def test_nothing_is_loaded_from_another_machine() -> None:
    for file in WEB.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"(^|\s)//.*", "", text, flags=re.MULTILINE), file.name
