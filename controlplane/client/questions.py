"""Questions that go to everyone, and are answered by who knows."""

from __future__ import annotations

import logging
import secrets

import anyio

from proto.codec import Producer, Reader, Unreadable
from proto.decisions import Decision, Explained, ExplainRequest
from proto.ids import Incarnation, RequestId, ServiceId
from proto.subjects import Subjects
from proto.wire.ports import Bus

log = logging.getLogger(__name__)


async def ask_routers(
    bus: Bus, subjects: Subjects, request: RequestId, wait_s: float
) -> list[Decision]:
    """What all routers together remember of a request, first attempt first."""
    producer = Producer(ServiceId(f"explain-{secrets.token_hex(4)}"), Incarnation(1), lambda: 0.0)
    reader = Reader[Explained](Explained)
    found: list[Decision] = []
    async with bus.subscribe(subjects.explained(request)) as answers:
        await bus.publish(subjects.explain, producer.seal(ExplainRequest(request)))
        with anyio.move_on_after(wait_s):
            async for answer in answers:
                try:
                    found += reader.open(answer.data).body.decisions
                except Unreadable as error:
                    log.error("skipping an answer: %s", error)
    return sorted(found, key=lambda decision: (decision.attempt, decision.time_s))
