"""Asking routers where a request goes, for as long as it takes, and whatever becomes of them.

Replicas share the questions. One that has nobody free says so before we would take it for dead, and
we ask again; a question without an answer is asked once more, as another replica may get it. What
was asked and is wanted no more, of one that was slow and not dead, or by a client that has left, is
withdrawn: it would wait, and be booked, for nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import anyio
import msgspec

from controlplane.gateway.metrics import GatewayMetrics
from controlplane.gateway.settings import GatewaySettings
from controlplane.runtime.tracing import inject
from proto.codec import Producer, Reader
from proto.ids import WorkerId
from proto.progress import Withdrawn
from proto.route import Chosen, Queued, RouteReply, RouteRequest, Verdict
from proto.subjects import Subjects
from proto.wire.errors import BusError, BusTimeout
from proto.wire.ports import Bus

log = logging.getLogger(__name__)

QUESTIONS = 2
"""That may stay without an answer, one after the other, before no router is believed to live."""
ANSWER_SHARE = 0.7
"""A router that lets us wait says so after this share of the time that it has to answer."""
FAREWELL_S = 1.0
NOBODY = WorkerId("")


class Routers:
    """The routers of a cluster, as one gateway sees them. `told` returns when they have been told
    all that has happened to requests: who has just been answered and asks again is to find its
    worker free."""

    def __init__(
        self,
        settings: GatewaySettings,
        bus: Bus,
        subjects: Subjects,
        metrics: GatewayMetrics,
        producer: Producer,
        told: Callable[[], Awaitable[None]],
    ) -> None:
        self.adopt(settings)
        self._told = told
        self._bus = bus
        self._subjects = subjects
        self._metrics = metrics
        self._producer = producer
        self._reader = Reader[RouteReply](RouteReply)

    def adopt(self, settings: GatewaySettings) -> None:
        """Wait by other settings from now on."""
        self._queue_s = settings.queue_s
        self._answer_s = settings.route_s / QUESTIONS

    async def decide(self, route: RouteRequest) -> Verdict:
        """What a router decides, within `queue_s` and a little. Raises `BusError`, `Unreadable`;
        then, and when it is cancelled, the request is withdrawn."""
        kept, unanswered = NOBODY, True
        await self._told()
        try:
            verdict, unanswered = await self._ask_until_decided(route)
            kept = verdict.worker if isinstance(verdict, Chosen) else NOBODY
            return verdict
        finally:
            if unanswered:
                with anyio.move_on_after(FAREWELL_S, shield=True):
                    await self._withdraw(Withdrawn(route.request, route.attempt, kept))

    async def _ask_until_decided(self, route: RouteRequest) -> tuple[Verdict, bool]:
        """The verdict, and whether any question stayed without an answer."""
        began_s, waited_s, lost, lost_in_a_row = anyio.current_time(), 0.0, False, 0
        while True:
            question = msgspec.structs.replace(
                route,
                deadline_s=max(0.0, self._queue_s - waited_s),
                answer_s=ANSWER_SHARE * self._answer_s,
                waited_s=waited_s,
            )
            try:
                reply = await self._ask(question)
                lost_in_a_row = 0
                if not isinstance(reply, Queued):
                    return reply, lost
            except BusTimeout:
                lost, lost_in_a_row = True, lost_in_a_row + 1
                if lost_in_a_row == QUESTIONS:
                    raise
                self._metrics.asked_again.inc()
            waited_s = anyio.current_time() - began_s

    async def _ask(self, question: RouteRequest) -> RouteReply:
        answer = await self._bus.request(
            self._subjects.route,
            self._producer.seal(question),
            timeout_s=self._answer_s,
            headers=inject(),
        )
        return self._reader.open(answer.data).body

    async def _withdraw(self, withdrawn: Withdrawn) -> None:
        try:
            await self._bus.publish(self._subjects.withdrawn, self._producer.seal(withdrawn))
        except BusError as error:
            log.debug("%s was not withdrawn: %s", withdrawn.request, error)
