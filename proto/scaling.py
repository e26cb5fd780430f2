"""How many workers there should be, who says so and why; and what came of it.

A pool is all workers that are alike to a planner: one model, one role, one kind of hardware. What
is wanted of it (`Desired`, the planner's word) and what its scaler has made of that (`Scaled`) are
two keys in the store; who is really there says the registry. `PlanTick` is the planner's diary.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from proto.ids import WorkerId
from proto.numbers import Count, Span
from proto.workers import Record, Role, Text, WorkerRecord


class Pool(NamedTuple):
    """Workers that can stand in for each other, and cost the same."""

    model: str
    role: Role
    hardware: str

    @property
    def name(self) -> str:
        """One segment of a key; different pools have different ones."""
        return ".".join(quote(part, safe="").replace(".", "%2E") for part in self)


def pool_of(record: WorkerRecord) -> Pool:
    """The pool that a worker belongs to."""
    return Pool(record.model, record.role, record.hardware.profile)


class Action(StrEnum):
    """What a tick does about a phase."""

    UP = "up"
    DOWN = "down"
    HOLD = "hold"
    WITHDRAW = "withdraw"


class Reason(StrEnum):
    """Why; exactly one a tick and phase."""

    TARGETS_MET = "targets_met"
    FORECAST_FLOOR = "forecast_floor"
    """More will be needed by the time that a new worker would be ready."""
    TTFT_AT_RISK = "ttft_at_risk"
    TPOT_AT_RISK = "tpot_at_risk"
    KV_FULL = "kv_full"
    """The sequences of the load would not fit the caches."""
    CONSOLIDATION = "consolidation"
    """Fewer hold the targets, each taking its share of the others' load."""
    CONSOLIDATION_REFUSED = "consolidation_refused"
    """All targets are met, and one worker less would not meet them."""
    CAPPED_BY_FORECAST = "capped_by_forecast"
    """Fewer would do now, and not for what is forecast."""
    LOAD_TOO_YOUNG = "load_too_young"
    """Fewer would do, and have not done so for long enough."""
    IN_TRANSITION = "in_transition"
    DRIFT = "drift"
    """What is wanted would do, and is not what is there: its scaler is behind."""
    NEVER_READY = "never_ready"
    """New workers did not become ready in time; the demand for them is withdrawn."""
    NOT_NEEDED_ANY_MORE = "not_needed_any_more"
    NEEDED_AFTER_ALL = "needed_after_all"
    MINIMUM = "minimum"
    BUDGET = "budget"
    STALE = "stale"
    """Load reports or the registry's view are missing or old."""
    NO_CAPACITY_MODEL = "no_capacity_model"
    NO_WORKERS = "no_workers"
    """None is ready. One is begun with where requests are turned away and none is wanted yet."""
    NO_DEMAND = "no_demand"
    """There are no workers, and nobody misses them."""
    TARGET_UNREACHABLE = "target_unreachable"
    """Not even an idle worker meets the targets: more of them do not help."""


class Desired(Record):
    """The planner's word on one pool."""

    model: Text
    role: Role
    hardware: Text
    replicas: Count
    decision: str
    """Of which this is the outcome."""
    reason: Reason
    decided_s: Span
    """Seconds since the epoch."""
    planner: str
    retire: tuple[WorkerId, ...] = ()
    """Whom to take first when there are too many: those with the least to lose."""
    traceparent: str = ""
    """W3C context of the tick that decided it: what is done about it is in the same trace."""

    @property
    def pool(self) -> Pool:
        """Which pool is meant."""
        return Pool(self.model, self.role, self.hardware)


class Scaled(Record):
    """What a scaler has made of the last word it heard."""

    model: Text
    role: Role
    hardware: Text
    decision: str
    replicas: Count
    """That run, those that are starting among them."""
    draining: Count = 0
    scaler: str = ""
    trouble: str = ""
    """Why it cannot do what is wanted, if it cannot."""

    @property
    def pool(self) -> Pool:
        """Which pool is meant."""
        return Pool(self.model, self.role, self.hardware)


class PhasePlan(msgspec.Struct, frozen=True):
    """One tick's word on one phase of one model."""

    model: str
    role: Role
    action: Action
    reason: Reason
    workers: int
    """That are ready."""
    wanted: int
    """After this tick."""
    needed: float
    """What the load of now takes, in workers of the phase's cheapest pool."""
    floor: int
    """What is forecast to be needed."""
    rate: float
    """Requests a second that arrive now, those turned away among them."""
    predicted_rate: float
    prompt_tokens: float
    """Of a request, on average."""
    output_tokens: float
    hit_rate: float
    accept_length: float
    queued_prefill_tokens: int
    running: int
    waiting: int
    ttft_ms: float
    """Estimated for the tail that counts, with the workers there are."""
    tpot_ms: float
    attainment: float
    """Share of the reachable requests estimated to meet their targets."""
    decision: str = ""
    pools: dict[str, int] = {}
    """What is wanted of each pool, by name."""
    drift: dict[str, int] = {}
    """Pools in which other than the wanted number of workers is ready, and by how many."""


class PlanTick(msgspec.Struct, frozen=True):
    """Everything a planner thought and did at one moment."""

    planner: str
    time_s: float
    advisory: bool
    phases: tuple[PhasePlan, ...]
    cost_per_hour: float = 0.0
    """Of what is wanted, by the price list."""
    trace_id: str = ""
    ttft_target_ms: float = 0.0
    """What was promised at that moment, to requests whose class has no promise of its own."""
    tpot_target_ms: float = 0.0
    goal: float = 0.0
    """The share of the reachable requests that was to meet both."""
