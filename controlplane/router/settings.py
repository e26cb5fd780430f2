"""The router's own settings."""

from __future__ import annotations

from pydantic import Field, field_validator

from controlplane.router.busy import BusyLimits
from controlplane.router.plugins import PluginBroken, installed
from controlplane.router.policies.base import Knobs
from controlplane.runtime.live import LIVE
from controlplane.runtime.settings import Group
from proto.engine_choice import DEFAULT_RULES, EngineRule


class RouterSettings(Group):
    """How a router decides and how it keeps itself true."""

    policy: str = Field(
        "slo",
        json_schema_extra=LIVE,
        description="how a worker is chosen when a request does not say",
    )
    prefill_weight: float = Field(
        8.0,
        ge=0,
        json_schema_extra=LIVE,
        description="policy kv: what a block to prefill counts against a block being decoded;"
        " more favours time to first token and cache hits, less the pace of running answers",
    )
    slo_ttft_ms: float = Field(
        2_000.0,
        gt=0,
        json_schema_extra=LIVE,
        description="policy slo: time to first token that is promised",
    )
    slo_tpot_ms: float = Field(
        100.0,
        gt=0,
        json_schema_extra=LIVE,
        description="policy slo: time per output token that is promised",
    )
    slo_broken_ms: float = Field(
        30_000.0,
        ge=0,
        json_schema_extra=LIVE,
        description="policy slo: what a request that misses its targets weighs, in"
        " milliseconds of added latency",
    )
    session_affinity: float = Field(
        0.05,
        ge=0,
        le=1,
        json_schema_extra=LIVE,
        description="policies kv and slo: share of a prompt that the worker which has its session"
        " is let off when costs are compared; a hint, 0: none",
    )
    temperature: float = Field(
        0.0,
        ge=0,
        json_schema_extra=LIVE,
        description="0: the lowest cost wins; more: spread over nearly equal workers",
    )
    host_credit: float = Field(
        0.8,
        ge=0,
        le=1,
        description="share of the computation that a block in a worker's host memory saves; the"
        " rest is what it takes to fetch it",
    )
    disk_credit: float = Field(
        0.5, ge=0, le=1, description="the same for a block that a worker has only on disk"
    )
    coming_s: float = Field(
        10.0,
        ge=0,
        description="how long a worker is taken to hold, or to be computing, a prompt it was"
        " given, before its agent says so; 0: not at all",
    )
    assumed_s: float = Field(
        120.0, ge=0, description="the same for workers whose engines tell nothing of their caches"
    )
    assumed_tokens: int = Field(
        1 << 24, ge=1, description="tokens that may be guessed of so; the oldest guesses go first"
    )
    booking_silence_s: float = Field(
        60.0,
        gt=0,
        description="a booking without progress for so long is dropped; too short"
        " forgets slow prefills, too long keeps what a dead gateway booked",
    )
    report_stale_s: float = Field(
        5.0, gt=0, description="a load report older than this no longer counts"
    )
    inhibit_s: float = Field(
        5.0, ge=0, description="a worker that failed a request is avoided for so long"
    )
    decisions_bytes: int = Field(
        64 << 20,
        ge=0,
        description="memory for decisions that can still be explained: with 8 workers some"
        " 19,000 of them, with 512 some 900",
    )
    decisions_share: float = Field(
        0.01,
        ge=0,
        le=1,
        json_schema_extra=LIVE,
        description="share of decisions that is published, with all candidates",
    )
    busy_prefill_batches: float = Field(
        16.0,
        ge=0,
        json_schema_extra=LIVE,
        description="a worker with more prompt tokens queued than so many of its batches is busy:"
        " requests wait in the router instead; 0: no limit",
    )
    busy_decode_share: float = Field(
        0.0,
        ge=0,
        json_schema_extra=LIVE,
        description="a worker whose sequences would take more than this share of its KV cache is"
        " busy; shared prefixes count for each sequence, so allow for them; 0: no limit",
    )
    waiting_max: int = Field(
        512,
        ge=0,
        description="requests that may wait for a worker that is not busy; 0: none, they are"
        " refused at once",
    )
    engine_rules: tuple[EngineRule, ...] = Field(
        DEFAULT_RULES,
        description="which engine for which work, as JSON: a list of workload, prefer, exclude,"
        " need and reason (docs/router.md)",
    )
    fetch_tokens_min: int = Field(
        1024,
        ge=0,
        json_schema_extra=LIVE,
        description="a worker that lacks so many tokens of a prompt, which another one holds, may"
        " fetch them from there (docs/transfer.md); 0: never",
    )
    replicate_per_s: float = Field(
        2.0,
        ge=0,
        json_schema_extra=LIVE,
        description="a prefix that each of its holders is asked for so often a second is copied to"
        " another worker, where engines can do that; 0: never",
    )
    replicate_blocks_min: int = Field(
        32, ge=1, description="shorter prefixes are not copied, nor counted"
    )
    snapshot_timeout_s: float = Field(
        5.0, gt=0, description="deadline of one snapshot chunk; then again after a growing pause"
    )
    snapshot_grace_s: float = Field(
        0.05, ge=0, description="how long a gap may be mere disorder before a snapshot is asked for"
    )
    snapshots_at_once: int = Field(
        8,
        ge=1,
        description="snapshots fetched at the same time; more is a quicker start and a"
        " larger burst",
    )

    @property
    def busy_limits(self) -> BusyLimits:
        """What makes a worker busy."""
        return BusyLimits(self.busy_prefill_batches, self.busy_decode_share)

    @property
    def knobs(self) -> Knobs:
        """What policies may look at."""
        return Knobs(
            prefill_weight=self.prefill_weight,
            slo_ttft_ms=self.slo_ttft_ms,
            slo_tpot_ms=self.slo_tpot_ms,
            slo_broken_ms=self.slo_broken_ms,
            session_affinity=self.session_affinity,
        )

    @field_validator("policy")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            installed().policy(name)
        except PluginBroken as error:
            raise ValueError(str(error)) from error
        return name
