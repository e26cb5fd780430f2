"""A trace in virtual time: the real router core in front of simulated engines, hours in seconds.

One heap of things to happen; time is when the next one does. A request is decided and submitted at
the moment it arrives. What agents and the gateway tell the router (KV batches, load reports, first
tokens and ends) is heard `event_delay_s` later, in order and without loss: so no booking falls
silent, and none need be kept alive or expired. The way of the request and of its tokens through
gateway and network takes no time.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from controlplane.replay.fleet import MODEL, SimulatedWorker
from controlplane.replay.report import Outcome, Run, Status
from controlplane.replay.trace import TraceRequest
from controlplane.router.core import RouterCore
from controlplane.router.settings import RouterSettings
from proto.hashing import Words, pack
from proto.ids import RequestId, WorkerId
from proto.kv import KvBatch
from proto.load import LoadReport
from proto.progress import Phase, Progress
from proto.route import Rejected, RouteRequest
from workers.sim.request import Progress as EngineProgress
from workers.sim.request import ProgressKind, Request
from workers.sim.scheduler import RequestTooLarge
from workers.sim.timing import PROFILES

REPORT_INTERVAL_S = 0.25
"""How often an agent pushes its load."""


@dataclass(frozen=True)
class Scenario:
    """All that is the same for every policy. `names` has the canonical names of each request's
    full blocks; `blocks` overrides the KV blocks of the profile."""

    requests: list[TraceRequest]
    names: list[Words]
    workers: int
    profile: str
    block_tokens: int
    blocks: int | None = None
    event_delay_s: float = 0.005
    seed: int = 0


def simulate(scenario: Scenario, policy: str, on_outcome: Callable[[], None]) -> Run:
    """The whole trace under one policy, on a fresh fleet; calls `on_outcome` for each request that
    has ended. Equal arguments give equal runs."""
    return _Simulation(scenario, policy, on_outcome).run()


@dataclass
class _Open:
    """A request in an engine."""

    worker: WorkerId
    first_token_s: float = 0.0


Action = Callable[[float], None]


class _Simulation:
    """One policy's run."""

    def __init__(self, scenario: Scenario, policy: str, on_outcome: Callable[[], None]) -> None:
        self._scenario = scenario
        self._policy = policy
        self._on_outcome = on_outcome
        self._core = RouterCore(
            RouterSettings(policy=policy), "replay", random.Random(scenario.seed)
        )
        profile = PROFILES[scenario.profile]
        width = len(str(scenario.workers - 1))
        fleet = [
            SimulatedWorker(
                WorkerId(f"w{i:0{width}}"), profile, scenario.block_tokens, scenario.blocks
            )
            for i in range(scenario.workers)
        ]
        self._fleet = {worker.worker: worker for worker in fleet}
        self._open: dict[int, _Open] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._last_token_s = 0.0
        self._touched: dict[WorkerId, SimulatedWorker] = {}
        """Workers whose engine must be asked, before time goes on, when to look again."""
        self._order = 0
        self._agenda: list[tuple[float, int, Action]] = []

    def run(self) -> Run:
        requests = self._scenario.requests
        for index, request in enumerate(requests):
            self._at(request.arrival_s, partial(self._arrive, index))
        start_s = requests[0].arrival_s
        for nth, worker in enumerate(self._fleet.values()):
            self._core.worker_joined(worker.record)
            # Agents do not tick together.
            first_s = start_s + REPORT_INTERVAL_S * (nth + 1) / len(self._fleet)
            self._at(first_s, partial(self._tell_load, worker))
        while self._agenda:
            self._moment(self._agenda[0][0])
        self._check_router()
        outcomes = [self._outcomes[index] for index in range(len(requests))]
        return Run(self._policy, outcomes, self._busy(self._last_token_s - start_s))

    def _moment(self, now_s: float) -> None:
        """All that happens at one time. Only then do engines go on: a step that begins now
        serves everybody who has arrived by now."""
        while self._agenda and self._agenda[0][0] == now_s:
            heapq.heappop(self._agenda)[2](now_s)
        for worker in self._touched.values():
            wake_s = worker.engine.next_event_s()
            if wake_s is not None and wake_s != worker.wake_s:
                self._at(wake_s, partial(self._wake, worker))
            worker.wake_s = wake_s
            batch = worker.take_batch()
            if batch is not None:
                self._at(now_s + self._scenario.event_delay_s, partial(self._hear_batch, batch))
        self._touched.clear()

    def _at(self, time_s: float, action: Action) -> None:
        self._order += 1
        heapq.heappush(self._agenda, (time_s, self._order, action))

    def _arrive(self, index: int, now_s: float) -> None:
        request, names = self._scenario.requests[index], self._scenario.names[index]
        reply = self._core.decide(
            RouteRequest(
                request=_request_id(index),
                model=MODEL,
                prompt_tokens=request.input_tokens,
                blocks={self._scenario.block_tokens: pack(names)},
            ),
            now_s,
        )
        if isinstance(reply, Rejected):
            self._end(index, Outcome(Status.REJECTED, detail=reply.detail))
            return
        worker = self._fleet[reply.worker]
        prompt_hashes: list[int] = names.tolist()
        try:
            worker.engine.submit(
                Request(index, request.input_tokens, prompt_hashes, request.output_tokens), now_s
            )
        except RequestTooLarge as error:
            self._tell_progress(index, reply.worker, Phase.ENDED, now_s)
            self._end(index, Outcome(Status.FAILED, detail=str(error)))
            return
        self._open[index] = _Open(reply.worker)
        self._touched[reply.worker] = worker

    def _wake(self, worker: SimulatedWorker, now_s: float) -> None:
        if worker.wake_s != now_s:
            return  # what was expected now was put off, or came sooner
        for progress in worker.engine.advance(now_s):
            self._take_progress(progress)
        self._touched[worker.worker] = worker

    def _take_progress(self, progress: EngineProgress) -> None:
        assert isinstance(progress.id, int)
        request = self._open[progress.id]
        if progress.kind is ProgressKind.FIRST_TOKEN:
            request.first_token_s = progress.time_s
            self._tell_progress(progress.id, request.worker, Phase.FIRST_TOKEN, progress.time_s)
        elif progress.kind is ProgressKind.FINISHED:
            del self._open[progress.id]
            self._last_token_s = progress.time_s
            self._tell_progress(progress.id, request.worker, Phase.ENDED, progress.time_s)
            self._end(progress.id, self._completed(progress, request.first_token_s))

    def _completed(self, progress: EngineProgress, first_token_s: float) -> Outcome:
        assert isinstance(progress.id, int)
        request, block_tokens = self._scenario.requests[progress.id], self._scenario.block_tokens
        after_first = progress.output_tokens - 1
        decode_ms = (progress.time_s - first_token_s) * 1000
        return Outcome(
            Status.COMPLETED,
            ttft_ms=(first_token_s - request.arrival_s) * 1000,
            tpot_ms=decode_ms / after_first if after_first else None,
            prompt_blocks=request.input_tokens // block_tokens,
            cached_blocks=progress.cached_tokens // block_tokens,
        )

    def _end(self, index: int, outcome: Outcome) -> None:
        self._outcomes[index] = outcome
        self._on_outcome()

    def _tell_load(self, worker: SimulatedWorker, now_s: float) -> None:
        if len(self._outcomes) == len(self._scenario.requests):
            return
        delay_s = self._scenario.event_delay_s
        self._at(now_s + delay_s, partial(self._hear_load, worker.report()))
        self._at(now_s + REPORT_INTERVAL_S, partial(self._tell_load, worker))

    def _tell_progress(self, index: int, worker: WorkerId, phase: Phase, now_s: float) -> None:
        progress = Progress(_request_id(index), worker, attempt=1, phase=phase)
        self._at(now_s + self._scenario.event_delay_s, partial(self._hear_progress, progress))

    def _hear_batch(self, batch: KvBatch, now_s: float) -> None:
        self._core.apply(batch)

    def _hear_load(self, report: LoadReport, now_s: float) -> None:
        self._core.observe_load(report, now_s)

    def _hear_progress(self, progress: Progress, now_s: float) -> None:
        self._core.progress(progress, now_s)

    def _busy(self, span_s: float) -> float:
        for worker in self._fleet.values():
            worker.report()
        busy_ms = sum(worker.busy_ms for worker in self._fleet.values())
        return busy_ms / 1000 / (span_s * len(self._fleet)) if span_s > 0 else 0.0

    def _check_router(self) -> None:
        """All words have been heard: the router must know exactly what the engines hold, and
        that they have nothing left to do."""
        assert not len(self._core.ledger), "bookings are left over"
        index = self._core.index
        for worker in self._fleet.values():
            said = worker.report()
            held = (index.count(worker.worker), index.digest(worker.worker))
            assert held == (said.live_blocks, said.digest), f"{worker.worker}: index has drifted"


def _request_id(index: int) -> RequestId:
    return RequestId(f"r{index}")
