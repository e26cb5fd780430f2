"""The router's mind: what it knows of the fleet, and one decision a request. Pure.

The same object answers real requests, replays traces in virtual time, and runs in the simulated
world: time and dice come in from outside.

**Load.** The ledger is the truth about work that routers have given out: it is ahead of every
report. What reports show beyond it was given to the worker by somebody else, or is longer than
booked; that excess is added to the ledger, until the reports are too old. A report may be a few
milliseconds behind the ledger and show work that has just ended, so only what two reports in a row
show is believed. Nothing is counted twice, and a burst counts at once on top of what others send.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from controlplane.router.filters import refusal
from controlplane.router.index import PrefixIndex
from controlplane.router.ledger import InFlight, Ledger
from controlplane.router.policy import Candidate, Prompt, State, decode_blocks, pick, policy
from controlplane.router.settings import RouterSettings
from proto.hashing import HASH_BYTES, unpack
from proto.ids import WorkerId
from proto.kv import KvBatch, Tier
from proto.load import LoadReport
from proto.progress import Booking, Progress
from proto.route import (
    NO_WORKER,
    UNKNOWN_MODEL,
    Chosen,
    Rejected,
    RouteReply,
    RouteRequest,
    Term,
)
from proto.workers import WorkerRecord

RETRY_AFTER_S = 1.0
REFUSALS_TOLD = 8


@dataclass
class _Worker:
    """What the core knows of one worker beside its blocks and its bookings."""

    record: WorkerRecord
    report: LoadReport | None = None
    heard_s: float = 0.0
    beyond: InFlight = field(default_factory=InFlight)
    """What the last report shows beyond the ledger."""
    excess: InFlight = field(default_factory=InFlight)
    """What the last two reports both show beyond the ledger."""


class RouterCore:
    """Workers, their blocks, their work, and the policy that weighs them."""

    def __init__(self, settings: RouterSettings, name: str, rng: random.Random) -> None:
        self.index = PrefixIndex()
        self.ledger = Ledger(settings.booking_silence_s)
        self._settings = settings
        self.name = name
        self._rng = rng
        self._states: dict[tuple[str, str], State] = {}
        self._workers: dict[WorkerId, _Worker] = {}
        self._models: dict[str, dict[WorkerId, _Worker]] = {}

    @property
    def workers(self) -> Mapping[WorkerId, WorkerRecord]:
        return {worker: known.record for worker, known in self._workers.items()}

    def worker_joined(self, record: WorkerRecord) -> None:
        """A worker is there, or says something else of itself."""
        known = self._workers.get(record.worker)
        if known is None:
            known = self._workers[record.worker] = _Worker(record)
        elif known.record.model != record.model:
            self._leave_model(known.record)
        known.record = record
        self._models.setdefault(record.model, {})[record.worker] = known
        self.index.join(record.worker)

    def worker_left(self, worker: WorkerId) -> None:
        """A worker is gone, with its blocks and its work."""
        known = self._workers.pop(worker, None)
        if known is not None:
            self._leave_model(known.record)
            self.index.leave(worker)
            self.ledger.forget(worker)

    def apply(self, batch: KvBatch) -> None:
        """Take in a worker's next KV batch; batches of workers we do not know are ignored.

        Raises ValueError, and changes nothing, if the names in it are not whole.
        """
        if batch.worker not in self.index or batch.tier is not Tier.GPU:
            return
        removed, stored = unpack(batch.removed), unpack(batch.stored)
        if batch.cleared:
            self.index.clear(batch.worker)
        if removed:
            self.index.remove(batch.worker, removed)
        if stored:
            self.index.store(batch.worker, stored)

    def observe_load(self, report: LoadReport, now_s: float) -> None:
        """Take in what a worker says it is busy with."""
        known = self._workers.get(report.worker)
        if known is None:
            return
        beyond = _beyond(report, known.record.block_tokens, self.ledger.of(report.worker))
        known.excess = beyond if known.report is None else _both(known.beyond, beyond)
        known.report, known.heard_s, known.beyond = report, now_s, beyond

    def booked_elsewhere(self, booking: Booking, now_s: float) -> None:
        """Another router has given a worker a request."""
        self.ledger.book_elsewhere(booking, now_s)

    def progress(self, progress: Progress, now_s: float) -> None:
        """A gateway says how far a request has come."""
        self.ledger.hear(progress, now_s)

    def expire(self, now_s: float) -> int:
        """Forget bookings that nobody carries any more; returns how many."""
        return self.ledger.expire(now_s)

    def decide(self, request: RouteRequest, now_s: float) -> RouteReply:
        """Choose a worker and book it, or say why not. ValueError for an unknown policy."""
        name = request.policy or self._settings.policy
        weigh = policy(name)
        fleet = self._models.get(request.model)
        if not fleet:
            return Rejected(UNKNOWN_MODEL, f"no worker serves {request.model!r}", RETRY_AFTER_S)
        eligible, refused = self._sift(request, fleet, now_s)
        if not eligible:
            return _nobody(refused)
        candidates = self._candidates(request, eligible, now_s)
        state = self._state(name, request.model)
        costs = weigh(_prompt(request), candidates, state)
        chosen = pick(candidates, costs, self._rng, self._settings.temperature)
        reply = Chosen(
            worker=candidates[chosen].worker,
            incarnation=eligible[chosen].record.incarnation,
            url=eligible[chosen].record.url,
            router=self.name,
            policy=name,
            overlap_blocks=candidates[chosen].overlap_blocks,
            block_tokens=candidates[chosen].block_tokens,
            terms=_terms(candidates, costs, refused) if request.explain else (),
        )
        self.ledger.book(booking_of(request, reply), now_s)
        return reply

    def _sift(
        self, request: RouteRequest, fleet: Mapping[WorkerId, _Worker], now_s: float
    ) -> tuple[list[_Worker], dict[WorkerId, str]]:
        """Those who can take the request, and why the others cannot."""
        eligible: list[_Worker] = []
        refused: dict[WorkerId, str] = {}
        for worker, known in fleet.items():
            report = known.report if self._counts(known, now_s) else None
            if reason := refusal(request, known.record, report):
                refused[worker] = reason
            else:
                eligible.append(known)
        return eligible, refused

    def _candidates(
        self, request: RouteRequest, eligible: Sequence[_Worker], now_s: float
    ) -> list[Candidate]:
        sizes = {known.record.block_tokens for known in eligible} & request.blocks.keys()
        depths = {
            size: self.index.match(np.frombuffer(request.blocks[size], dtype="<u8"))
            for size in sizes
        }
        return [self._candidate(known, depths, now_s) for known in eligible]

    def _candidate(
        self, known: _Worker, depths: Mapping[int, Mapping[WorkerId, int]], now_s: float
    ) -> Candidate:
        worker, size = known.record.worker, known.record.block_tokens
        load = self.ledger.of(worker)
        requests, tokens, blocks = load.requests, load.prefill_tokens, load.decode_blocks
        if self._counts(known, now_s):
            requests += known.excess.requests
            tokens += known.excess.prefill_tokens
            blocks += known.excess.decode_blocks
        overlap = depths[size].get(worker, 0) if size in depths else 0
        return Candidate(worker, size, overlap, tokens, blocks, requests)

    def _counts(self, known: _Worker, now_s: float) -> bool:
        """Whether the worker's last report is young enough."""
        return known.heard_s >= now_s - self._settings.report_stale_s

    def _state(self, policy_name: str, model: str) -> State:
        key = policy_name, model
        if key not in self._states:
            self._states[key] = State(self._rng, self._settings.prefill_weight)
        return self._states[key]

    def _leave_model(self, record: WorkerRecord) -> None:
        fleet = self._models[record.model]
        del fleet[record.worker]
        if not fleet:
            del self._models[record.model]


def check(request: RouteRequest) -> None:
    """Raises ValueError, saying what is wrong, for a request that no router can answer."""
    if request.prompt_tokens < 1:
        raise ValueError("prompt_tokens must be at least 1: an empty prompt has no place to go")
    if request.expected_output_tokens < 0:
        raise ValueError("expected_output_tokens must not be negative")
    for block_tokens, names in request.blocks.items():
        if block_tokens < 1 or len(names) % HASH_BYTES:
            raise ValueError(f"blocks[{block_tokens}] is not a whole number of named blocks")
        if len(names) // HASH_BYTES * block_tokens > request.prompt_tokens:
            raise ValueError(f"blocks[{block_tokens}] names more tokens than the prompt has")
    if request.policy:
        policy(request.policy)


def booking_of(request: RouteRequest, chosen: Chosen) -> Booking:
    """What a decision costs its worker. At least one token is computed, even when all of the
    prompt is cached."""
    cached_tokens = chosen.overlap_blocks * chosen.block_tokens
    return Booking(
        request.request,
        chosen.worker,
        max(1, request.prompt_tokens - cached_tokens),
        decode_blocks(_prompt(request), chosen.block_tokens),
    )


def _prompt(request: RouteRequest) -> Prompt:
    return Prompt(request.prompt_tokens, request.expected_output_tokens)


def _beyond(report: LoadReport, block_tokens: int, booked: InFlight) -> InFlight:
    """What a report shows that is not booked."""
    return InFlight(
        max(0, report.running + report.waiting - booked.requests),
        max(0, report.queued_prefill_tokens - booked.prefill_tokens),
        max(0, report.decode_kv_tokens // block_tokens - booked.decode_blocks),
    )


def _both(one: InFlight, other: InFlight) -> InFlight:
    return InFlight(
        min(one.requests, other.requests),
        min(one.prefill_tokens, other.prefill_tokens),
        min(one.decode_blocks, other.decode_blocks),
    )


def _nobody(refused: Mapping[WorkerId, str]) -> Rejected:
    why = ", ".join(f"{w} is {reason}" for w, reason in islice(refused.items(), REFUSALS_TOLD))
    if len(refused) > REFUSALS_TOLD:
        why += f", and {len(refused) - REFUSALS_TOLD} more"
    return Rejected(NO_WORKER, f"no worker can take it now: {why}", RETRY_AFTER_S)


def _terms(
    candidates: Sequence[Candidate], costs: Sequence[float], refused: Mapping[WorkerId, str]
) -> tuple[Term, ...]:
    weighed = [
        Term(c.worker, cost, c.overlap_blocks, c.queued_prefill_tokens, c.decode_blocks)
        for c, cost in zip(candidates, costs, strict=True)
    ]
    return (*weighed, *(Term(w, 0.0, excluded=why) for w, why in refused.items()))
