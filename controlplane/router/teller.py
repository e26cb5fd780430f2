"""Tells others of decisions: a sample of them as they are made, and any when somebody asks."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from functools import partial

import anyio

from controlplane.router.core import RouterCore
from controlplane.router.explain import TERMS_MAX, Made
from controlplane.router.settings import RouterSettings
from proto.codec import Producer, Reader, Unreadable
from proto.decisions import Decision, Explained, ExplainRequest
from proto.subjects import Subjects
from proto.wire.errors import BusError
from proto.wire.ports import Bus

log = logging.getLogger(__name__)

WAITING_MAX = 256
"""Sampled decisions that wait for the bus; what comes on top is not told."""
TOLD_BYTES_MAX = 900_000
"""NATS takes a megabyte; where names are long and policies say much, fewer terms are told."""


class Teller:
    """Part of a router service. `note` never waits."""

    def __init__(
        self,
        settings: RouterSettings,
        bus: Bus,
        subjects: Subjects,
        core: RouterCore,
        producer: Producer,
        clock: Callable[[], float],
    ) -> None:
        self.share = settings.decisions_share
        self._bus = bus
        self._subjects = subjects
        self._core = core
        self._producer = producer
        self._clock = clock
        self._dice = random.Random()
        self._noted, self._waiting = anyio.create_memory_object_stream[Made](WAITING_MAX)

    def note(self, made: Made) -> None:
        """A decision was made; it is told if it belongs to the sample."""
        if self.share and self._dice.random() < self.share:
            try:
                self._noted.send_nowait(made)
            except anyio.WouldBlock:
                log.debug("the bus is slow: a decision is not told")

    async def run(self) -> None:
        """Tell until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._publish)
            await self._answer()

    async def _publish(self) -> None:
        with self._noted, self._waiting:
            async for made in self._waiting:
                await self._send(self._subjects.decisions, self._sealed([made], _first))

    async def _answer(self) -> None:
        reader = Reader[ExplainRequest](ExplainRequest)
        async with self._bus.subscribe(self._subjects.explain) as questions:
            async for question in questions:
                try:
                    request = reader.open(question.data).body.request
                    subject = self._subjects.explained(request)
                except (Unreadable, ValueError) as error:
                    log.debug("skipping a question on %s: %s", question.subject, error)
                    continue
                if decisions := self._core.decisions.of(request):
                    explained = partial(Explained, request, self._core.name)
                    await self._send(subject, self._sealed(decisions, explained))

    def _sealed(
        self,
        decisions: Sequence[Made],
        body: Callable[[tuple[Decision, ...]], Decision | Explained],
    ) -> bytes:
        """What is made of these decisions, with as many of their terms as a message takes."""
        terms_max = TERMS_MAX // len(decisions)
        while True:
            sealed = self._producer.seal(body(tuple(self._told(m, terms_max) for m in decisions)))
            if len(sealed) <= TOLD_BYTES_MAX or not terms_max:
                return sealed
            terms_max //= 2

    def _told(self, made: Made, terms_max: int) -> Decision:
        ago_s = anyio.current_time() - made.now_s
        return made.told(self._core.name, self._clock() - ago_s, terms_max)

    async def _send(self, subject: str, sealed: bytes) -> None:
        try:
            await self._bus.publish(subject, sealed)
        except (BusError, ValueError) as error:  # it may be too large for this NATS
            log.debug("nobody was told on %s: %s", subject, error)


def _first(decisions: tuple[Decision, ...]) -> Decision:
    return decisions[0]
