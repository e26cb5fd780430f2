"""What a gateway tells routers and agents of its requests. Best effort: see `proto.progress`."""

from __future__ import annotations

import logging

from controlplane.gateway.flight import Flight
from controlplane.runtime.tracing import inject
from proto.codec import Producer
from proto.ids import RequestId, WorkerId
from proto.progress import Phase, Progress
from proto.route import Chosen
from proto.subjects import Subjects
from proto.wire.errors import BusError
from proto.wire.ports import Bus

log = logging.getLogger(__name__)


class Teller:
    """Publishes progress."""

    def __init__(self, bus: Bus, subjects: Subjects, producer: Producer) -> None:
        self._bus = bus
        self._subjects = subjects
        self._producer = producer

    async def tell(
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
        await self._say(Progress(flight.request, chosen.worker, flight.attempts, phase, *told))

    async def tell_leg(
        self, flight: Flight, request: RequestId, worker: WorkerId, phase: Phase, outcome: str = ""
    ) -> None:
        """How far a piece of a request has come that is booked by a name of its own."""
        await self._say(Progress(request, worker, flight.attempts, phase, 0, outcome))

    async def worker_failed(self, worker: WorkerId, why: str) -> None:
        """The worker has failed something that is no client's request."""
        probe = RequestId(f"probe-{worker}")
        await self._say(Progress(probe, worker, 1, Phase.ENDED, 0, why, worker_failed=True))

    async def _say(self, progress: Progress) -> None:
        try:
            await self._bus.publish(
                self._subjects.progress(progress.worker),
                self._producer.seal(progress),
                headers=inject(),
            )
        except BusError as error:
            log.debug("progress of %s was not told: %s", progress.request, error)
