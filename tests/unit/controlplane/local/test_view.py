"""The live view shows what the registry and the load reports say."""

from __future__ import annotations

import anyio
import msgspec
import pytest
from rich.console import Console

from controlplane.console.board import Activity
from controlplane.local.fleet import FleetActivity
from controlplane.local.view import workers_table
from proto.codec import Producer
from proto.ids import Incarnation, RequestId, WorkerId
from proto.load import LoadReport
from proto.progress import Phase, Progress
from proto.subjects import Subjects
from proto.wire.memory.bus import MemoryHub
from tests.support.router_core import record

SUBJECTS = Subjects("c")
WORKER = WorkerId("w1")
REPORT = LoadReport(WORKER, 3, 2, 4_500, 0, 512, 1_024, 0, 0, 0)


def shown(activity: dict[WorkerId, Activity]) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(workers_table({WORKER: record("w1")}, activity))
    return capture.get()


def test_a_worker_that_has_not_reported_is_there_already() -> None:
    assert "w1" in shown({})
    assert "ready" in shown({})


def test_load_and_occupancy_are_shown() -> None:
    activity = Activity()
    activity.add(REPORT, 0.0)
    text = shown({WORKER: activity})
    assert "4,500" in text
    assert "512/1,024" in text
    assert "██████░░░░░░" in text


def test_the_hit_rate_is_of_what_was_asked_lately() -> None:
    activity = Activity()
    assert activity.hit_rate is None
    for cached, queried in ((100, 1_000), (400, 1_500)):
        report = msgspec.structs.replace(REPORT, cached_tokens=cached, queried_tokens=queried)
        activity.add(report, 0.0)
    assert activity.hit_rate == pytest.approx(0.6)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_activity_is_heard_on_the_bus_and_garbage_is_not(anyio_backend: str) -> None:
    async with MemoryHub() as hub, anyio.create_task_group() as tasks:
        fleet = FleetActivity(hub.connect("view"), SUBJECTS)
        tasks.start_soon(fleet.run)
        bus, agent = hub.connect("agent"), Producer("w1", Incarnation(1), lambda: 0.0)
        await anyio.wait_all_tasks_blocked()
        await bus.publish(SUBJECTS.load(WORKER), b"garbage")
        await bus.publish(SUBJECTS.load(WORKER), agent.seal(REPORT))
        for outcome in ("completed", "cancelled", "engine_lost"):
            ended = Progress(RequestId("1"), WORKER, 1, Phase.ENDED, 0, outcome)
            await bus.publish(SUBJECTS.progress(WORKER), agent.seal(ended))
        await anyio.wait_all_tasks_blocked()
        assert (fleet.completed, fleet.failed) == (1, 1)
        assert fleet.workers[WORKER].latest == REPORT
        assert fleet.requests_per_s(anyio.current_time()) == pytest.approx(3 / 5)
        tasks.cancel_scope.cancel()
