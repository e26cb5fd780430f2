"""What nobody waits for leaves in order, and what the bus does not take stops nobody."""

from __future__ import annotations

import anyio
import pytest

from controlplane.runtime import outbox as box
from controlplane.runtime.outbox import Outbox
from proto.codec import Producer, Reader
from proto.decisions import ExplainRequest
from proto.ids import Incarnation, RequestId, ServiceId
from proto.wire.errors import BusUnavailable
from proto.wire.memory.bus import MemoryHub

pytestmark = pytest.mark.anyio


def said(number: int) -> ExplainRequest:
    return ExplainRequest(RequestId(f"r{number}"))


def producer() -> Producer:
    return Producer(ServiceId("s"), Incarnation(1), lambda: 0.0)


async def test_it_leaves_in_order_without_a_wait_for_who_puts_it() -> None:
    reader = Reader[ExplainRequest](ExplainRequest)
    async with MemoryHub() as hub, anyio.create_task_group() as tasks:
        outbox = Outbox(hub.connect("s"), producer(), gather_s=0)
        tasks.start_soon(outbox.run)
        async with hub.connect("ears").subscribe("tp.x") as messages:
            for number in range(100):
                outbox.put("tp.x", said(number))
            heard = []
            async for message in messages:
                heard.append(reader.open(message.data).body)
                if len(heard) == 100:
                    break
        assert heard == list(map(said, range(100)))
        tasks.cancel_scope.cancel()


async def test_it_is_bounded_and_outlives_a_bus_that_takes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(box, "WAITING_MAX", 3)
    tried = 0

    class Deaf:
        async def publish(self, *_: object, **__: object) -> None:
            nonlocal tried
            tried += 1
            raise BusUnavailable("nobody listens")

    outbox = Outbox(Deaf(), producer(), gather_s=0)  # type: ignore[arg-type]
    for number in range(10):
        outbox.put("tp.x", said(number))
    await outbox.settled()
    assert tried == 3


async def test_it_is_settled_once_the_last_is_published_too() -> None:
    begun, may_end, settled = anyio.Event(), anyio.Event(), anyio.Event()
    published: list[str] = []

    class Slow:
        async def publish(self, subject: str, *_: object, **__: object) -> None:
            begun.set()
            await may_end.wait()
            published.append(subject)

    outbox = Outbox(Slow(), producer(), gather_s=0)  # type: ignore[arg-type]

    async def settle() -> None:
        await outbox.settled()
        settled.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(outbox.run)
        outbox.put("tp.x", said(0))
        await begun.wait()
        tasks.start_soon(settle)
        await anyio.wait_all_tasks_blocked()
        assert not settled.is_set()
        may_end.set()
        await settled.wait()
        assert published == ["tp.x"]
        tasks.cancel_scope.cancel()


async def test_what_is_cancelled_on_its_way_out_is_still_to_be_published() -> None:
    published: list[str] = []
    begun = anyio.Event()

    class Full:
        async def publish(self, subject: str, *_: object, **__: object) -> None:
            if not begun.is_set():
                begun.set()
                await anyio.sleep_forever()
            published.append(subject)

    outbox = Outbox(Full(), producer(), gather_s=0)  # type: ignore[arg-type]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(outbox.run)
        outbox.put("tp.x", said(0))
        await begun.wait()
        tasks.cancel_scope.cancel()
    await outbox.settled()
    assert published == ["tp.x"]
