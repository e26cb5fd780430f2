"""A gateway that leaves has told what is to be remembered, also what it was just telling."""

from __future__ import annotations

import anyio
import pytest
from prometheus_client import CollectorRegistry

from controlplane.gateway.metrics import GatewayMetrics
from controlplane.gateway.records import RecordWriter
from controlplane.gateway.tickets import Tickets
from proto.codec import Producer
from proto.ids import Incarnation, RequestId, ServiceId
from proto.records import RequestRecord
from proto.subjects import Subjects
from proto.transfers import Denied, Report, Step, TicketId
from proto.wire.memory.bus import MemoryHub
from proto.wire.memory.faults import Deliver, Drop
from proto.wire.ports import Endpoint, Message, ServiceInfo

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]

SUBJECTS = Subjects("c")
WAY_S = 0.1


def producer() -> Producer:
    return Producer(ServiceId("gw"), Incarnation(1), lambda: 0.0)


def record(number: int) -> RequestRecord:
    return RequestRecord(
        request=RequestId(f"r{number}"),
        model="m",
        tenant="",
        slo_class="",
        arrived_s=0.0,
        outcome="completed",
        prompt_tokens=1,
        output_tokens=1,
        cached_tokens=None,
        predicted_cached_tokens=0,
        ttft_ms=None,
        tpot_ms=None,
        duration_ms=1.0,
    )


async def test_records_that_are_just_being_stored_are_waited_for(anyio_backend: str) -> None:
    """The stream does not get them at the first attempt."""
    lost = 0

    def loses(sender: str, subject: str, receiver: str) -> Drop | Deliver:
        nonlocal lost
        lost += subject == SUBJECTS.requests
        return Drop() if subject == SUBJECTS.requests and lost <= 3 else Deliver()

    async with MemoryHub(loses) as hub:
        bus, found = hub.connect("gw"), []
        async with anyio.create_task_group() as tasks:
            metrics = GatewayMetrics(CollectorRegistry())
            writer = RecordWriter(bus, SUBJECTS, producer(), metrics, waiting_max=10)
            tasks.start_soon(writer.run)
            for number in range(3):
                writer.write(record(number))
            await anyio.sleep(WAY_S / 2)  # it has taken them out of its queue
            with anyio.fail_after(5):
                await writer.settled()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(5):
            async with bus.consume(SUBJECTS.requests_stream) as deliveries:
                async for delivery in deliveries:
                    found.append(delivery)
                    if len(found) == 3:
                        break


async def test_reports_that_are_just_being_made_are_waited_for(anyio_backend: str) -> None:
    heard: list[bytes] = []

    async def slow(message: Message) -> bytes:
        await anyio.sleep(WAY_S)
        heard.append(message.data)
        return producer().seal(Denied("no_ticket", "it is unknown"))

    endpoint = Endpoint("report", SUBJECTS.transfer("report"), slow)
    async with (
        MemoryHub() as hub,
        hub.connect("transfer").serve(ServiceInfo("t", "1.0.0"), [endpoint]),
        anyio.create_task_group() as tasks,
    ):
        tickets = Tickets(hub.connect("gw"), SUBJECTS, producer(), begin_s=1.0)
        tasks.start_soon(tickets.run)
        tickets.report_later(Report(TicketId("t1"), 1, Step.CANCEL))
        await anyio.sleep(WAY_S / 2)
        with anyio.fail_after(5):
            await tickets.settled()
        assert len(heard) == 1
        tasks.cancel_scope.cancel()
