"""A trace in virtual time: a router in front of simulated engines, hours in seconds.

One heap of things to happen; time is when the next one does. A request is decided and submitted at
the moment it arrives. What agents and the gateway tell the router is heard later (`informed`). No
booking falls silent, and none need be kept alive or expired. The way of the request and of its
tokens through gateway and network takes no time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from typing import Protocol

from controlplane.replay.arms import Arm, Knowledge
from controlplane.replay.copying import Copying
from controlplane.replay.fleet import MODEL, SimulatedWorker
from controlplane.replay.handover import TOO_LARGE, Handovers, Link, split
from controlplane.replay.informed import Action, Informed
from controlplane.replay.oracle import Oracle
from controlplane.replay.report import Outcome, Run, Status, Targets
from controlplane.replay.trace import TraceRequest
from controlplane.transfer.settings import TransferSettings
from proto.hashing import Words
from proto.ids import WorkerId
from proto.progress import Phase
from proto.route import Rejected, RouteLeg
from proto.speculation import accept_length
from proto.workers import Role
from workers.sim.cache import CacheEvent
from workers.sim.request import Progress as EngineProgress
from workers.sim.request import ProgressKind, Request
from workers.sim.scheduler import RequestTooLarge
from workers.sim.speculation import Speculation
from workers.sim.timing import Profile


@dataclass(frozen=True)
class Scenario:
    """All that is the same for every arm. `names` has the canonical names of each request's full
    blocks, `profiles` that of each worker; `blocks` overrides the KV blocks of profiles.
    `targets` are what users were promised: the oracle knows."""

    requests: list[TraceRequest]
    names: list[Words]
    profiles: tuple[Profile, ...]
    block_tokens: int
    targets: Targets
    blocks: int | None = None
    event_delay_s: float = 0.005
    dollars_per_hour: float | None = None
    """For all workers; None: nobody knows."""
    transfer: TransferSettings = field(default_factory=TransferSettings)
    link: Link = field(default_factory=Link)
    seed: int = 0
    speculation: Speculation | None = None


def simulate(scenario: Scenario, arm: Arm, on_outcome: Callable[[], None]) -> Run:
    """The whole trace under one arm, on a fresh fleet; calls `on_outcome` for each request that
    has ended. Equal arguments give equal runs."""
    return Simulation(scenario, arm, on_outcome).run()


class Chooser(Protocol):
    """Who gives requests to workers; `informed` says what the words mean."""

    def start(self, requests: int, now_s: float) -> None: ...

    def choose(
        self, index: int, request: TraceRequest, names: Words, now_s: float
    ) -> WorkerId | Rejected: ...

    def cache_changed(
        self, worker: SimulatedWorker, events: list[CacheEvent], now_s: float
    ) -> None: ...

    def progressed(self, index: int, worker: WorkerId, phase: Phase, now_s: float) -> None: ...

    def check(self) -> None: ...


@dataclass
class _Open:
    """A request in an engine."""

    worker: WorkerId
    first_token_s: float = 0.0


class Simulation:
    """One arm's run."""

    def __init__(self, scenario: Scenario, arm: Arm, on_outcome: Callable[[], None]) -> None:
        self._scenario = scenario
        self._arm = arm
        self._on_outcome = on_outcome
        self._fleet = self._make_fleet()
        self._open: dict[int, _Open] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._last_token_s = 0.0
        self._now_s = 0.0
        self._ended_on: WorkerId | None = None
        """The worker of the request that has just ended; None if it never had one."""
        self._touched: dict[WorkerId, SimulatedWorker] = {}
        """Workers whose engine must be asked, before time goes on, when to look again."""
        self._order = 0
        self._agenda: list[tuple[float, int, Action]] = []
        self._chooser = self._make_chooser()
        self._handovers = self._split() if split(arm.roles) else None
        self._copying = self._copier() if arm.moves else None

    def run(self) -> Run:
        requests = self._scenario.requests
        for index, request in enumerate(requests):
            self._at(request.arrival_s, partial(self._arrive, index))
        start_s = requests[0].arrival_s
        self._chooser.start(len(requests), start_s)
        while self._agenda:
            self._moment(self._agenda[0][0])
        self._chooser.check()
        if self._handovers is not None:
            self._handovers.check()
        if self._copying is not None:
            self._copying.check()
        outcomes = [self._outcomes[index] for index in range(len(requests))]
        span_s = self._last_token_s - start_s
        busy = self._busy(span_s)
        fleet, tallies = self._fleet.values(), [w.engine.tally for w in self._fleet.values()]
        price = self._scenario.dollars_per_hour
        return Run(
            self._arm.name,
            outcomes,
            sum(busy) / len(busy),
            sum(profile.accelerators for profile in self._scenario.profiles) * span_s,
            None if price is None else price * span_s / 3600,
            busy,
            sum(w.decoded for w in fleet) / max(1, sum(w.steps for w in fleet)),
            accept_length(
                sum(t.verifications for t in tallies), sum(t.accepted_tokens for t in tallies)
            ),
            [gap for worker in fleet for gap in worker.engine.gaps or ()],
        )

    def _make_fleet(self) -> dict[WorkerId, SimulatedWorker]:
        fleet = _fleet(self._scenario, self._arm.roles)
        for worker in fleet.values():
            worker.copies = self._arm.moves
        return fleet

    def _make_chooser(self) -> Chooser:
        scenario, arm = self._scenario, self._arm
        if arm.knowledge is Knowledge.ORACLE:
            return Oracle(self._fleet, scenario.targets, self._settle)
        return Informed(arm, self._fleet, scenario.event_delay_s, scenario.seed, self._at)

    def _split(self) -> Handovers:
        assert isinstance(self._chooser, Informed), "arms see to that"
        handovers = Handovers(
            self._fleet,
            self._chooser,
            self._scenario.transfer,
            self._scenario.link,
            self._at,
            self._touch,
        )
        self._chooser.on_load = handovers.hear
        return handovers

    def _copier(self) -> Copying:
        assert isinstance(self._chooser, Informed), "arms see to that"
        scenario = self._scenario
        copying = Copying(self._fleet, scenario.transfer, scenario.link, self._at, self._touch)
        self._chooser.on_load = copying.hear
        return copying

    def _touch(self, worker: SimulatedWorker) -> None:
        self._touched[worker.worker] = worker

    def _moment(self, now_s: float) -> None:
        """All that happens at one time. Only then do engines go on: a step that begins now
        serves everybody who has arrived by now."""
        self._now_s = now_s
        while self._agenda and self._agenda[0][0] == now_s:
            heapq.heappop(self._agenda)[2](now_s)
        for worker in self._touched.values():
            wake_s = worker.engine.next_event_s()
            if wake_s is not None and wake_s != worker.wake_s:
                self._at(wake_s, partial(self._wake, worker))
            worker.wake_s = wake_s
            for what in worker.engine.take_fetches():
                assert self._handovers is not None
                self._handovers.fetch(what, now_s)
            events = worker.engine.take_cache_events()
            if events:
                self._chooser.cache_changed(worker, events, now_s)
        self._touched.clear()

    def _at(self, time_s: float, action: Action) -> None:
        self._order += 1
        heapq.heappush(self._agenda, (time_s, self._order, action))

    def _arrive(self, index: int, now_s: float) -> None:
        request, names = self._scenario.requests[index], self._scenario.names[index]
        if self._handovers is not None:
            self._arrive_split(self._handovers, index, now_s)
            return
        if self._copying is not None:
            self._arrive_copying(self._copying, index, now_s)
            return
        chosen = self._chooser.choose(index, request, names, now_s)
        if isinstance(chosen, Rejected):
            self._ended_on = None
            self._end(index, Outcome(Status.REJECTED, detail=chosen.detail))
            return
        self._submit(index, chosen, now_s)

    def _submit(self, index: int, chosen: WorkerId, now_s: float) -> None:
        request, names = self._scenario.requests[index], self._scenario.names[index]
        worker = self._fleet[chosen]
        prompt_hashes: list[int] = names.tolist()
        try:
            worker.engine.submit(
                Request(index, request.input_tokens, prompt_hashes, request.output_tokens), now_s
            )
        except RequestTooLarge as error:
            self._chooser.progressed(index, chosen, Phase.ENDED, now_s)
            self._ended_on = chosen
            self._end(index, Outcome(Status.FAILED, detail=str(error)))
            return
        self._open[index] = _Open(chosen)
        self._touched[chosen] = worker

    def _arrive_copying(self, copying: Copying, index: int, now_s: float) -> None:
        """What its worker lacks may come from another one first; hot prefixes are copied."""
        assert isinstance(self._chooser, Informed)
        request, names = self._scenario.requests[index], self._scenario.names[index]
        reply = self._chooser.decide(index, request, names, now_s, RouteLeg.WHOLE)
        if isinstance(reply, Rejected):
            self._ended_on = None
            self._end(index, Outcome(Status.REJECTED, detail=reply.detail))
            return
        prompt: list[int] = names.tolist()
        copying.fetch(
            index, MODEL, prompt, reply, partial(self._submit, index, reply.worker), now_s
        )
        for hot in self._chooser.take_hot():
            copying.move(hot, prompt[: hot.blocks], None, now_s)

    def _arrive_split(self, handovers: Handovers, index: int, now_s: float) -> None:
        request, names = self._scenario.requests[index], self._scenario.names[index]
        chosen = handovers.place(index, request, names, now_s)
        if isinstance(chosen, Rejected):
            self._ended_on = None
            status = Status.FAILED if chosen.reason == TOO_LARGE else Status.REJECTED
            self._end(index, Outcome(status, detail=chosen.detail))
        else:
            self._open[index] = _Open(chosen)

    def _wake(self, worker: SimulatedWorker, now_s: float) -> None:
        if worker.wake_s != now_s:
            return  # what was expected now was put off, or came sooner
        self._settle(worker, now_s)

    def _settle(self, worker: SimulatedWorker, now_s: float) -> None:
        """Bring an engine up to this moment."""
        for progress in worker.engine.advance(now_s):
            self._take_progress(progress)
        self._touched[worker.worker] = worker

    def _take_progress(self, progress: EngineProgress) -> None:
        if isinstance(progress.id, str):
            if progress.kind is ProgressKind.FINISHED:
                assert self._handovers is not None
                self._handovers.prefilled(progress.id, self._now_s)
            return
        request = self._open[progress.id]
        if progress.kind is ProgressKind.FIRST_TOKEN:
            request.first_token_s = progress.time_s
            self._chooser.progressed(
                progress.id, request.worker, Phase.FIRST_TOKEN, progress.time_s
            )
        elif progress.kind is ProgressKind.FINISHED:
            del self._open[progress.id]
            self._last_token_s = progress.time_s
            self._ended_on = request.worker
            self._chooser.progressed(progress.id, request.worker, Phase.ENDED, progress.time_s)
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
            output_tokens=progress.output_tokens,
        )

    def _end(self, index: int, outcome: Outcome) -> None:
        self._outcomes[index] = outcome
        self._on_outcome()

    def _busy(self, span_s: float) -> tuple[float, ...]:
        """Share of the time that each engine was computing."""
        for worker in self._fleet.values():
            worker.report()
        span_ms = span_s * 1000
        return tuple(w.busy_ms / span_ms if span_s > 0 else 0.0 for w in self._fleet.values())


def _fleet(scenario: Scenario, roles: tuple[Role, ...]) -> dict[WorkerId, SimulatedWorker]:
    """The workers of a scenario; of a split fleet as many as there are roles."""
    roles = roles or (Role.AGGREGATED,) * len(scenario.profiles)
    width = len(str(len(roles) - 1))
    fleet = {}
    for i, (role, profile) in enumerate(zip(roles, cycle(scenario.profiles), strict=False)):
        worker = WorkerId(f"w{i:0{width}}")
        made = SimulatedWorker(
            worker, profile, scenario.block_tokens, scenario.blocks, scenario.speculation, role
        )
        made.engine.gaps = []
        fleet[worker] = made
    return fleet
