"""The planner's mind: what it hears, and one decision a tick for every phase. Pure.

The same object plans a live cluster and replays a trace in virtual time: time comes in as an
argument, in seconds since the epoch or since a trace's beginning. Only the forecast takes longer
than a moment, so that its owner may compute it elsewhere: `due` says what is to be forecast,
`take` brings the outcome.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from controlplane.capacity import Capacities
from controlplane.planner.bounds import Budget, Wanted, constrain
from controlplane.planner.correction import Correction
from controlplane.planner.demand import Demand
from controlplane.planner.estimate import Engine, Load
from controlplane.planner.fleet import Fleet, Stocks, Sums, add_up, least_to_lose, states
from controlplane.planner.forecast import Bin, Forecast, History
from controlplane.planner.phase import PhaseMemory, PhaseView, PoolView, Proposal
from controlplane.planner.plan import propose
from controlplane.planner.settings import PlannerSettings
from controlplane.planner.transition import Transition
from proto.ids import WorkerId
from proto.load import LoadReport
from proto.records import RequestRecord
from proto.scaling import Action, Desired, PhasePlan, PlanTick, Pool, Scaled
from proto.workers import Role, WorkerRecord, WorkerState

GROWTH_WINDOW_S = 45.0
JUDGED_S = 120.0
"""Over which outcomes are compared with the promises."""
STALE_SHARE = 0.5
"""Of a phase's workers, that may be silent before nothing at all is decided."""
LENGTH_FACTOR = 1.5
"""By how much a forecast may stretch or shrink the sampled lengths."""


@dataclass
class Model:
    """What is known of one model."""

    demand: Demand
    history: History
    correction: Correction
    bin_start_s: float
    predicted: Forecast | None = None
    phases: dict[Role, PhaseMemory] = field(default_factory=dict)
    stocks: defaultdict[Role, Stocks] = field(default_factory=lambda: defaultdict(Stocks))
    tokens: tuple[float, float, int] = (0.0, 0.0, 0)
    """Of the bin that is being filled: prompt tokens, output tokens, ended requests."""
    rate_sum: tuple[float, int] = (0.0, 0)


class PlannerCore:
    """Tell it what happens, and ask it at each tick."""

    def __init__(self, settings: PlannerSettings, name: str) -> None:
        self.settings = settings
        self.name = name
        self.capacities = Capacities()
        self.fleet = Fleet(self.capacities, settings.warm_up_s)
        self.models: dict[str, Model] = {}
        self.decisions = 0

    def adopt(self, settings: PlannerSettings) -> None:
        """Decide by other promises and bounds from now on; what is no live setting stays."""
        self.settings = settings

    def worker(self, record: WorkerRecord, now_s: float) -> None:
        """A worker is there, or says something else of itself."""
        self.fleet.put(record, now_s)

    def worker_left(self, worker: WorkerId) -> None:
        self.fleet.remove(worker)

    def hear_load(self, report: LoadReport, now_s: float) -> None:
        self.fleet.hear(report, now_s)

    def hear_record(self, record: RequestRecord, now_s: float) -> None:
        name = record.base_model or record.model
        if not self._is_served(name):  # clients may ask for anything
            return
        model = self.model(name, now_s)
        model.demand.hear(record, now_s)
        prompt, output, count = model.tokens
        model.tokens = prompt + record.prompt_tokens, output + record.output_tokens, count + 1

    def recall(self, word: Desired, now_s: float) -> None:
        """What was wanted last, by whoever was in office."""
        memory = self.model(word.model, now_s).phases.setdefault(word.role, PhaseMemory())
        memory.wanted[word.pool.name] = word.replicas
        memory.decided = True

    def hear_scaled(self, scaled: Scaled, now_s: float) -> None:
        """A scaler says what it has made of a word; one in trouble has not begun."""
        memory = self.model(scaled.model, now_s).phases.get(scaled.role)
        if memory is None or memory.transition is None or scaled.trouble:
            return
        if memory.transition.decision == scaled.decision:
            memory.transition = memory.transition.acknowledge(scaled.pool.name)

    def due(self, now_s: float) -> Mapping[str, tuple[History, float]]:
        """Models whose bin is over: their history, and how far ahead to look."""
        over = {}
        for name, model in self.models.items():
            if now_s - model.bin_start_s < self.settings.forecast_s - 1e-6:
                continue
            prompt, output, count = model.tokens
            rates, ticks = model.rate_sum
            model.history.add(
                Bin(
                    model.bin_start_s,
                    rates / ticks if ticks else 0.0,
                    prompt / count if count else 0.0,
                    output / count if count else 0.0,
                )
            )
            model.tokens, model.rate_sum, model.bin_start_s = (0.0, 0.0, 0), (0.0, 0), now_s
            over[name] = (model.history, self._horizon_s(model))
        return over

    def take(self, model: str, predicted: Forecast | None) -> None:
        """What is forecast of a model."""
        self.models[model].predicted = predicted

    def tick(self, now_s: float, *, view_stale: bool = False) -> PlanTick:
        """Think about every phase of every model, and say what is to be done."""
        wanted, plans = [], []
        for phase in self._phases(now_s, view_stale=view_stale):
            model = self.models[phase.model]
            memory = model.phases.setdefault(phase.role, PhaseMemory())
            proposal = propose(phase, memory, self.settings.rules, now_s)
            wanted.append(Wanted(phase, memory, proposal))
        budget = Budget(self.settings.accelerators_max, self.settings.cost_per_hour_max)
        granted = constrain(wanted, budget)
        cost = 0.0
        for each, proposal in zip(wanted, granted, strict=True):
            plans.append(self._issue(each, proposal, now_s))
            cost += sum(
                pool.price * each.memory.wanted.get(pool.name, 0) for pool in each.view.pools
            )
        settings = self.settings
        return PlanTick(
            planner=self.name,
            time_s=now_s,
            advisory=settings.advisory,
            phases=tuple(plans),
            cost_per_hour=cost,
            ttft_target_ms=settings.ttft_ms,
            tpot_target_ms=settings.tpot_ms,
            goal=settings.goal,
        )

    def desired(self, tick: PlanTick) -> Iterable[Desired]:
        """The words that this tick changes: one for each pool of a phase that does something."""
        for plan in tick.phases:
            if plan.action is Action.HOLD:
                continue
            for pool in self._pools(plan.model, plan.role):
                yield Desired(
                    model=pool.model,
                    role=pool.role,
                    hardware=pool.hardware,
                    replicas=plan.pools.get(pool.name, 0),
                    decision=plan.decision,
                    reason=plan.reason,
                    decided_s=tick.time_s,
                    planner=self.name,
                    retire=least_to_lose(self.fleet.of(pool)),
                )

    def _issue(self, each: Wanted, proposal: Proposal, now_s: float) -> PhasePlan:
        view, memory = each.view, each.memory
        decision = ""
        if proposal.action is not Action.HOLD:
            self.decisions += 1
            decision = f"{self.name}-{self.decisions}"
            if not self.settings.advisory:
                if proposal.action in (Action.UP, Action.DOWN):
                    memory.transition = Transition(
                        decision, proposal.action, now_s, view.ready, dict(proposal.wanted)
                    )
                memory.wanted, memory.decided = dict(proposal.wanted), True
        return self._told(view, memory, proposal, decision)

    def _told(
        self, view: PhaseView, memory: PhaseMemory, proposal: Proposal, decision: str
    ) -> PhasePlan:
        model, now = self.models[view.model], proposal.now
        load, predicted = view.load, model.predicted
        sums = self._sums[view.model, view.role]
        drift = {}
        if memory.transition is None:
            drift = {
                pool.name: pool.ready - memory.wanted.get(pool.name, pool.ready)
                for pool in view.pools
                if pool.ready != memory.wanted.get(pool.name, pool.ready)
            }
        return PhasePlan(
            model=view.model,
            role=view.role,
            action=proposal.action,
            reason=proposal.reason,
            workers=view.workers,
            wanted=sum(proposal.wanted.values()),
            needed=proposal.needed,
            floor=proposal.floor,
            rate=load.rate / model.correction.factor,
            predicted_rate=predicted.rate if predicted else 0.0,
            prompt_tokens=_mean(load.prompt_tokens),
            output_tokens=_mean(load.after_first) + 1,
            hit_rate=_hit_rate(load),
            accept_length=self.fleet.accept_length(view.model),
            queued_prefill_tokens=sums.queued_tokens,
            running=sums.running,
            waiting=sums.waiting,
            ttft_ms=now.ttft_ms,
            tpot_ms=now.tpot_ms,
            attainment=now.attainment,
            decision=decision,
            pools=dict(proposal.wanted),
            drift=drift,
        )

    def _phases(self, now_s: float, *, view_stale: bool) -> list[PhaseView]:
        self._sums: dict[tuple[str, Role], Sums] = {}
        roles: dict[tuple[str, Role], list[Pool]] = {}
        named = [each.pool for each in self.settings.pools]
        for pool in sorted({*self.fleet.pools(), *named}):
            roles.setdefault((pool.model, pool.role), []).append(pool)
        for name, role in roles:
            workers = [w for pool in roles[name, role] for w in self.fleet.of(pool)]
            sums = add_up(workers, now_s, self.settings.stale_s)
            self._sums[name, role] = sums
            self.model(name, now_s).stocks[role].note(sums, now_s)
        for name in {name for name, _ in roles}:
            self._observe(name, now_s)
        return [
            self._phase(name, role, pools, now_s, view_stale=view_stale)
            for (name, role), pools in sorted(roles.items())
        ]

    def _observe(self, name: str, now_s: float) -> None:
        """The moment's flow of a model's requests."""
        model = self.model(name, now_s)
        sums = [s for (of, _), s in self._sums.items() if of == name]
        model.demand.flow(
            sum(s.running + s.waiting + s.leaving for s in sums),
            self.fleet.computed[name] + sum(s.queued_tokens for s in sums),
            now_s,
        )
        total, ticks = model.rate_sum
        tick_rate = model.demand.rate(self.settings.tick_s, now_s)
        model.rate_sum = total + tick_rate, ticks + 1
        changing = any(memory.transition is not None for memory in model.phases.values())
        fared = model.demand.fared(
            self.settings.class_targets,
            self.settings.targets,
            self.settings.goal,
            max(now_s - JUDGED_S, model.correction.since_s),
            self._fastest(name),
        )
        model.correction.judge(fared.values(), self.settings.goal, now_s, changing=changing)

    def _phase(
        self, name: str, role: Role, pools: list[Pool], now_s: float, *, view_stale: bool
    ) -> PhaseView:
        model, sums = self.model(name, now_s), self._sums[name, role]
        views = tuple(self._pool(pool) for pool in pools)
        workers = sum(len(self.fleet.of(pool)) for pool in pools)
        load, expected, feared = self._loads(model, sums, role, now_s)
        return PhaseView(
            model=name,
            role=role,
            pools=views,
            load=load,
            expected=expected,
            feared=feared,
            refused_rate=model.demand.refused_rate(self.settings.rate_window_s, now_s),
            fresh=not view_stale and sums.silent <= workers * STALE_SHARE,
            complete=not view_stale and not sums.silent,
        )

    def _pool(self, pool: Pool) -> PoolView:
        workers = self.fleet.of(pool)
        count = states(workers)
        bounds = self.settings.bounds(pool, workers[0].record.hardware if workers else None)
        return PoolView(
            name=pool.name,
            ready=count[WorkerState.READY],
            starting=count[WorkerState.STARTING],
            draining=count[WorkerState.DRAINING],
            engine=self.fleet.engine(pool),
            least=bounds.least,
            most=bounds.most,
            price=bounds.price,
            accelerators=bounds.accelerators,
        )

    def _loads(
        self, model: Model, sums: Sums, role: Role, now_s: float
    ) -> tuple[Load, Load, Load | None]:
        """What is asked for now, what is forecast, and what may come without a warning."""
        settings, demand = self.settings, model.demand
        start_s = self._start_s(model)
        rate = demand.coming_rate(settings.rate_window_s, start_s, now_s)
        factor = model.correction.factor
        base = demand.load(
            rate,
            settings.class_targets,
            settings.targets,
            now_s,
            window_s=settings.rate_window_s / 2,
        )
        lately = model.stocks[role].lately(now_s)
        running = lately.running + demand.open_growth(GROWTH_WINDOW_S, now_s) * start_s
        now = replace(
            base,
            rate=rate * factor,
            queued_tokens=lately.queued_tokens,
            running=0.0 if role is Role.PREFILL or not sums.running else running,
            context_tokens=sums.kv_tokens / sums.running if sums.running else 0.0,
        )
        window_s = settings.rate_window_s
        straying = demand.feared_rate(window_s, start_s + window_s / 2, now_s)
        feared = base.at_rate(straying * factor) if straying > rate else None
        predicted = model.predicted
        if predicted is None:
            return now, base.at_rate(0.0), feared
        expected = replace(
            base,
            rate=predicted.rate * factor,
            prompt_tokens=_stretched(base.prompt_tokens, predicted.prompt_tokens, 0),
            new_tokens=_stretched(base.new_tokens, predicted.prompt_tokens, 0, base.prompt_tokens),
            after_first=_stretched(base.after_first, predicted.output_tokens, 1),
        )
        return now, expected, feared

    def _fastest(self, name: str) -> Engine | None:
        """The engine that computes prompts fastest, of those a model has."""
        pools = [pool for pool in self.fleet.pools() if pool.model == name]
        engines = [e for e in map(self.fleet.engine, pools) if e is not None]
        return min(engines, key=lambda e: e.curve.prefill_token_ms, default=None)

    def _start_s(self, model: Model) -> float:
        """How long a new worker takes."""
        known = [memory.start_s for memory in model.phases.values() if memory.start_s]
        return max(known) if known else self.settings.start_s

    def _horizon_s(self, model: Model) -> float:
        """A forecast is good until the next one's workers are there."""
        return self._start_s(model) + self.settings.forecast_s

    def _pools(self, model: str, role: Role) -> list[Pool]:
        named = [each.pool for each in self.settings.pools]
        pools = {*self.fleet.pools(), *named}
        return sorted(pool for pool in pools if (pool.model, pool.role) == (model, role))

    def _is_served(self, name: str) -> bool:
        """By somebody, or by a pool that may have workers."""
        return (
            name in self.models
            or name in self.fleet.models()
            or any(pool.model == name for pool in self.settings.pools)
        )

    def model(self, name: str, now_s: float) -> Model:
        """What is known of a model; known from now on."""
        known = self.models.get(name)
        if known is None:
            settings = self.settings
            known = Model(
                Demand(settings.sample_s), History(settings.forecast_s), Correction(now_s), now_s
            )
            self.models[name] = known
        return known


def _hit_rate(load: Load) -> float:
    """Share of the prompts' tokens that need not be computed; 0 until something was asked."""
    asked = _mean(load.prompt_tokens)
    return 1 - _mean(load.new_tokens) / asked if asked else 0.0


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _stretched(
    values: np.ndarray, mean: float, off: int, by: np.ndarray | None = None
) -> np.ndarray:
    """The sample with another mean, told of `by` where that is another column."""
    usual = _mean(values if by is None else by) + off
    if not mean or usual <= 0:
        return values
    return values * float(np.clip(mean / usual, 1 / LENGTH_FACTOR, LENGTH_FACTOR))
