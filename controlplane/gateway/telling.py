"""What a gateway tells routers and agents of its requests. Best effort: see `proto.progress`."""

from __future__ import annotations

from controlplane.gateway.flight import Flight
from controlplane.runtime.outbox import Outbox
from proto.ids import RequestId, WorkerId
from proto.progress import Phase, Progress
from proto.route import Chosen
from proto.subjects import Subjects


class Teller:
    """Says progress; what is too much is dropped: bookings expire by themselves."""

    def __init__(self, outbox: Outbox, subjects: Subjects) -> None:
        self._outbox = outbox
        self._subjects = subjects

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

    def _say(self, progress: Progress) -> None:
        self._outbox.put(self._subjects.progress(progress.worker), progress)
