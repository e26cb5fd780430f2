"""What a gateway tells routers and agents of its requests. Best effort: see `proto.progress`.

Nobody waits for it: what is told within a few milliseconds leaves together, as a message costs the
sender little and a write to its socket much.
"""

from __future__ import annotations

import logging
from collections import deque

import anyio

from controlplane.gateway.flight import Flight
from controlplane.runtime.tracing import inject
from proto.codec import Producer
from proto.ids import RequestId, WorkerId
from proto.progress import Phase, Progress
from proto.route import Chosen
from proto.subjects import Subjects
from proto.wire.errors import BusError
from proto.wire.ports import Bus, Headers

log = logging.getLogger(__name__)

GATHER_S = 0.002
WAITING_MAX = 16_384
"""What is too much is dropped: bookings expire by themselves."""


class Teller:
    """Publishes progress."""

    def __init__(self, bus: Bus, subjects: Subjects, producer: Producer) -> None:
        self._bus = bus
        self._subjects = subjects
        self._producer = producer
        self._waiting: deque[tuple[Progress, Headers]] = deque()
        self._news = anyio.Event()

    def tell(
        self,
        flight: Flight,
        chosen: Chosen,
        phase: Phase,
        outcome: str = "",
        *,
        worker_failed: bool = False,
    ) -> None:
        """How far a request has come on a worker."""
        told = flight.output_tokens, outcome, worker_failed
        self._say(Progress(flight.request, chosen.worker, flight.attempts, phase, *told))

    def tell_leg(
        self, flight: Flight, request: RequestId, worker: WorkerId, phase: Phase, outcome: str = ""
    ) -> None:
        """How far a piece of a request has come that is booked by a name of its own."""
        self._say(Progress(request, worker, flight.attempts, phase, 0, outcome))

    def worker_failed(self, worker: WorkerId, why: str) -> None:
        """The worker has failed something that is no client's request."""
        probe = RequestId(f"probe-{worker}")
        self._say(Progress(probe, worker, 1, Phase.ENDED, 0, why, worker_failed=True))

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            await anyio.sleep(GATHER_S)
            await self.settled()

    async def settled(self) -> None:
        """All that was told has been published."""
        while self._waiting:
            progress, headers = self._waiting.popleft()
            try:
                await self._bus.publish(
                    self._subjects.progress(progress.worker),
                    self._producer.seal(progress),
                    headers=headers,
                )
            except BusError as error:
                log.debug("progress of %s was not told: %s", progress.request, error)

    def _say(self, progress: Progress) -> None:
        if len(self._waiting) < WAITING_MAX:
            self._waiting.append((progress, inject()))
            self._news.set()
