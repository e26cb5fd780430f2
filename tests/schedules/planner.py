"""The planner: replicas that take over from each other, load reports and records that get lost,
come twice or late, a registry that falls behind, and a scaler that is slow, fails or loses workers.

At any tick: no word is out of bounds, nothing is taken away while something is not known, changes
come one at a time, and fewer are wanted only by who has watched for long enough. Once it is quiet:
the fleet is what is wanted and does not grow any more.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from functools import cache

from controlplane.capacity import Capacities, Kept, WorkerClass
from controlplane.planner.core import PlannerCore
from controlplane.planner.forecast import Forecast
from controlplane.planner.phase import PhaseMemory
from controlplane.planner.settings import PlannerSettings
from controlplane.planner.state import restore, state_of
from controlplane.planner.transition import Transition
from proto.ids import RequestId, WorkerId
from proto.load import LoadReport
from proto.records import RequestRecord
from proto.scaling import Action, Desired, PhasePlan, PlanTick, Reason, Scaled
from proto.workers import Role, WorkerRecord, WorkerState
from tests.schedules.network import NONE, Faults, Network, demand
from tests.unit.controlplane.planner.scenes import CURVE, MODEL, report, steps, worker

FAULTS = Faults(lost=0.1, doubled=0.05, late=0.1, late_s=8.0)
TICK_S = 5.0
HARDWARE = "h"
SLOW = CURVE._replace(prefill_token_ms=0.4)
"""A worker of this curve is busy with a request a second."""
MOST = 6
RATES = (0.0, 0.3, 0.8, 1.5, 3.0)
QUIET_TICKS = 36
STILL_TICKS = 4
"""At the end, in which nobody is missing any more."""
ENOUGH = (
    *(Reason.TARGETS_MET, Reason.CONSOLIDATION_REFUSED, Reason.CAPPED_BY_FORECAST),
    *(Reason.CONSOLIDATION, Reason.IN_TRANSITION, Reason.LOAD_TOO_YOUNG),
    *(Reason.MINIMUM, Reason.BUDGET, Reason.TARGET_UNREACHABLE),
)
"""What may be said of a fleet that need not grow, or cannot."""


def play(rng: random.Random, trace: list[str] | None = None) -> None:
    """One history. Raises `Violation`."""
    world = _World(Network(rng, FAULTS, trace))
    for _ in range(rng.randrange(6, 18)):
        world.something_happens()
        world.tick()
    world.calm_down()
    ticks = [world.tick() for _ in range(QUIET_TICKS)]
    world.check_quiet(ticks[-STILL_TICKS:])


@dataclass
class _Store:
    """What outlives planners."""

    word: Desired | None = None
    revision: int = 0
    state: bytes | None = None


class _World:
    """A fleet, what is asked of it, and two planners."""

    def __init__(self, network: Network) -> None:
        rng = self._rng = network.rng
        self._network = network
        self._settings = _settings(rng)
        self._names = (WorkerId(f"w{number}") for number in itertools.count())
        self._fleet: dict[WorkerId, WorkerRecord] = {}
        self._rate = rng.choice(RATES)
        self._requests = itertools.count()
        self._store = _Store()
        self._scaler_fails = False
        self._behind = False
        self._lives = itertools.count()
        self._planners = [self._planner(), self._planner()]
        self._office = 0
        for _ in range(rng.randrange(1, MOST)):
            self._join(next(self._names), WorkerState.READY)
        self._planners[0].take_over(network.now_s)

    def something_happens(self) -> None:
        """To the load, the fleet, the registry or who is in office."""
        rng, roll = self._rng, self._rng.random()
        if roll < 0.25:
            self._rate = rng.choice(RATES)
            self._network.say("requests a second:", self._rate)
        elif roll < 0.4 and self._fleet:
            lost = rng.choice(list(self._fleet))
            self._leave(lost)
            self._network.after(rng.uniform(1, 20), f"back: {lost}", lambda: self._back(lost))
        elif roll < 0.5:
            self._scaler_fails = not self._scaler_fails
            self._network.say("the scaler fails:", self._scaler_fails)
        elif roll < 0.6:
            self._behind = not self._behind
            self._network.say("the registry is away:", self._behind)
            self._catch_up()
        elif roll < 0.75:
            self._next_term(dies=rng.random() < 0.5)
        elif roll < 0.85:
            ahead = Forecast(rng.choice(RATES), rng.choice((0.0, 2_000.0)), 0.0)
            self._network.say("forecast:", ahead)
            self._in_office.forecast(ahead)

    def tick(self) -> PlanTick:
        """Let the time of a tick pass, in which requests are served, and ask who is in office."""
        network, now_s = self._network, self._network.now_s
        for _ in range(self._whole(self._rate * TICK_S)):
            record = self._served(now_s)
            network.send("record", lambda each=record: self._hear(each))  # type: ignore[misc]
        running = self._whole(2 * self._rate)
        for rank, name in enumerate(list(self._fleet)):
            told = self._report(name, (running + rank) // len(self._fleet))
            network.send(f"report {name}", lambda each=told: self._hear_load(each))  # type: ignore[misc]
        network.run(TICK_S)
        planner = self._in_office
        tick = planner.tick(network.now_s, stale=self._behind)
        if planner.store_word(tick):
            network.after(self._rng.uniform(0, 2), "the scaler looks", self._scale)
        return tick

    def calm_down(self) -> None:
        """From now on nothing goes wrong any more."""
        self._network.faults = NONE
        self._scaler_fails = self._behind = False
        self._catch_up()
        self._in_office.forecast(None)
        self._network.say("quiet now, requests a second:", self._rate)
        self._network.after(1.0, "the scaler looks", self._scale)

    def check_quiet(self, last: list[PlanTick]) -> None:
        """Raises `Violation`."""
        for tick in last:
            for plan in tick.phases:
                grows = plan.action in (Action.UP, Action.WITHDRAW)
                demand(not grows, "quiet, and yet:", plan.action, plan.reason)
                demand(plan.reason in ENOUGH, "quiet, and yet not enough:", plan.reason)
                demand(not plan.drift, "quiet, and yet other workers than wanted:", plan.drift)
        self._network.run(TICK_S)
        word = self._store.word
        demand(word is None or word.replicas == len(self._fleet), "not what is wanted:", word)

    @property
    def _in_office(self) -> _Planner:
        return self._planners[self._office]

    def _planner(self) -> _Planner:
        core = PlannerCore(self._settings, f"p{next(self._lives)}")
        core.capacities.restore(_known())
        for record in self._fleet.values():
            core.worker(record, self._network.now_s)
        return _Planner(core, self._store, self._network)

    def _next_term(self, *, dies: bool) -> None:
        """The other planner takes over; the one before is gone, or finds out at its next word."""
        old, self._office = self._in_office, 1 - self._office
        now_s = self._network.now_s
        self._network.say("in office:", self._in_office.core.name)
        self._in_office.take_over(now_s)
        if dies or self._store.word is None:  # the first word has none before it to be guarded by
            self._planners[1 - self._office] = self._planner()
        else:
            self._network.run(0.1)
            late = old.tick(self._network.now_s, stale=self._behind)
            before = self._store.revision
            old.store_word(late)
            demand(self._store.revision == before, "who is not in office was obeyed:", late)

    def _hear(self, record: RequestRecord) -> None:
        self._in_office.core.hear_record(record, self._network.now_s)

    def _hear_load(self, told: LoadReport) -> None:
        for planner in self._planners:
            planner.core.hear_load(told, self._network.now_s)

    def _hear_scaled(self, scaled: Scaled) -> None:
        for planner in self._planners:
            planner.core.hear_scaled(scaled, self._network.now_s)

    def _served(self, now_s: float) -> RequestRecord:
        quiet = self._network.faults is NONE
        bad = not quiet and self._rng.random() < 0.05
        return RequestRecord(
            request=RequestId(f"r{next(self._requests)}"),
            model=MODEL,
            tenant="",
            slo_class="",
            arrived_s=now_s,
            outcome="completed",
            prompt_tokens=2_000 if quiet else self._rng.choice((1_500, 2_500)),
            output_tokens=50,
            cached_tokens=0,
            ttft_ms=90_000.0 if bad else 500.0,
            tpot_ms=30.0,
            worker=WorkerId("w"),
        )

    def _report(self, name: WorkerId, running: int) -> LoadReport:
        """So many run with it; with all together as many as there are, however many they are."""
        return report(name, running=running, steps=steps(800, 4, SLOW))

    def _whole(self, mean: float) -> int:
        """A whole number of this mean; the same ones again and again while it is quiet."""
        share = 0.5 if self._network.faults is NONE else self._rng.random()
        return int(mean) + (share < mean % 1)

    def _scale(self) -> None:
        """Make the last word true, as far as it goes."""
        word = self._store.word
        if word is None or self._scaler_fails:
            self._network.after(5.0, "the scaler looks", self._scale)
            return
        acknowledged = Scaled(
            model=word.model,
            role=word.role,
            hardware=word.hardware,
            decision=word.decision,
            replicas=word.replicas,
        )
        self._network.send("acknowledged", lambda: self._hear_scaled(acknowledged))
        missing = word.replicas - len(self._fleet)
        for _ in range(missing):
            self._join(next(self._names), WorkerState.STARTING)
        first = [name for name in word.retire if name in self._fleet]
        others = [name for name in self._fleet if name not in first]
        for name in (first + others)[: max(0, -missing)]:
            self._leave(name)

    def _join(self, name: WorkerId, state: WorkerState) -> None:
        record = worker(name, hardware=HARDWARE).model_copy(
            update={"state": state, "max_running": 64, "incarnation": next(self._lives)}
        )
        self._fleet[name] = record
        self._tell(name)
        if state is WorkerState.STARTING:
            start_s = self._rng.uniform(2, 15)
            self._network.after(start_s, f"ready: {name}", lambda: self._ready(name))

    def _ready(self, name: WorkerId) -> None:
        if record := self._fleet.get(name):
            self._fleet[name] = record.model_copy(update={"state": WorkerState.READY})
            self._tell(name)

    def _back(self, name: WorkerId) -> None:
        """What has crashed is started again by its scaler, if it is still wanted."""
        word = self._store.word
        if name not in self._fleet and (word is None or len(self._fleet) < word.replicas):
            self._join(name, WorkerState.STARTING)

    def _leave(self, name: WorkerId) -> None:
        self._network.say("gone:", name)
        del self._fleet[name]
        self._tell(name)

    def _tell(self, name: WorkerId) -> None:
        """What the registry shows planners, unless it is away."""
        if self._behind:
            return
        record = self._fleet.get(name)
        for planner in self._planners:
            if record is None:
                planner.core.worker_left(name)
            else:
                planner.core.worker(record, self._network.now_s)

    def _catch_up(self) -> None:
        if not self._behind:
            known = {each for p in self._planners for each in p.core.fleet.workers}
            for name in sorted(known | self._fleet.keys()):
                self._tell(name)


class _Planner:
    """One planner with its share of the store, as `PlannerService` has it; watches every tick."""

    def __init__(self, core: PlannerCore, store: _Store, network: Network) -> None:
        self.core = core
        self._store = store
        self._network = network
        self._revision = 0
        self._watches_s = 0.0
        self._forecast: Forecast | None = None

    def take_over(self, now_s: float) -> None:
        """Go on from where the one before was."""
        store = self._store
        if store.state is not None:
            restore(self.core, store.state, now_s)
        if store.word is not None:
            self.core.recall(store.word, now_s)
            store.revision += 1
        self._revision = store.revision
        self._watches_s = now_s

    def forecast(self, ahead: Forecast | None) -> None:
        """What is to be expected, from now on."""
        self.core.model(MODEL, self._network.now_s)
        self.core.take(MODEL, ahead)

    def tick(self, now_s: float, *, stale: bool) -> PlanTick:
        """Decide. Raises `Violation`."""
        before = self._memory()
        under_way, needs = before.transition, len(before.needs)
        silent = self._silent(now_s)
        tick = self.core.tick(now_s, view_stale=stale)
        for plan in tick.phases:
            self._network.say("plan:", plan.action, plan.reason, plan.workers, "->", plan.wanted)
            self._check(plan, now_s, under_way, stale=stale, silent=silent)
        demand(len(self._memory().needs) <= needs + 1, "remembers twice:", needs)
        return tick

    def store_word(self, tick: PlanTick) -> bool:
        """Whether there was one, and it was not refused."""
        store = self._store
        words = list(self.core.desired(tick))
        if words and store.revision != self._revision:
            self._network.say("refused:", self.core.name)
            return False
        for word in words:
            store.word, store.revision = word, store.revision + 1
        self._revision = store.revision
        store.state = state_of(self.core, self._network.now_s)
        return bool(words)

    def _check(
        self,
        plan: PhasePlan,
        now_s: float,
        under_way: Transition | None,
        *,
        stale: bool,
        silent: int,
    ) -> None:
        settings, action = self.core.settings, plan.action
        wanted, there = sum(plan.pools.values()), len(self.core.fleet.workers)
        changes = action in (Action.UP, Action.DOWN)
        bound = max(settings.most, there)
        if settings.accelerators_max is not None and changes:
            bound = min(bound, max(settings.accelerators_max, there))
        if action is not Action.HOLD:
            demand(settings.least <= wanted <= bound, "out of bounds:", wanted, plan)
        if action is Action.UP:
            demand(wanted > plan.workers, "up, to less than there are:", plan)
        if action is Action.DOWN:
            demand(wanted < plan.workers, "down, to more than there are:", plan)
            demand(not stale and not silent, "down, and something is not known:", plan)
            watched = now_s - self._watches_s >= settings.down_after_s - TICK_S - 1e-6
            demand(watched, "down, by who has only just come:", plan)
        if changes and plan.reason is not Reason.MINIMUM:
            demand(not stale, "changed by a view that is old:", plan)
        if changes and under_way is not None and under_way.action is Action.UP:
            came = plan.workers >= sum(under_way.wanted.values())
            more = wanted > sum(under_way.wanted.values())
            demand(came or more, "two changes at a time:", plan, under_way)
        now = self._memory().transition
        demand(changes == (now is not None and now is not under_way), "no change of:", plan)

    def _memory(self) -> PhaseMemory:
        model = self.core.model(MODEL, self._network.now_s)
        return model.phases.setdefault(Role.AGGREGATED, PhaseMemory())

    def _silent(self, now_s: float) -> int:
        workers = self.core.fleet.workers.values()
        return sum(each.stale(now_s, self.core.settings.stale_s) for each in workers)


def _settings(rng: random.Random) -> PlannerSettings:
    return PlannerSettings(
        tick_s=TICK_S,
        ttft_ms=5_000.0,
        tpot_ms=100.0,
        rate_window_s=20.0,
        sample_s=60.0,
        down_after_s=20.0,
        start_s=10.0,
        ready_timeout_s=rng.choice((12.0, 40.0)),
        retry_s=15.0,
        stale_s=2 * TICK_S,
        warm_up_s=0.0,
        least=rng.randrange(1, 3),
        most=MOST,
        accelerators_max=rng.choice((None, 4)),
    )


@cache
def _known() -> dict[WorkerClass, Kept]:
    """What has been learned of the engines before."""
    capacities = Capacities()
    record = worker("w", hardware=HARDWARE)
    for number in range(32):
        capacities.observe(record, steps(100 * number, number % 9, SLOW))
    return dict(capacities.kept())
