"""A trace through a fleet that grows and shrinks: the replayer, with somebody who decides how many.

A new worker takes `start_s` until it is ready, and costs from the moment it is asked for. One that
is to go is drained: it is given nothing more, finishes what it has, and costs until then. Workers
that were asked for and are not wanted any more before they are ready go first. Who decides hears
load reports and request records when a router would, and may know the future or not: see
`scalers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Protocol

from controlplane.replay.arms import Arm
from controlplane.replay.fleet import MODEL, SimulatedWorker
from controlplane.replay.informed import Informed
from controlplane.replay.report import Outcome, Run, Status, within
from controlplane.replay.simulate import Chooser, Scenario, Simulation
from proto.ids import RequestId, WorkerId
from proto.load import LoadReport
from proto.progress import COMPLETED
from proto.records import RequestRecord
from proto.workers import WorkerRecord

HOUR_S = 3_600.0
REPORT_INTERVAL_S = 1.0
"""Between load reports of a worker: longer than agents take, as there are many hours to replay."""


class Scaler(Protocol):
    """Who decides how many workers there are, of one kind of hardware."""

    name: str
    interval_s: float

    def worker(self, record: WorkerRecord, now_s: float) -> None: ...

    def worker_left(self, worker: WorkerId, now_s: float) -> None:
        """It is given nothing more, and drains."""

    def worker_gone(self, worker: WorkerId, now_s: float) -> None:
        """It has drained."""

    def hear_load(self, report: LoadReport, now_s: float) -> None: ...

    def hear_record(self, record: RequestRecord, now_s: float) -> None: ...

    def tick(self, now_s: float, fleet: Standing) -> Wish:
        """Asked every `interval_s`."""


class Standing(Protocol):
    """How many there are now."""

    @property
    def ready(self) -> int: ...

    @property
    def starting(self) -> int: ...


@dataclass(frozen=True)
class Wish:
    """How many workers there should be, and whom to retire first if that is fewer."""

    workers: int
    retire: Sequence[WorkerId] = ()
    reason: str = ""


@dataclass(frozen=True)
class Elastic:
    """How fleets grow here."""

    first: int
    least: int
    most: int
    start_s: float
    price: float
    """Of a worker's hour."""
    misses_max: int | None = None
    """With more requests than this outside their targets a run is given up: it cannot win."""


class _GivenUp(Exception):
    """There are too many misses."""


class Life(StrEnum):
    """Of one worker."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass
class _Place:
    worker: WorkerId
    asked_s: float
    life: Life
    simulated: SimulatedWorker | None = None


@dataclass
class ElasticRun:
    """What came of it. `timeline` has the moments at which the numbers changed: time, workers that
    are ready, workers that cost."""

    name: str
    run: Run
    worker_s: float = 0.0
    cost: float = 0.0
    scale_actions: int = 0
    timeline: list[tuple[float, int, int]] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    given_up: bool = False


def simulate_elastic(
    scenario: Scenario,
    arm: Arm,
    elastic: Elastic,
    make_scaler: Callable[[], Scaler],
    on_outcome: Callable[[], None],
) -> ElasticRun:
    """The whole trace; `scenario.profiles` names the one kind of hardware. Equal arguments give
    equal runs."""
    return _ElasticSimulation(scenario, arm, elastic, make_scaler(), on_outcome).run_elastic()


class _ElasticSimulation(Simulation):
    """A simulation with an open number of workers."""

    def __init__(
        self,
        scenario: Scenario,
        arm: Arm,
        elastic: Elastic,
        scaler: Scaler,
        on_outcome: Callable[[], None],
    ) -> None:
        self._elastic, self._scaler = elastic, scaler
        self._places: dict[WorkerId, _Place] = {}
        self._made = 0
        self._missed = 0
        self._unended = len(scenario.requests)
        self._result = ElasticRun(scaler.name, Run(scaler.name, [], None))
        self._wanted = elastic.first
        self._now_s = scenario.requests[0].arrival_s
        super().__init__(scenario, arm, on_outcome)

    @property
    def ready(self) -> int:
        return sum(place.life is Life.READY for place in self._places.values())

    @property
    def starting(self) -> int:
        return sum(place.life is Life.STARTING for place in self._places.values())

    def run_elastic(self) -> ElasticRun:
        """Run to the end."""
        start_s = self._scenario.requests[0].arrival_s
        for worker, simulated in self._fleet.items():
            self._places[worker] = _Place(worker, start_s, Life.READY, simulated)
            self._scaler.worker(simulated.record(kv_events=True), start_s)
        self._note(start_s)
        self._at(start_s + self._scaler.interval_s, self._tick)
        try:
            self._result.run = self.run()
        except _GivenUp:
            self._result.given_up = True
            missing = Outcome(Status.FAILED, detail="the run was given up")
            count = len(self._scenario.requests)
            outcomes = [self._outcomes.get(index, missing) for index in range(count)]
            self._result.run = Run(self._scaler.name, outcomes, None)
        end_s = self._last_token_s
        for place in self._places.values():
            self._result.worker_s += max(0.0, end_s - place.asked_s)
        self._result.cost = self._result.worker_s / HOUR_S * self._elastic.price
        self._note(end_s)
        return self._result

    def _make_fleet(self) -> dict[WorkerId, SimulatedWorker]:
        return {worker.worker: worker for worker in map(self._new, range(self._elastic.first))}

    def _new(self, _: int = 0) -> SimulatedWorker:
        self._made += 1
        profile = self._scenario.profiles[0]
        name = WorkerId(f"w{self._made:04}")
        return SimulatedWorker(name, profile, self._scenario.block_tokens, self._scenario.blocks)

    def _make_chooser(self) -> Chooser:
        chooser = super()._make_chooser()
        assert isinstance(chooser, Informed), "who scales needs a router that is told"
        chooser.on_load = self._scaler.hear_load
        chooser.report_interval_s = REPORT_INTERVAL_S
        self._informed = chooser
        return chooser

    def _tick(self, now_s: float) -> None:
        if not self._unended:
            return
        wish = self._scaler.tick(now_s, self)
        wanted = max(self._elastic.least, min(self._elastic.most, wish.workers))
        reasons = self._result.reasons
        reasons[wish.reason] = reasons.get(wish.reason, 0) + 1
        if wanted != self._wanted:
            self._wanted = wanted
            self._result.scale_actions += 1
        self._fit(wanted, wish.retire, now_s)
        self._at(now_s + self._scaler.interval_s, self._tick)

    def _fit(self, wanted: int, retire: Sequence[WorkerId], now_s: float) -> None:
        have = self.ready + self.starting
        for _ in range(have, wanted):
            simulated = self._new()
            place = _Place(simulated.worker, now_s, Life.STARTING, simulated)
            self._places[simulated.worker] = place
            self._at(now_s + self._elastic.start_s, partial(self._started, place))
        surplus = have - wanted
        for place in reversed([p for p in self._places.values() if p.life is Life.STARTING]):
            if surplus > 0:
                self._gone(place, now_s)
                surplus -= 1
        for worker in self._order_of_leaving(retire) if surplus > 0 else ():
            if surplus > 0:
                self._drain(self._places[worker], now_s)
                surplus -= 1
        self._note(now_s)

    def _order_of_leaving(self, retire: Sequence[WorkerId]) -> list[WorkerId]:
        ready = {w for w, place in self._places.items() if place.life is Life.READY}
        named = [worker for worker in retire if worker in ready]
        loads: Mapping[WorkerId, int] = {
            w: self._fleet[w].engine.load().running + self._fleet[w].engine.load().waiting
            for w in ready
        }
        return named + sorted(ready.difference(named), key=lambda w: (loads[w], w))

    def _started(self, place: _Place, now_s: float) -> None:
        if self._places.get(place.worker) is not place:
            return  # withdrawn
        assert place.simulated is not None
        place.life = Life.READY
        self._fleet[place.worker] = place.simulated
        self._informed.join(place.simulated, now_s, first_s=now_s + 0.1)
        self._scaler.worker(place.simulated.record(kv_events=True), now_s)
        self._note(now_s)

    def _drain(self, place: _Place, now_s: float) -> None:
        assert place.simulated is not None
        place.life = Life.DRAINING
        self._informed.drain(place.simulated)
        self._scaler.worker_left(place.worker, now_s)
        self._if_drained(place, now_s)

    def _if_drained(self, place: _Place, now_s: float) -> None:
        if not any(request.worker == place.worker for request in self._open.values()):
            self._fleet.pop(place.worker)
            self._scaler.worker_gone(place.worker, now_s)
            self._informed.leave(place.worker)
            self._gone(place, now_s)
            self._note(now_s)

    def _gone(self, place: _Place, now_s: float) -> None:
        del self._places[place.worker]
        self._result.worker_s += now_s - place.asked_s

    def _note(self, now_s: float) -> None:
        now = now_s, self.ready, len(self._places)
        if not self._result.timeline or self._result.timeline[-1][1:] != now[1:]:
            self._result.timeline.append(now)

    def _moment(self, now_s: float) -> None:
        self._now_s = now_s
        super()._moment(now_s)

    def _end(self, index: int, outcome: Outcome) -> None:
        self._unended -= 1
        super()._end(index, outcome)
        self._missed += not within(outcome, self._scenario.targets)
        most = self._elastic.misses_max
        if most is not None and self._missed > most:
            raise _GivenUp
        request = self._scenario.requests[index]
        worker = self._ended_on
        end_s = self._now_s
        done = outcome.status is Status.COMPLETED
        record = RequestRecord(
            request=RequestId(f"r{index}"),
            model=MODEL,
            tenant="",
            slo_class="",
            arrived_s=request.arrival_s,
            outcome=COMPLETED if done else outcome.status.value,
            prompt_tokens=request.input_tokens,
            output_tokens=request.output_tokens if done else 0,
            cached_tokens=outcome.cached_blocks * self._scenario.block_tokens,
            ttft_ms=outcome.ttft_ms if done else None,
            tpot_ms=outcome.tpot_ms,
            duration_ms=(end_s - request.arrival_s) * 1000,
            attempts=1 if worker else 0,
            worker=worker,
        )
        delay_s = self._scenario.event_delay_s
        self._at(end_s + delay_s, lambda now_s: self._scaler.hear_record(record, now_s))
        place = self._places.get(worker) if worker else None
        if place is not None and place.life is Life.DRAINING:
            self._at(end_s, partial(self._maybe_drained, place))

    def _maybe_drained(self, place: _Place, now_s: float) -> None:
        if self._places.get(place.worker) is place:
            self._if_drained(place, now_s)
