"""What a page is told, as JSON over server-sent events.

A page gets a `Hello` when it connects, a `Fleet` then and whenever a worker comes, goes or changes,
and a `Frame` at every beat. Columns of a frame are in the order of the workers of the last
`Fleet`. Nothing in here tells what was asked or answered: no prompt, no token, no key.
"""

from __future__ import annotations

import msgspec

from proto.decisions import Decision
from proto.ids import RequestId, WorkerId
from proto.scaling import PlanTick
from proto.transfers import TicketId

Point = dict[str, float | None]
"""One beat of every curve, by its name; None: nothing happened that could be measured."""


class Worker(msgspec.Struct, frozen=True):
    """What changes seldom about a worker."""

    worker: WorkerId
    model: str
    role: str
    state: str
    engine: str
    engine_version: str
    url: str
    hardware: str
    accelerators: int
    topology: dict[str, str]
    """Labels from wide to narrow."""
    block_tokens: int
    total_blocks: int
    max_running: int
    taints: tuple[str, ...]
    adapters: tuple[str, ...]


class Fleet(msgspec.Struct, frozen=True):
    """Who is there, by pool and place."""

    workers: tuple[Worker, ...]
    stale: bool
    """etcd is away: this is the last view."""


class Columns(msgspec.Struct, frozen=True):
    """What changes all the time about workers: one entry each."""

    running: tuple[int, ...]
    waiting: tuple[int, ...]
    queued_tokens: tuple[int, ...]
    kv_used: tuple[float, ...]
    """Share of the blocks that sequences are using."""
    kv_live: tuple[float, ...]
    """Share of the blocks that hold something which can be found again."""
    hit_rate: tuple[float | None, ...]
    """Share of prompt tokens found in the cache lately."""
    preemptions: tuple[int, ...]
    silent_s: tuple[float, ...]
    """Since the last load report; -1: none yet."""


class Flight(msgspec.Struct, frozen=True):
    """A request that is being served."""

    request: RequestId
    worker: WorkerId
    attempt: int
    phase: str
    """`prefill` until its first token, then `decode`."""
    age_s: float
    ttft_s: float | None
    output_tokens: int


class Ended(msgspec.Struct, frozen=True):
    """A request that has ended, however it did."""

    request: RequestId
    model: str
    outcome: str
    worker: WorkerId | None
    policy: str
    ended_s: float
    prompt_tokens: int
    cached_tokens: int | None
    predicted_cached_tokens: int
    output_tokens: int
    ttft_ms: float | None
    tpot_ms: float | None
    duration_ms: float
    attempts: int
    trace_id: str


class Transfer(msgspec.Struct, frozen=True):
    """A movement of KV blocks from one engine to another, as far as it has come."""

    ticket: TicketId
    request: RequestId
    prefill: WorkerId
    decode: WorkerId
    state: str
    reached: str
    """The last state that was not a failure."""
    began_s: float
    changed_s: float
    kv_bytes: int
    link: str
    cause: str


class Frame(msgspec.Struct, frozen=True):
    """One beat."""

    time_s: float
    """Seconds since the epoch."""
    point: Point
    columns: Columns
    flights: tuple[Flight, ...]
    """Those that have been under way longest; `point["in_flight"]` counts all."""
    ended: tuple[Ended, ...]
    """Since the frame before, the latest ones if there were many."""
    decisions: tuple[Decision, ...]
    """Since the frame before; a sample of all that were made."""
    transfers: tuple[Transfer, ...]
    """Those that have changed since the frame before."""
    plans: tuple[PlanTick, ...]
    """Since the frame before."""
    connected: bool
    """To the bus; what is shown may be old otherwise."""


class Hello(msgspec.Struct, frozen=True):
    """Everything that a page must know to begin."""

    cluster: str
    version: str
    every_s: float
    window_s: float
    ttft_ms: float
    tpot_ms: float
    curves: dict[str, list[float | None]]
    """The points of the last minutes, oldest first; `time_s` among them."""
    ended: tuple[Ended, ...]
    decisions: tuple[Decision, ...]
    transfers: tuple[Transfer, ...]
    plans: tuple[PlanTick, ...]
    traces: bool = False
    """The console keeps spans and can be asked for a trace."""
