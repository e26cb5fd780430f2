"""Questions that go to everyone, and are answered by who knows."""

from __future__ import annotations

import logging
import secrets
from typing import TypeVar

import anyio
import msgspec

from proto.codec import Producer, Reader, Unreadable
from proto.decisions import Decision, Explained, ExplainRequest
from proto.ids import Incarnation, RequestId, ServiceId
from proto.live import SettingsQuestion, SettingsTold
from proto.subjects import Subjects
from proto.wire.ports import Bus

log = logging.getLogger(__name__)

T = TypeVar("T", bound=msgspec.Struct)


async def ask_routers(
    bus: Bus, subjects: Subjects, request: RequestId, wait_s: float
) -> list[Decision]:
    """What all routers together remember of a request, first attempt first."""
    question = subjects.explain, ExplainRequest(request)
    answers = await _gather(bus, *question, subjects.explained(request), Explained, wait_s)
    decisions = [decision for answer in answers for decision in answer.decisions]
    return sorted(decisions, key=lambda decision: (decision.attempt, decision.time_s))


async def ask_settings(bus: Bus, subjects: Subjects, wait_s: float) -> list[SettingsTold]:
    """Which live settings are on, by process."""
    question = subjects.settings, SettingsQuestion()
    answers = await _gather(bus, *question, subjects.every_settings, SettingsTold, wait_s)
    return sorted({told.service: told for told in answers}.values(), key=lambda told: told.service)


async def _gather(
    bus: Bus, subject: str, question: msgspec.Struct, answered: str, kind: type[T], wait_s: float
) -> list[T]:
    """Ask on one subject, and take all answers that come on another within `wait_s`."""
    producer = Producer(ServiceId(f"asking-{secrets.token_hex(4)}"), Incarnation(1), lambda: 0.0)
    reader = Reader[T](kind)
    found: list[T] = []
    async with bus.subscribe(answered) as answers:
        await bus.publish(subject, producer.seal(question))
        with anyio.move_on_after(wait_s):
            async for answer in answers:
                try:
                    found.append(reader.open(answer.data).body)
                except Unreadable as error:
                    log.error("skipping an answer: %s", error)
    return found
