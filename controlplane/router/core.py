"""The router's mind: what it knows of the fleet, and one decision a request. Pure.

The same object answers real requests, replays traces in virtual time, and runs in the simulated
world: time and dice come in from outside.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace

import numpy as np

from controlplane.capacity import Capacities
from controlplane.router.drain import Drain
from controlplane.router.elsewhere import copy_wanted, elsewhere
from controlplane.router.explain import TERMS_MAX, Decisions, made, turned_away
from controlplane.router.filters import Demand, demands
from controlplane.router.fleet import Admission, Fleet, Rows
from controlplane.router.heat import Heat
from controlplane.router.index import PrefixIndex
from controlplane.router.inhibition import Inhibitions
from controlplane.router.ledger import Ledger
from controlplane.router.legs import for_leg
from controlplane.router.overlap import Overlaps
from controlplane.router.policies.base import (
    Candidates,
    Overlap,
    State,
    Weighed,
    pick,
)
from controlplane.router.policies.catalog import FALLBACK, Catalog
from controlplane.router.policies.guarded import PolicyFailed
from controlplane.router.refusals import WORKERS_TOLD, all_busy, nobody, unknown_model
from controlplane.router.requests import booking_of, prompt_of
from controlplane.router.sessions import Sessions, session_key
from controlplane.router.settings import RouterSettings
from controlplane.router.tiers import Tiers
from proto.engine_choice import EngineRules
from proto.ids import WorkerId
from proto.kv import KvBatch
from proto.load import LoadReport
from proto.progress import Booking, Phase, Progress, Withdrawn
from proto.route import Chosen, Elsewhere, Rejected, RouteLeg, RouteRequest, Verdict
from proto.transfers import Move
from proto.workers import WorkerRecord

HOT_MAX = 64
INHIBITED = "inhibited"
"""Why a worker is passed over that has just failed somebody."""


class RouterCore:
    """Workers, their blocks, their work, and the policy that weighs them."""

    def __init__(
        self,
        settings: RouterSettings,
        name: str,
        rng: random.Random,
        catalog: Catalog | None = None,
    ) -> None:
        self.catalog = catalog or Catalog()
        self._filters = [Demand(lambda *_: True, each) for each in self.catalog.filters.values()]
        self._engines = EngineRules(settings.engine_rules)
        self._overlaps = Overlaps(settings)
        self.ledger = Ledger(settings.booking_silence_s)
        self.decisions = Decisions(settings.decisions_bytes)
        self._sessions = Sessions()
        self._inhibitions = Inhibitions(settings.inhibit_s)
        self._capacities = Capacities()
        self._settings = settings
        self._knobs = settings.knobs
        self.name = name
        self._rng = rng
        self._states: dict[tuple[str, str], State] = {}
        self._fleets: dict[str, Fleet] = {}
        self._drains: defaultdict[str, Drain] = defaultdict(Drain)
        self._models: dict[WorkerId, str] = {}
        self._heat = Heat(settings.replicate_blocks_min)
        self._hot: list[Move] = []

    def adopt(self, settings: RouterSettings) -> None:
        """Decide by other settings from now on; those that are no live ones stay."""
        self._settings = settings
        self._knobs = settings.knobs
        for state in self._states.values():
            state.knobs = self._knobs
        for fleet in self._fleets.values():
            fleet.limit(settings.busy_limits)

    @property
    def index(self) -> PrefixIndex:
        """What is in GPUs, as far as agents say."""
        return self.known.gpu

    @property
    def known(self) -> Tiers:
        """What agents say of their engines' caches."""
        return self._overlaps.known

    @property
    def workers(self) -> Mapping[WorkerId, WorkerRecord]:
        return {
            worker: fleet.record(row)
            for fleet in self._fleets.values()
            for row, worker in enumerate(fleet.workers)
        }

    def worker_joined(self, record: WorkerRecord) -> None:
        """A worker is there, or says something else of itself."""
        if self._models.get(record.worker, record.model) != record.model:
            self._leave_fleet(record.worker)
        self._models[record.worker] = record.model
        fleet = self._fleets.get(record.model)
        if fleet is None:
            limits = self._settings.busy_limits
            fleet = Fleet(self.ledger, self._capacities, self._settings.report_stale_s, limits)
            self._fleets[record.model] = fleet
        row = fleet.row(record.worker)
        if row is not None and fleet.record(row).incarnation != record.incarnation:
            self._inhibitions.lift(record.worker)
            self._overlaps.began_anew(record.worker)
        fleet.put(record)
        self.known.join(record.worker)

    def worker_left(self, worker: WorkerId) -> None:
        """A worker is gone, with its blocks and its work."""
        if worker in self._models:
            self._leave_fleet(worker)
            self._overlaps.leave(worker)
            self.ledger.forget(worker)
            self._inhibitions.lift(worker)

    def apply(self, batch: KvBatch) -> None:
        """Take in a worker's next KV batch; batches of workers we do not know are ignored.

        Raises ValueError, and changes nothing, if the names in it are not whole.
        """
        if batch.worker in self.known:
            self._overlaps.apply(batch)

    def observe_load(self, report: LoadReport, now_s: float) -> None:
        """Take in what a worker says it is busy with."""
        model = self._models.get(report.worker)
        if model is not None:
            self._catch_up()
            if self._fleets[model].observe(report, now_s):
                self._overlaps.told_again(report.worker)

    def booked_elsewhere(self, booking: Booking, now_s: float) -> None:
        """Another router has given a worker a request."""
        self._book(booking, now_s)

    def progress(self, progress: Progress, now_s: float) -> None:
        """A gateway says how far a request has come."""
        before = len(self.ledger)
        self.ledger.hear(progress, now_s)
        if len(self.ledger) < before:
            self._note_end(self._models.get(progress.worker, ""), now_s)
        self._overlaps.progress(progress, now_s)
        if progress.worker_failed:
            self.failed((progress.worker,), now_s)

    def withdraw(self, withdrawn: Withdrawn, now_s: float) -> None:
        """A gateway no longer wants what it asked for."""
        for worker in self.ledger.withdraw(withdrawn, now_s):
            ended = Progress(withdrawn.request, worker, withdrawn.attempt, Phase.ENDED)
            self._overlaps.progress(ended, now_s)

    def failed(self, workers: Iterable[WorkerId], now_s: float) -> None:
        """Workers have just failed a request: avoid them for a while."""
        self._inhibitions.failed((w for w in workers if w in self._models), now_s)

    def expire(self, now_s: float) -> int:
        """Forget bookings that nobody carries any more; returns how many."""
        return self.ledger.expire(now_s)

    def decide(self, request: RouteRequest, now_s: float) -> Verdict:
        """Choose a worker and book it, or say why not. ValueError for an unknown policy."""
        fleet = self._fleets.get(request.model)
        if fleet is None:
            return self._turned_away(request, unknown_model(request.model), {}, now_s)
        self._catch_up()
        fleet.age(now_s)
        asked = [*demands(request, fleet.block_sizes), *self._filters]
        if self._engines.demanding(request.workload):
            asked.append(Demand(lambda *_: True, self._engines.refuses))
        admitted = fleet.sift(request, asked)
        if not len(admitted.rows):
            verdict = nobody(admitted.refused)
            return self._turned_away(request, verdict, admitted.refused, now_s)
        rows, refused = fleet.free(self._without_inhibited(fleet, admitted, now_s))
        if not len(rows):
            self._look(request.model, fleet, now_s)
            verdict = self.too_busy(request.model, 0, now_s)
            return self._turned_away(request, verdict, refused, now_s)
        rows, refused, choice = self._prefer(request, fleet, Admission(rows, refused))
        overlap = self._overlaps.of(request, fleet, now_s)
        candidates = fleet.candidates(rows, overlap, now_s)
        name, weighed = self._weigh(request, candidates)
        chosen = pick(candidates, weighed.costs, self._rng, self._settings.temperature)
        record = fleet.record(int(rows[chosen]))
        block_tokens = record.block_tokens
        cached_tokens = int(candidates.cached_tokens[chosen])
        kept = made(request, name, candidates, weighed, chosen, refused=refused, now_s=now_s)
        kept = replace(kept, engine_choice=choice) if choice else kept
        self.decisions.keep(kept)
        reply = Chosen(
            worker=record.worker,
            incarnation=record.incarnation,
            url=record.url,
            router=self.name,
            policy=name,
            overlap_blocks=int(candidates.overlap.held_tokens[chosen]) // block_tokens,
            block_tokens=block_tokens,
            new_prefill_tokens=max(1, request.prompt_tokens - cached_tokens),
            terms=kept.terms(TERMS_MAX) if request.explain else (),
            engine_choice=kept.engine_choice,
            elsewhere=self._elsewhere(request, fleet, int(rows[chosen]), overlap),
        )
        booking = booking_of(request, reply)
        self._book(booking, now_s)
        self._note_heat(request, fleet, block_tokens, overlap, now_s)
        told = fleet.tells_of_cache(int(rows[chosen]))
        self._overlaps.expect(request, booking, block_tokens, now_s, told=told)
        return reply

    def take_hot(self) -> list[Move]:
        """Prefixes that others should have, too, since the last call."""
        hot, self._hot = self._hot, []
        return hot

    def kind(self, request: RouteRequest) -> Hashable:
        """Requests of one model and one kind can be served by the same workers."""
        if self._filters:  # users' own, which may look at anything
            return request.request, request.attempt
        demanded = request.constraints, request.exclude, frozenset(request.blocks)
        return demanded, request.leg, request.workload

    def anyone_free(self, model: str, now_s: float) -> bool:
        """Whether some worker of the model could take some request now."""
        fleet = self._fleets.get(model)
        if fleet is None:
            return False
        self._catch_up()
        fleet.age(now_s)
        return self._look(model, fleet, now_s)

    def wait_s(self, model: str, ahead: int, now_s: float) -> float | None:
        """How long a request is likely to wait behind `ahead` others where all are busy, None if
        that is not known."""
        return self._drains[model].wait_s(ahead, now_s) if model in self._drains else None

    def too_busy(self, model: str, ahead: int, now_s: float, why: str = "") -> Rejected:
        """The answer to a request that finds `ahead` others and all workers busy."""
        fleet = self._fleets.get(model)
        busy, count = fleet.busy(WORKERS_TOLD) if fleet else ({}, 0)
        return all_busy(busy, count, self.wait_s(model, ahead, now_s), why)

    def _look(self, model: str, fleet: Fleet, now_s: float) -> bool:
        """Whether somebody is free; while nobody is, it is measured how fast requests end."""
        free = fleet.anyone_free()
        if not free or model in self._drains:
            self._drains[model].look(now_s, free=free)
        return free

    def _note_end(self, model: str, now_s: float) -> None:
        """A request of the model has ended."""
        drain = self._drains.get(model)
        if drain is not None and drain.counts(now_s):
            drain.ended(now_s)
            self.anyone_free(model, now_s)

    def _elsewhere(
        self, request: RouteRequest, fleet: Fleet, row: int, overlap: Overlap
    ) -> Elsewhere | None:
        """Whom the chosen worker might fetch some of the prompt from."""
        tokens_min = self._settings.fetch_tokens_min
        if not tokens_min or request.leg is RouteLeg.DECODE:
            return None
        return elsewhere(request, fleet, row, overlap, self.index, tokens_min)

    def _note_heat(
        self,
        request: RouteRequest,
        fleet: Fleet,
        block_tokens: int,
        overlap: Overlap,
        now_s: float,
    ) -> None:
        """Count what is asked for; what is asked for too often should have another holder."""
        per_s = self._settings.replicate_per_s
        packed = request.blocks.get(block_tokens)
        if not per_s or packed is None or request.leg is RouteLeg.DECODE:
            return
        held_blocks = int(overlap.held_tokens.max()) // block_tokens
        names = np.frombuffer(packed, dtype="<u8")
        for hot in self._heat.note(names, held_blocks, now_s):
            if hot.per_s < per_s:
                continue
            wanted = copy_wanted(hot, request, fleet, self.index, names, per_s)
            if wanted is not None and self._heat.may_copy(hot.tail, now_s):
                self._hot = [*self._hot, wanted][-HOT_MAX:]
            return  # the longest prefix that is hot; shorter ones are in it

    def _prefer(
        self, request: RouteRequest, fleet: Fleet, free: Admission
    ) -> tuple[Rows, Mapping[WorkerId, str], str]:
        """Of those who are free, the ones whose engine comes first for this work; and why."""
        if not self._engines.preferring(request.workload):
            return free.rows, free.refused, ""
        rows = free.rows.tolist()
        engines = [fleet.record(row).engine for row in rows]
        preferred = self._engines.preference(request.workload, engines)
        if preferred is None:
            return free.rows, free.refused, ""
        passed_over = {
            fleet.workers[row]: preferred.reason
            for row, kept in zip(rows, preferred.kept, strict=True)
            if not kept
        }
        kept = free.without(passed_over, fleet.workers)
        return kept.rows, kept.refused, preferred.reason

    def _without_inhibited(self, fleet: Fleet, admitted: Admission, now_s: float) -> Admission:
        """Less the workers that have just failed, if that leaves any."""
        avoided = self._inhibitions.avoided(now_s)
        if not avoided:
            return admitted
        workers = [fleet.workers[row] for row in admitted.rows.tolist()]
        inhibited = {worker: INHIBITED for worker in workers if worker in avoided}
        return (
            admitted.without(inhibited, fleet.workers)
            if len(inhibited) < len(workers)
            else admitted
        )

    def _turned_away(
        self,
        request: RouteRequest,
        verdict: Rejected,
        refused: Mapping[WorkerId, str],
        now_s: float,
    ) -> Rejected:
        self.decisions.keep(turned_away(request, refused, verdict.reason, now_s))
        return verdict

    def _weigh(self, request: RouteRequest, candidates: Candidates) -> tuple[str, Weighed]:
        """What a policy makes of the candidates, and which one: where a user's policy fails,
        `FALLBACK` decides in its place."""
        name = request.policy or self._settings.policy
        prompt = prompt_of(request, self._sessions.home(session_key(request)))
        prompt, candidates = for_leg(request.leg, prompt, candidates)
        try:
            found = self.catalog.policy(name)(prompt, candidates, self._state(name, request.model))
        except PolicyFailed as failure:
            self.catalog.faults.note(name, str(failure))
            name = FALLBACK
            found = self.catalog.policy(name)(prompt, candidates, self._state(name, request.model))
        return name, found if isinstance(found, Weighed) else Weighed(found)

    def _book(self, booking: Booking, now_s: float) -> None:
        self.ledger.book(booking, now_s)
        self._sessions.served(booking.session, booking.worker)

    def _catch_up(self) -> None:
        """Bring the rows of those workers up to date whose bookings have changed."""
        for worker in self.ledger.take_changed():
            model = self._models.get(worker)
            if model is not None:
                self._fleets[model].weigh(worker)

    def _state(self, policy_name: str, model: str) -> State:
        key = policy_name, model
        if key not in self._states:
            self._states[key] = State(self._rng, self._knobs)
        return self._states[key]

    def _leave_fleet(self, worker: WorkerId) -> None:
        model = self._models.pop(worker)
        fleet = self._fleets[model]
        fleet.remove(worker)
        if not len(fleet):
            del self._fleets[model]
            self._overlaps.forget(fleet)
            self._drains.pop(model, None)
