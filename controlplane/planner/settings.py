"""The planner's own settings."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from controlplane.planner.demand import Targets
from controlplane.planner.phase import Rules
from controlplane.runtime.live import LIVE
from controlplane.runtime.settings import Group
from proto.scaling import Pool
from proto.workers import Hardware, Role


class ClassTargets(BaseModel):
    """What one SLO class was promised."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ttft_ms: float = Field(gt=0)
    tpot_ms: float = Field(gt=0)


class PoolSettings(BaseModel):
    """Bounds and price of one pool; a pool that is not named has the planner's own bounds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    role: Role = Role.AGGREGATED
    hardware: str = "unknown"
    least: int = Field(1, ge=0, description="0: the first one is started for who was turned away")
    most: int = Field(8, ge=1)
    accelerators: int = Field(1, ge=0)
    price: float = Field(0.0, ge=0, description="of an hour of one worker; 0: by `prices`")

    @property
    def pool(self) -> Pool:
        """Which pool is meant."""
        return Pool(self.model, self.role, self.hardware)


class PlannerSettings(Group):
    """How many workers there are to be, by which promises and within which bounds."""

    advisory: bool = Field(
        False, json_schema_extra=LIVE, description="think and tell, and change nothing"
    )
    tick_s: float = Field(5.0, gt=0, description="seconds between decisions")
    forecast_s: float = Field(
        60.0, gt=0, description="seconds of a bin of the forecast, which is made anew after each"
    )
    ttft_ms: float = Field(
        500.0, gt=0, json_schema_extra=LIVE, description="time to first token that is promised"
    )
    tpot_ms: float = Field(
        50.0, gt=0, json_schema_extra=LIVE, description="time per output token that is promised"
    )
    classes: dict[str, ClassTargets] = Field({}, description="the same for single SLO classes")
    goal: float = Field(
        0.99,
        gt=0.5,
        lt=1,
        json_schema_extra=LIVE,
        description="share of the reachable requests that is to meet both",
    )
    sensitivity: float = Field(
        0.8,
        gt=0,
        le=1,
        json_schema_extra=LIVE,
        description="share of its targets that a smaller fleet must keep to",
    )
    sized_for: float = Field(
        0.9,
        gt=0,
        le=1,
        json_schema_extra=LIVE,
        description="share of its targets that a fleet is sized for when it grows",
    )
    kv_max: float = Field(
        0.9,
        gt=0,
        le=1,
        json_schema_extra=LIVE,
        description="share of the KV caches that sequences may take",
    )
    rate_window_s: float = Field(60.0, gt=0, description="seconds over which the rate is taken")
    sample_s: float = Field(
        180.0, gt=0, description="seconds of ended requests that stand for those to come"
    )
    grow_after_s: float = Field(
        20.0,
        ge=0,
        json_schema_extra=LIVE,
        description="seconds that more than was ever needed for long must be needed to be believed",
    )
    down_after_s: float = Field(
        90.0,
        ge=0,
        json_schema_extra=LIVE,
        description="seconds that a smaller fleet must have been enough",
    )
    start_s: float = Field(
        60.0, gt=0, description="seconds until a new worker is ready, until that is known"
    )
    ready_timeout_s: float = Field(
        1_800.0,
        gt=0,
        description="seconds after which a change that has not come about is given up",
    )
    retry_s: float = Field(
        120.0, ge=0, description="seconds without new demands after workers never became ready"
    )
    outgrown: float = Field(
        1.25,
        ge=1,
        description="a change that is under way is replaced by one that is larger by this factor,"
        " and by at least two workers, where the load has outgrown it",
    )
    reserve: float = Field(
        0.6,
        ge=0,
        le=1,
        description="share of the largest fleet that was needed that is kept in reserve",
    )
    reserve_half_s: float = Field(
        43_200.0, gt=0, description="seconds in which half of that is forgotten"
    )
    warm_up_s: float = Field(
        10.0, ge=0, description="of a worker's life, from which nothing is learned"
    )
    stale_s: float = Field(5.0, gt=0, description="a load report older than this is none")
    least: int = Field(
        1,
        ge=1,
        json_schema_extra=LIVE,
        description="workers of a pool, at least; a pool may go to none where `pools` names it",
    )
    most: int = Field(8, ge=1, json_schema_extra=LIVE, description="workers of a pool, at most")
    pools: tuple[PoolSettings, ...] = Field((), description="bounds and prices of single pools")
    prices: dict[str, float] = Field(
        {}, description="price of an accelerator's hour by hardware profile"
    )
    accelerators_max: int | None = Field(
        None,
        ge=1,
        json_schema_extra=LIVE,
        description="accelerators of all pools together, at most",
    )
    cost_per_hour_max: float | None = Field(
        None,
        gt=0,
        json_schema_extra=LIVE,
        description="price of an hour of all pools together, at most",
    )
    profile: Path | None = Field(
        None, description="capacity profile, as `tokenplane profile` writes it, to begin with"
    )
    lease_s: int = Field(
        10, ge=2, description="seconds after which another planner takes over from one that died"
    )
    state_s: float = Field(
        30.0, gt=0, description="seconds between writes of what the next leader goes on from"
    )

    @property
    def rules(self) -> Rules:
        """What decisions go by."""
        return Rules(
            goal=self.goal,
            sensitivity=self.sensitivity,
            sized_for=self.sized_for,
            grow_after_s=self.grow_after_s,
            kv_max=self.kv_max,
            down_after_s=self.down_after_s,
            ready_timeout_s=self.ready_timeout_s,
            retry_s=self.retry_s,
            outgrown=self.outgrown,
            reserve=self.reserve,
            reserve_half_s=self.reserve_half_s,
        )

    @property
    def targets(self) -> Targets:
        """Of a request whose class has none of its own."""
        return Targets(self.ttft_ms, self.tpot_ms)

    @property
    def class_targets(self) -> dict[str, Targets]:
        """By class."""
        return {name: Targets(c.ttft_ms, c.tpot_ms) for name, c in self.classes.items()}

    def bounds(self, pool: Pool, hardware: Hardware | None) -> PoolSettings:
        """Of a pool, named or not; `hardware` is that of one of its workers, if it has any."""
        named = next((each for each in self.pools if each.pool == pool), None)
        if named is None:
            named = PoolSettings(
                model=pool.model,
                role=pool.role,
                hardware=pool.hardware,
                least=self.least,
                most=max(self.least, self.most),
                accelerators=hardware.accelerators if hardware else 1,
            )
        return (
            named
            if named.price
            else named.model_copy(update={"price": self._price(named, hardware)})
        )

    def _price(self, pool: PoolSettings, hardware: Hardware | None) -> float:
        """What the price list says, else what the worker's agent says, else one each."""
        listed = self.prices.get(pool.hardware)
        if listed is None and hardware is not None and hardware.price_per_hour is not None:
            return hardware.price_per_hour
        return (1.0 if listed is None else listed) * max(1, pool.accelerators)
