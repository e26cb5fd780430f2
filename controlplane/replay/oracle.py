"""The oracle: chooses with perfect and instant knowledge of the present. No router could know this.

For every engine it sees, at the moment of the decision, the exact cache, what is queued and how
much of it will be found cached when its turn comes, every stream and how long its answer will be.
It gives the request to the engine where that breaks the fewest promises (`foresight`), its own and
those already made to others. What will arrive next it does not know either, so it is no bound: who
keeps prefixes apart for requests to come can do better. Nor does it see how far the step under way
has come.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from controlplane.replay.fleet import SimulatedWorker
from controlplane.replay.foresight import Job, Sight, harm
from controlplane.replay.report import Targets
from controlplane.replay.trace import TraceRequest
from proto.hashing import Words
from proto.ids import WorkerId
from proto.progress import Phase
from workers.sim.cache import CacheEvent

Settle = Callable[[SimulatedWorker, float], None]
"""Bring an engine up to a time, in seconds."""


@dataclass
class _Book:
    """What has been given to one engine and is not done; `queued` in order of arrival."""

    queued: dict[int, Job] = field(default_factory=dict)
    streams: dict[int, Job] = field(default_factory=dict)
    coming: Counter[int] = field(default_factory=Counter)
    """Blocks of queued prompts, which are about to be cached."""


class Oracle:
    """Sees all of the fleet at all times; `settle` brings an engine up to a moment."""

    def __init__(
        self, fleet: Mapping[WorkerId, SimulatedWorker], targets: Targets, settle: Settle
    ) -> None:
        self._fleet = fleet
        self._targets = targets
        self._settle = settle
        self._books = {worker: _Book() for worker in fleet}

    def start(self, requests: int, now_s: float) -> None:
        """Nothing need be said to whoever sees."""

    def choose(self, index: int, request: TraceRequest, names: Words, now_s: float) -> WorkerId:
        """The engine where the request does least harm."""
        prompt: list[int] = names.tolist()
        for worker in self._fleet.values():
            self._settle(worker, now_s)
            worker.report()
        jobs = {worker: self._job(worker, request, prompt) for worker in self._fleet}
        costs = {
            worker: harm(self._sight(worker, now_s), job, self._targets)
            for worker, job in jobs.items()
        }
        best = min(costs, key=costs.__getitem__)
        self._books[best].queued[index] = jobs[best]
        self._books[best].coming.update(prompt)
        return best

    def cache_changed(
        self, worker: SimulatedWorker, events: list[CacheEvent], now_s: float
    ) -> None:
        """Seen at once."""
        worker.hear(events)

    def progressed(self, index: int, worker: WorkerId, phase: Phase, now_s: float) -> None:
        """A request has its first token, or has ended, perhaps without one."""
        book = self._books[worker]
        job = book.queued.pop(index, None)
        if job is None:
            del book.streams[index]
            return
        book.coming.subtract(job.names)
        for name in job.names:
            if not book.coming[name]:
                del book.coming[name]
        if phase is Phase.FIRST_TOKEN:
            simulated = self._fleet[worker]
            simulated.report()
            job.first_token_s, job.first_step = now_s, simulated.steps
            book.streams[index] = job

    def check(self) -> None:
        """All requests have ended."""
        assert not any(book.queued or book.streams for book in self._books.values())

    def _job(self, worker: WorkerId, request: TraceRequest, prompt: list[int]) -> Job:
        live, coming = self._fleet[worker].live, self._books[worker].coming
        # Names are chained, so those that will be found are the first of the prompt.
        found = bisect_left(prompt, True, key=lambda n: n not in live and n not in coming)
        block_tokens = self._fleet[worker].engine.block_tokens
        # A prompt's last token is always computed.
        cached_tokens = min(found, (request.input_tokens - 1) // block_tokens) * block_tokens
        new_tokens = request.input_tokens - cached_tokens
        return Job(request.input_tokens, new_tokens, request.output_tokens, prompt)

    def _sight(self, worker: WorkerId, now_s: float) -> Sight:
        simulated, book = self._fleet[worker], self._books[worker]
        return Sight(
            now_s=now_s,
            profile=simulated.engine.profile,
            load=simulated.engine.load(),
            steps=simulated.steps,
            queued=list(book.queued.values()),
            streams=list(book.streams.values()),
        )
