"""The coordinator's own settings."""

from __future__ import annotations

from pydantic import Field

from controlplane.runtime.live import LIVE
from controlplane.runtime.settings import Group
from controlplane.transfer.cost import Bounds, Choice
from controlplane.transfer.movement import Worth
from controlplane.transfer.ticket import Patience


class TransferSettings(Group):
    """When KV blocks are moved, where to, and how long anybody waits for it."""

    choice: Choice = Field(
        Choice.COST,
        json_schema_extra=LIVE,
        description="remote or local prefill: `cost` compares predicted seconds, `bounds` looks at"
        " the uncached prompt alone, `remote` and `local` do not ask",
    )
    local_tokens: int = Field(
        2048,
        ge=0,
        json_schema_extra=LIVE,
        description="uncached tokens below which a prompt may be prefilled locally",
    )
    local_share: float = Field(
        0.7,
        ge=0,
        le=1,
        json_schema_extra=LIVE,
        description="and below which share of the prompt; both must hold",
    )
    decode_pressure: float = Field(
        0.9,
        gt=0,
        le=1,
        json_schema_extra=LIVE,
        description="a decode worker with more of its KV blocks in use gets no long prefill",
    )
    topology_required: tuple[str, ...] = Field(
        (),
        json_schema_extra=LIVE,
        description="labels in which both workers must agree, such as nvlink_domain",
    )
    transfers_max: int = Field(
        4,
        ge=1,
        json_schema_extra=LIVE,
        description="transfers under way at once, at either end of a worker",
    )
    link_backlog_s: float = Field(
        0.5,
        gt=0,
        json_schema_extra=LIVE,
        description="a transfer waits while what is on its link takes longer than this",
    )
    staged_bytes_max: int = Field(
        64 << 30,
        ge=1,
        json_schema_extra=LIVE,
        description="bytes that a prefill worker may hold for others to collect; above it, others"
        " prefill",
    )
    place_wait_s: float = Field(
        1.0,
        ge=0,
        json_schema_extra=LIVE,
        description="how long a request waits for a place on a decode worker",
    )
    reserved_s: float = Field(5.0, gt=0, description="a place is kept for so long before prefill")
    prefill_s: float = Field(120.0, gt=0, description="a prefill may take so long, queue included")
    transfer_s: float = Field(60.0, gt=0, description="a transfer may take so long, queue included")
    cancel_s: float = Field(
        5.0,
        gt=0,
        description="what a transfer has left to end by itself once its request is cancelled; then"
        " its blocks are in quarantine until the engine's lease is over",
    )
    lease_margin_s: float = Field(
        3.0, ge=0, description="a transfer must begin so long before its blocks' lease is over"
    )
    move_margin: float = Field(
        1.25,
        ge=1,
        description="a cached prefix is moved where computing it would take so many times as long",
    )
    move_overhead_s: float = Field(
        0.01, ge=0, description="what any such movement takes, beside that of its bytes"
    )
    move_s: float = Field(
        30.0, gt=0, description="a movement that no request waits for may take so long"
    )
    sweep_s: float = Field(0.25, gt=0, description="how often deadlines are looked at")
    duty_s: float = Field(2.0, gt=0, description="deadline of one command to an agent")
    duty_retry_s: float = Field(
        3.0, gt=0, description="after which another replica sees to what one left undone"
    )
    keep_s: float = Field(
        10.0, ge=0, description="tickets that are over are remembered for so long"
    )

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.local_tokens, self.local_share, self.decode_pressure)

    @property
    def patience(self) -> Patience:
        return Patience(
            reserved_s=self.reserved_s,
            prefill_s=self.prefill_s,
            transfer_s=self.transfer_s,
            cancel_s=self.cancel_s,
            lease_margin_s=self.lease_margin_s,
        )

    @property
    def worth(self) -> Worth:
        return Worth(margin=self.move_margin, overhead_s=self.move_overhead_s)
