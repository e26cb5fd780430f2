"""The board: what the cluster is doing, gathered from what everyone says on the bus. Pure.

Everything here is bounded: what is remembered of a busy cluster is the latest, and the counts.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from controlplane.console.curves import History, Window
from controlplane.console.frames import Columns, Ended, Fleet, Flight, Frame, Point, Worker
from controlplane.console.movements import Movements
from proto.decisions import Decision
from proto.ids import RequestId, WorkerId
from proto.load import LoadReport
from proto.progress import CANCELLED, COMPLETED, Phase, Progress
from proto.records import RequestRecord
from proto.scaling import PlanTick
from proto.transfers import Transition
from proto.workers import WorkerRecord, WorkerState

FLIGHTS_MAX = 20_000
FLIGHTS_SHOWN = 60
FLIGHT_SILENCE_S = 180.0
"""A request of which nobody has spoken for so long has ended without our hearing of it."""
LATEST_MAX = 60
"""Ended requests, and decisions, that a page which is opened now is told of."""
PER_BEAT_MAX = 24
PLANS_MAX = 240
TERMS_SHOWN = 12
"""Candidates of a decision; a page that wants all of them asks the router."""
HIT_WINDOW_REPORTS = 120
"""Load reports over which a worker's hit rate is taken: half a minute at four a second."""


@dataclass
class Activity:
    """One worker's recent load reports."""

    reports: deque[LoadReport] = field(default_factory=lambda: deque(maxlen=HIT_WINDOW_REPORTS))
    heard_s: float = 0.0

    @property
    def latest(self) -> LoadReport | None:
        """The last one; None before the first."""
        return self.reports[-1] if self.reports else None

    @property
    def cached_of_queried(self) -> tuple[int, int]:
        """Prompt tokens found in the cache lately, and those looked for."""
        if not self.reports:
            return 0, 0
        first, last = self.reports[0], self.reports[-1]
        cached = last.cached_tokens - first.cached_tokens
        return cached, last.queried_tokens - first.queried_tokens

    @property
    def hit_rate(self) -> float | None:
        """The share of the former; None without traffic."""
        cached, queried = self.cached_of_queried
        return cached / queried if queried > 0 else None

    def add(self, report: LoadReport, now_s: float) -> None:
        """A report has come. Counters that fall are those of an engine that started anew."""
        if self.latest and report.queried_tokens < self.latest.queried_tokens:
            self.reports.clear()
        self.reports.append(report)
        self.heard_s = now_s


@dataclass
class _Flight:
    worker: WorkerId
    attempt: int
    began_s: float
    heard_s: float
    first_token_s: float | None = None
    output_tokens: int = 0


class Board:
    """Takes every word as it comes, with the time of the loop; gives a frame at each beat."""

    def __init__(self, *, window_s: float, points_max: int) -> None:
        self.activity: dict[WorkerId, Activity] = {}
        self.completed = 0
        self.failed = 0
        self._order: list[WorkerId] = []
        self._window = Window(window_s)
        self.history = History(points_max)
        self._flights: OrderedDict[RequestId, _Flight] = OrderedDict()
        self._new_ended: deque[Ended] = deque(maxlen=PER_BEAT_MAX)
        self._new_decisions: deque[Decision] = deque(maxlen=PER_BEAT_MAX)
        self.ended: deque[Ended] = deque(maxlen=LATEST_MAX)
        self.decisions: deque[Decision] = deque(maxlen=LATEST_MAX)
        self.movements = Movements()
        self.plans: deque[PlanTick] = deque(maxlen=PLANS_MAX)
        self._new_plans: deque[PlanTick] = deque(maxlen=PER_BEAT_MAX)

    @property
    def in_flight(self) -> int:
        """Requests that are being served."""
        return len(self._flights)

    def saw_load(self, report: LoadReport, now_s: float) -> None:
        """What a worker is busy with."""
        self.activity.setdefault(report.worker, Activity()).add(report, now_s)

    def saw_progress(self, step: Progress, now_s: float) -> None:
        """How far a request has come."""
        flight = self._flights.get(step.request)
        if step.phase is Phase.ENDED:
            if flight and flight.attempt <= step.attempt:
                del self._flights[step.request]
            return
        if flight is None or flight.attempt < step.attempt:
            flight = _Flight(step.worker, step.attempt, now_s, now_s)
            self._flights[step.request] = flight
            if len(self._flights) > FLIGHTS_MAX:
                self._flights.popitem(last=False)
        flight.heard_s = now_s
        flight.output_tokens = max(flight.output_tokens, step.output_tokens)
        if step.phase is not Phase.DISPATCHED and flight.first_token_s is None:
            flight.first_token_s = now_s

    def saw_end(self, record: RequestRecord, now_s: float) -> None:
        """What came of a request."""
        self._window.add(record, now_s)
        self.completed += record.outcome == COMPLETED
        self.failed += record.outcome not in (COMPLETED, CANCELLED)
        self._flights.pop(record.request, None)
        ended = _ended(record)
        self._new_ended.append(ended)
        self.ended.append(ended)

    def saw_decision(self, decision: Decision, now_s: float) -> None:
        """One of a router's decisions; of its candidates the best are kept, and the chosen one."""
        decision = _abridged(decision)
        self._new_decisions.append(decision)
        self.decisions.append(decision)

    def saw_transition(self, step: Transition, now_s: float) -> None:
        """How far a movement of KV blocks has come."""
        self.movements.saw(step)

    def saw_plan(self, tick: PlanTick, now_s: float) -> None:
        """What a planner thought."""
        self.plans.append(tick)
        self._new_plans.append(tick)

    def fleet(self, records: Mapping[WorkerId, WorkerRecord], *, stale: bool) -> Fleet:
        """Who is there; later frames have their columns in this order."""
        workers = sorted(map(_worker, records.values()), key=_place)
        self._order = [worker.worker for worker in workers]
        for worker in self.activity.keys() - set(self._order):
            del self.activity[worker]
        return Fleet(tuple(workers), stale)

    def frame(self, now_s: float, time_s: float, *, ready: int, connected: bool) -> Frame:
        """What there is to say at this beat; what is new is said once."""
        self._forget_the_silent(now_s)
        point = self._point(now_s, time_s, ready)
        self.history.add(point)
        frame = Frame(
            time_s=time_s,
            point=point,
            columns=self._columns(now_s),
            flights=tuple(self._longest(now_s)),
            ended=tuple(self._new_ended),
            decisions=tuple(self._new_decisions),
            transfers=self.movements.take_changed(),
            plans=tuple(self._new_plans),
            connected=connected,
        )
        self._new_ended.clear()
        self._new_decisions.clear()
        self._new_plans.clear()
        return frame

    def _forget_the_silent(self, now_s: float) -> None:
        silent = [
            request
            for request, flight in self._flights.items()
            if flight.heard_s < now_s - FLIGHT_SILENCE_S
        ]
        for request in silent:
            del self._flights[request]

    def _point(self, now_s: float, time_s: float, ready: int) -> Point:
        loads = [activity.latest for activity in self.activity.values() if activity.latest]
        blocks = sum(load.total_blocks for load in loads)
        used = sum(load.used_blocks for load in loads)
        live = sum(load.live_blocks for load in loads)
        found = [activity.cached_of_queried for activity in self.activity.values()]
        queried = sum(tokens for _, tokens in found)
        return {
            "time_s": time_s,
            "ready": ready,
            "in_flight": len(self._flights),
            "running": sum(load.running for load in loads),
            "waiting": sum(load.waiting for load in loads),
            "kv_used": round(used / blocks, 4) if blocks else None,
            "kv_live": round(live / blocks, 4) if blocks else None,
            "hit_rate": round(sum(cached for cached, _ in found) / queried, 4) if queried else None,
            **self._window.point(now_s),
        }

    def _columns(self, now_s: float) -> Columns:
        rows = [self.activity.get(worker, Activity()) for worker in self._order]
        loads = [row.latest for row in rows]
        return Columns(
            running=tuple(load.running if load else 0 for load in loads),
            waiting=tuple(load.waiting if load else 0 for load in loads),
            queued_tokens=tuple(load.queued_prefill_tokens if load else 0 for load in loads),
            kv_used=tuple(_share(load.used_blocks, load) if load else 0.0 for load in loads),
            kv_live=tuple(_share(load.live_blocks, load) if load else 0.0 for load in loads),
            hit_rate=tuple(_rounded(row.hit_rate) for row in rows),
            preemptions=tuple(load.preemptions if load else 0 for load in loads),
            silent_s=tuple(round(now_s - row.heard_s, 1) if row.latest else -1.0 for row in rows),
        )

    def _longest(self, now_s: float) -> list[Flight]:
        oldest = list(self._flights.items())[:FLIGHTS_SHOWN]
        return [_flight(request, flight, now_s) for request, flight in oldest]


def ready_workers(records: Mapping[WorkerId, WorkerRecord]) -> int:
    """How many may be chosen."""
    return sum(record.state is WorkerState.READY for record in records.values())


def _abridged(decision: Decision) -> Decision:
    best = decision.terms[:TERMS_SHOWN]
    chosen = (t for t in decision.terms[TERMS_SHOWN:] if t.worker == decision.worker)
    return msgspec.structs.replace(decision, terms=(*best, *chosen))


def _place(worker: Worker) -> tuple[object, ...]:
    """Pools together, and in a pool those that are near each other; 2 before 10."""
    digits = "".join(c if c.isdigit() else " " for c in worker.worker).split()
    numbers = tuple(map(int, digits))
    return (worker.model, worker.role, tuple(worker.topology.values()), numbers, worker.worker)


def _worker(record: WorkerRecord) -> Worker:
    return Worker(
        worker=record.worker,
        model=record.model,
        role=record.role.value,
        state=record.state.value,
        engine=record.engine,
        engine_version=record.engine_version,
        url=record.url,
        hardware=record.hardware.profile,
        accelerators=record.hardware.accelerators,
        topology=dict(record.hardware.topology),
        block_tokens=record.block_tokens,
        total_blocks=record.total_blocks,
        max_running=record.max_running,
        taints=record.taints,
        adapters=record.adapters,
    )


def _flight(request: RequestId, flight: _Flight, now_s: float) -> Flight:
    first_s = flight.first_token_s
    return Flight(
        request=request,
        worker=flight.worker,
        attempt=flight.attempt,
        phase="prefill" if first_s is None else "decode",
        age_s=round(now_s - flight.began_s, 2),
        ttft_s=None if first_s is None else round(first_s - flight.began_s, 3),
        output_tokens=flight.output_tokens,
    )


def _ended(record: RequestRecord) -> Ended:
    return Ended(
        request=record.request,
        model=record.model,
        outcome=record.outcome,
        worker=record.worker,
        policy=record.policy,
        ended_s=round(record.arrived_s + record.duration_ms / 1000, 3),
        prompt_tokens=record.prompt_tokens,
        cached_tokens=record.cached_tokens,
        predicted_cached_tokens=record.predicted_cached_tokens,
        output_tokens=record.output_tokens,
        ttft_ms=record.ttft_ms,
        tpot_ms=record.tpot_ms,
        duration_ms=round(record.duration_ms, 1),
        attempts=record.attempts,
        trace_id=record.trace_id,
    )


def _share(blocks: int, load: LoadReport) -> float:
    return round(min(1.0, blocks / load.total_blocks), 4) if load.total_blocks else 0.0


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)
