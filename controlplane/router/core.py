"""The router's mind: what it knows of the fleet, and one decision a request. Pure.

The same object answers real requests, replays traces in virtual time, and runs in the simulated
world: time and dice come in from outside.

Load is what our ledger says or what the worker last reported, whichever is more, term by term.
The ledger is ahead of the reports (a burst is booked before any report shows it); the reports
know of work that came by another way. Adding the two would count most requests twice.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

from controlplane.router.index import PrefixIndex
from controlplane.router.ledger import Ledger
from controlplane.router.policy import Candidate, Prompt, State, decode_blocks, pick, policy
from controlplane.router.settings import RouterSettings
from proto.hashing import unpack
from proto.ids import WorkerId
from proto.kv import KvBatch, Tier
from proto.load import LoadReport
from proto.progress import Booking, Phase, Progress
from proto.route import (
    NO_WORKER,
    UNKNOWN_MODEL,
    Chosen,
    Rejected,
    RouteReply,
    RouteRequest,
    Term,
)
from proto.workers import Role, WorkerRecord, WorkerState

RETRY_AFTER_S = 1.0


class RouterCore:
    """Workers, their blocks, their work, and the policy that weighs them."""

    def __init__(self, settings: RouterSettings, name: str, rng: random.Random) -> None:
        self.index = PrefixIndex()
        self.ledger = Ledger(settings.booking_silence_s)
        self._settings = settings
        self.name = name
        self._rng = rng
        self._states: dict[str, State] = {}
        self._workers: dict[WorkerId, WorkerRecord] = {}
        self._reports: dict[WorkerId, tuple[float, LoadReport]] = {}

    @property
    def workers(self) -> Mapping[WorkerId, WorkerRecord]:
        return self._workers

    def worker_joined(self, record: WorkerRecord) -> None:
        """A worker is there, or says something else of itself."""
        self._workers[record.worker] = record
        self.index.join(record.worker)

    def worker_left(self, worker: WorkerId) -> None:
        """A worker is gone, with its blocks and its work."""
        self._workers.pop(worker, None)
        self._reports.pop(worker, None)
        self.index.leave(worker)
        self.ledger.forget(worker)

    def apply(self, batch: KvBatch) -> None:
        """Take in a worker's next KV batch; batches of workers we do not know are ignored."""
        if batch.worker not in self.index or batch.tier is not Tier.GPU:
            return
        if batch.cleared:
            self.index.clear(batch.worker)
        if batch.removed:
            self.index.remove(batch.worker, unpack(batch.removed))
        if batch.stored:
            self.index.store(batch.worker, unpack(batch.stored))

    def observe_load(self, report: LoadReport, now_s: float) -> None:
        """Take in what a worker says it is busy with."""
        if report.worker in self._workers:
            self._reports[report.worker] = (now_s, report)

    def booked_elsewhere(self, booking: Booking, now_s: float) -> None:
        """Another router has given a worker a request."""
        self.ledger.book(booking, now_s)

    def progress(self, progress: Progress, now_s: float) -> None:
        """A gateway says how far a request has come."""
        request, worker = progress.request, progress.worker
        if progress.phase is Phase.FIRST_TOKEN:
            self.ledger.first_token(request, worker, now_s)
        elif progress.phase is Phase.ENDED:
            self.ledger.end(request, worker)
        else:
            self.ledger.alive(request, worker, now_s)

    def expire(self, now_s: float) -> int:
        """Forget bookings that nobody carries any more; returns how many."""
        return self.ledger.expire(now_s)

    def decide(self, request: RouteRequest, now_s: float) -> RouteReply:
        """Choose a worker and book it, or say why not. ValueError for an unknown policy."""
        name = request.policy or self._settings.policy
        weigh = policy(name)
        excluded = {w: why for w, why in self._filtered(request) if why}
        eligible = [
            r for w, r in self._workers.items() if w not in excluded and r.model == request.model
        ]
        if not eligible:
            return self._nobody(request, excluded)
        prompt = Prompt(request.prompt_tokens, request.expected_output_tokens)
        candidates = list(self._candidates(request, eligible, now_s))
        state = self._states.setdefault(name, State(self._rng, self._settings.prefill_weight))
        costs = weigh(prompt, candidates, state)
        chosen = pick(candidates, costs, self._rng, self._settings.temperature)
        best = candidates[chosen]
        record = self._workers[best.worker]
        reply = Chosen(
            worker=best.worker,
            incarnation=record.incarnation,
            url=record.url,
            router=self.name,
            policy=name,
            overlap_blocks=best.overlap_blocks,
            block_tokens=best.block_tokens,
            terms=_terms(candidates, costs, excluded) if request.explain else (),
        )
        self.ledger.book(booking_of(request, reply), now_s)
        return reply

    def _filtered(self, request: RouteRequest) -> Iterator[tuple[WorkerId, str]]:
        """Each worker of the model, and the filter that takes it out, if one does."""
        for worker, record in self._workers.items():
            if record.model != request.model:
                continue
            if record.state is not WorkerState.READY:
                yield worker, record.state.value
            elif record.role is Role.PREFILL:
                yield worker, "prefill_only"
            elif worker in request.exclude:
                yield worker, "just_failed"
            else:
                yield worker, ""

    def _candidates(
        self, request: RouteRequest, eligible: Sequence[WorkerRecord], now_s: float
    ) -> Iterator[Candidate]:
        depths = {
            block_tokens: self.index.match(unpack(names))
            for block_tokens, names in request.blocks.items()
        }
        fresh_s = now_s - self._settings.report_stale_s
        for record in eligible:
            worker, block_tokens = record.worker, record.block_tokens
            booked = self.ledger.of(worker)
            heard_s, report = self._reports.get(worker, (0.0, None))
            queued, blocks, requests = booked.prefill_tokens, booked.decode_blocks, booked.requests
            if report is not None and heard_s >= fresh_s:
                queued = max(queued, report.queued_prefill_tokens)
                blocks = max(blocks, report.decode_kv_tokens // block_tokens)
                requests = max(requests, report.running + report.waiting)
            overlap = depths.get(block_tokens, {}).get(worker, 0)
            yield Candidate(worker, block_tokens, overlap, queued, blocks, requests)

    def _nobody(self, request: RouteRequest, excluded: Mapping[WorkerId, str]) -> Rejected:
        if not excluded:
            return Rejected(UNKNOWN_MODEL, f"no worker serves {request.model!r}", RETRY_AFTER_S)
        why = ", ".join(f"{worker} is {reason}" for worker, reason in excluded.items())
        return Rejected(NO_WORKER, f"no worker can take it now: {why}", RETRY_AFTER_S)


def booking_of(request: RouteRequest, chosen: Chosen) -> Booking:
    """What a decision costs its worker. At least one token is computed, even when all of the
    prompt is cached."""
    cached_tokens = chosen.overlap_blocks * chosen.block_tokens
    return Booking(
        request.request,
        chosen.worker,
        max(1, request.prompt_tokens - cached_tokens),
        decode_blocks(
            Prompt(request.prompt_tokens, request.expected_output_tokens), chosen.block_tokens
        ),
    )


def _terms(
    candidates: Sequence[Candidate], costs: Sequence[float], excluded: Mapping[WorkerId, str]
) -> tuple[Term, ...]:
    weighed = [
        Term(c.worker, cost, c.overlap_blocks, c.queued_prefill_tokens, c.decode_blocks)
        for c, cost in zip(candidates, costs, strict=True)
    ]
    return (*weighed, *(Term(w, 0.0, excluded=why) for w, why in excluded.items()))
