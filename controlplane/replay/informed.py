"""The router in virtual time: the real core, and the words that are on their way to it.

Gateways and agents are heard `delay_s` after they speak. Agents number their KV batches, and the
router takes them in as the service does: through a lane for each worker (`router.ingest`), which
notices what was lost and is then given a snapshot. The times of that are the service's
(`router.snapshots`), with agents that answer at once and a way of `delay_s` there and back.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from controlplane.replay.arms import Arm, Knowledge
from controlplane.replay.fleet import INCARNATION, MODEL, SimulatedWorker
from controlplane.replay.trace import TraceRequest
from controlplane.router.core import RouterCore
from controlplane.router.ingest import BadSnapshot, Lane, Snapshot, retry_pause_s
from controlplane.router.plugins import installed
from proto.hashing import Words, pack
from proto.ids import RequestId, WorkerId
from proto.kv import KvBatch
from proto.load import LoadReport
from proto.progress import Phase, Progress
from proto.route import Rejected, RouteLeg, RouteRequest, Verdict
from proto.transfers import Move
from proto.workers import WorkerState
from workers.sim.cache import CacheEvent

REPORT_INTERVAL_S = 0.25
"""How often an agent pushes its load."""
SWEEP_ENTRIES = 1 << 20

Action = Callable[[float], None]
At = Callable[[float, Action], None]
"""Does something at a time, in seconds."""


class Informed:
    """A router and all that it hears. Tell it what happens; it may ask to be called `at` a time."""

    def __init__(
        self, arm: Arm, fleet: Mapping[WorkerId, SimulatedWorker], delay_s: float, seed: int, at: At
    ) -> None:
        self._arm = arm
        self._fleet = fleet
        self.report_interval_s = REPORT_INTERVAL_S
        self.on_load: Callable[[LoadReport, float], None] | None = None
        """Who else hears load reports, when the router does."""
        self._block_tokens = next(iter(fleet.values())).engine.block_tokens
        self._delay_s = delay_s
        self._at = at
        # Nobody waits at this router's door, and none is turned away: arms are compared by what
        # they make of all requests.
        settings = arm.settings.model_copy(update={"busy_prefill_batches": 0.0})
        self._core = RouterCore(settings, "replay", random.Random(seed), installed())
        self._losses = random.Random(seed)
        self._kv_events = arm.knowledge is Knowledge.EVENTS
        self._lanes: dict[WorkerId, Lane] = {}
        self._healing: set[WorkerId] = set()
        self._open = 0
        """Requests that have not ended."""

    def start(self, requests: int, now_s: float) -> None:
        """The fleet joins; so many requests are to come."""
        self._open = requests
        for nth, worker in enumerate(self._fleet.values()):
            # Agents do not tick together.
            self.join(
                worker, now_s, first_s=now_s + self.report_interval_s * (nth + 1) / len(self._fleet)
            )

    def join(self, worker: SimulatedWorker, now_s: float, *, first_s: float) -> None:
        """A worker of the fleet is ready; it first tells its load at `first_s`."""
        self._core.worker_joined(worker.record(kv_events=self._kv_events))
        if self._kv_events:
            lane = self._lanes[worker.worker] = Lane(worker.worker)
            self._apply(lane.registered(INCARNATION))
            self._heal(worker.worker, now_s)
        self._at(first_s, partial(self._tell_load, worker))

    def drain(self, worker: SimulatedWorker) -> None:
        """A worker is to be given nothing more."""
        record = worker.record(kv_events=self._kv_events)
        self._core.worker_joined(record.model_copy(update={"state": WorkerState.DRAINING}))

    def leave(self, worker: WorkerId) -> None:
        """A worker is gone; what is still on its way from it counts no more."""
        self._core.worker_left(worker)
        self._lanes.pop(worker, None)

    def choose(
        self, index: int, request: TraceRequest, names: Words, now_s: float
    ) -> WorkerId | Rejected:
        """Decide and book request number `index` of the trace."""
        reply = self.decide(index, request, names, now_s, RouteLeg.WHOLE)
        return reply if isinstance(reply, Rejected) else reply.worker

    def decide(
        self, index: int, request: TraceRequest, names: Words, now_s: float, leg: RouteLeg
    ) -> Verdict:
        """The same for one leg of it, told in full."""
        reply = self._core.decide(
            RouteRequest(
                request=_request_id(index, leg),
                model=MODEL,
                prompt_tokens=request.input_tokens,
                blocks={self._block_tokens: pack(names)},
                leg=leg,
            ),
            now_s,
        )
        if isinstance(reply, Rejected) and leg is not RouteLeg.PREFILL:
            self._open -= 1
        return reply

    def take_hot(self) -> list[Move]:
        """As `RouterCore.take_hot`."""
        return self._core.take_hot()

    def dropped(self) -> None:
        """A request goes nowhere, and nobody is asked about it."""
        self._open -= 1

    def cache_changed(
        self, worker: SimulatedWorker, events: list[CacheEvent], now_s: float
    ) -> None:
        """An engine says what came of its cache."""
        if not self._kv_events:
            return
        if self._arm.kv_delay_s:
            self._at(now_s + self._arm.kv_delay_s, partial(self._tell_batch, worker, events))
        else:
            self._tell_batch(worker, events, now_s)

    def progressed(
        self,
        index: int,
        worker: WorkerId,
        phase: Phase,
        now_s: float,
        leg: RouteLeg = RouteLeg.WHOLE,
    ) -> None:
        """A gateway says how far a request has come."""
        self._open -= phase is Phase.ENDED and leg is not RouteLeg.PREFILL
        self._tell(index, worker, phase, now_s, leg)

    def unwanted(self, index: int, worker: WorkerId, now_s: float, leg: RouteLeg) -> None:
        """What was booked on a worker for a leg is done by another one."""
        self._tell(index, worker, Phase.ENDED, now_s, leg)

    def _tell(
        self, index: int, worker: WorkerId, phase: Phase, now_s: float, leg: RouteLeg
    ) -> None:
        progress = Progress(_request_id(index, leg), worker, attempt=1, phase=phase)
        self._at(now_s + self._delay_s, partial(self._hear_progress, progress))

    def check(self) -> None:
        """All words have been heard: the router must know exactly what the engines hold, and
        that they have nothing left to do."""
        assert not len(self._core.ledger), "bookings are left over"
        for worker in self._lanes:
            held = self._core.known.held(worker)
            assert held.agrees_with(self._fleet[worker].report()), f"{worker}: index has drifted"

    def _tell_load(self, worker: SimulatedWorker, now_s: float) -> None:
        if not self._open and not self._missing(worker):
            return
        if worker.worker not in self._fleet:
            return
        self._at(now_s + self._delay_s, partial(self._hear_load, worker.report()))
        self._at(now_s + self.report_interval_s, partial(self._tell_load, worker))

    def _missing(self, worker: SimulatedWorker) -> bool:
        """Whether a loss has yet to be noticed or made good."""
        if not self._arm.kv_loss or worker.worker not in self._lanes:
            return False
        lane = self._lanes[worker.worker]
        return lane.needs is not None or lane.sequence < worker.kv_sequence

    def _tell_batch(self, worker: SimulatedWorker, events: list[CacheEvent], now_s: float) -> None:
        batch = worker.hear(events)
        if not self._lost():
            heard = partial(self._hear_batch, worker.kv_sequence, batch)
            self._at(now_s + self._delay_s, heard)

    def _hear_batch(self, sequence: int, batch: KvBatch, now_s: float) -> None:
        if batch.worker not in self._lanes:
            return
        self._apply(self._lanes[batch.worker].offer(INCARNATION, sequence, batch))
        self._heal(batch.worker, now_s)

    def _hear_load(self, report: LoadReport, now_s: float) -> None:
        lane = self._lanes.get(report.worker)
        if lane is not None:
            held = self._core.known.held(report.worker)
            self._apply(lane.check(report, INCARNATION, held))
            self._heal(report.worker, now_s)
        self._core.observe_load(report, now_s)
        if self.on_load is not None:
            self.on_load(report, now_s)

    def _hear_progress(self, progress: Progress, now_s: float) -> None:
        self._core.progress(progress, now_s)

    def _heal(self, worker: WorkerId, now_s: float) -> None:
        if self._lanes[worker].needs and worker not in self._healing:
            self._healing.add(worker)
            grace_s = self._arm.settings.snapshot_grace_s
            self._at(now_s + grace_s, partial(self._ask, worker, 0))

    def _ask(self, worker: WorkerId, failures: int, now_s: float) -> None:
        if worker not in self._lanes or not self._lanes[worker].needs:
            self._healing.discard(worker)
        elif self._lost():
            timeout_s = self._arm.settings.snapshot_timeout_s
            self._at(now_s + timeout_s, partial(self._make_do, worker, failures))
        else:
            self._at(now_s + self._delay_s, partial(self._show, worker, failures))

    def _show(self, worker: WorkerId, failures: int, now_s: float) -> None:
        """The agent answers."""
        if worker not in self._lanes:
            self._healing.discard(worker)
            return
        snapshot = self._fleet[worker].snapshot()
        self._at(now_s + self._delay_s, partial(self._install, snapshot, failures))

    def _install(self, snapshot: Snapshot, failures: int, now_s: float) -> None:
        lane = self._lanes.get(snapshot.worker)
        if lane is None:
            self._healing.discard(snapshot.worker)
            return
        try:
            self._apply(lane.install(snapshot))
        except BadSnapshot:
            self._make_do(snapshot.worker, failures, now_s)
            return
        while self._core.known.sweep(SWEEP_ENTRIES):
            pass
        self._again(snapshot.worker, failures, now_s)

    def _make_do(self, worker: WorkerId, failures: int, now_s: float) -> None:
        if worker not in self._lanes:
            self._healing.discard(worker)
            return
        self._apply(self._lanes[worker].make_do())
        self._again(worker, failures, now_s)

    def _again(self, worker: WorkerId, failures: int, now_s: float) -> None:
        pause_s = retry_pause_s(failures + 1) if self._lanes[worker].needs else 0.0
        self._at(now_s + pause_s, partial(self._ask, worker, failures + 1))

    def _apply(self, batches: Iterable[KvBatch]) -> None:
        for batch in batches:
            self._core.apply(batch)

    def _lost(self) -> bool:
        return self._arm.kv_loss > 0 and self._losses.random() < self._arm.kv_loss


def _request_id(index: int, leg: RouteLeg) -> RequestId:
    """The prefill leg is a piece of work of its own."""
    return RequestId(f"r{index}-prefill" if leg is RouteLeg.PREFILL else f"r{index}")
