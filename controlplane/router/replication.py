"""Hot prefixes are copied: the coordinator is asked, and says whether that pays and to whom."""

from __future__ import annotations

import logging

import anyio

from controlplane.router.metrics import RouterMetrics
from controlplane.runtime.tracing import inject, tracer
from proto.codec import Producer, Reader, Unreadable
from proto.subjects import Subjects
from proto.transfers import Move, Moved, MoveReply
from proto.wire.errors import BusError
from proto.wire.ports import Bus

log = logging.getLogger(__name__)
spans = tracer("tokenplane.router")

WAITING_MAX = 64
"""Copies that are wanted; what comes on top is wanted again, if it stays hot."""
AT_ONCE = 4
ANSWER_S = 35.0
"""A copy takes some of the coordinator's `move_s`."""


class Replication:
    """Part of a router service. `note` never waits."""

    def __init__(
        self, bus: Bus, subjects: Subjects, producer: Producer, metrics: RouterMetrics
    ) -> None:
        self._bus = bus
        self._subject = subjects.transfer("move")
        self._producer = producer
        self._metrics = metrics
        self._replies = Reader[MoveReply](MoveReply)
        self._wanted, self._waiting = anyio.create_memory_object_stream[Move](WAITING_MAX)

    def note(self, wanted: Move) -> None:
        """A prefix should have another holder."""
        try:
            self._wanted.send_nowait(wanted)
        except anyio.WouldBlock:
            self._metrics.replications.labels("dropped").inc()

    async def run(self) -> None:
        """Have them copied, until cancelled."""
        with self._wanted, self._waiting:
            async with anyio.create_task_group() as tasks:
                for _ in range(AT_ONCE):
                    tasks.start_soon(self._serve)

    async def _serve(self) -> None:
        async for wanted in self._waiting:
            with spans.start_as_current_span("router.replicate") as span:
                span.set_attribute("tokenplane.source", wanted.source)
                outcome = await self._ask(wanted)
                span.set_attribute("tokenplane.outcome", outcome)
            self._metrics.replications.labels(outcome).inc()

    async def _ask(self, wanted: Move) -> str:
        """What came of it, in a word."""
        try:
            answer = await self._bus.request(
                self._subject, self._producer.seal(wanted), timeout_s=ANSWER_S, headers=inject()
            )
            reply = self._replies.open(answer.data).body
        except (BusError, Unreadable) as error:
            log.debug("a hot prefix is not copied: %s", error)
            return "no_coordinator"
        if isinstance(reply, Moved):
            log.info("%s has %d blocks that are asked for often, too", reply.target, wanted.blocks)
            return "copied"
        return reply.reason
