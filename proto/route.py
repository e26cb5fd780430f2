"""Question and answer between a gateway and a router."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from proto.constraints import UNCONSTRAINED, Constraints
from proto.ids import RequestId, WorkerId
from proto.numbers import Count, Span


class RouteLeg(StrEnum):
    """Which part of a request a worker is wanted for."""

    WHOLE = ""
    PREFILL = "prefill"
    """To compute the prompt for another worker: what it decodes does not matter (DG8)."""
    DECODE = "decode"
    """To decode what another one may have prefilled: what it has cached, or has still to prefill,
    does not matter."""


class RouteRequest(msgspec.Struct, frozen=True):
    """Where should this prompt go? Carries names of blocks, never tokens or text.

    `blocks` maps a block size in tokens to the packed names of the prompt's full blocks of that
    size, one entry for every block size among the model's workers. `deadline_s` is how long from
    now the caller is willing to wait for a worker that is not busy.
    """

    request: RequestId
    model: str
    prompt_tokens: Count
    blocks: dict[int, bytes]
    expected_output_tokens: Count = 256
    tenant: str = ""
    session: str = ""
    slo_class: str = ""
    priority: int = 0
    exclude: tuple[WorkerId, ...] = ()
    """Workers that have just failed this request."""
    deadline_s: Span = 5.0
    answer_s: Span = 0.0
    """The caller wants some answer within so long, be it `Queued`, to know that the router lives;
    0: one answer by the deadline will do."""
    waited_s: Span = 0.0
    """How long it has waited with earlier questions."""
    policy: str = ""
    """Overrides the router's policy for this request; for comparisons."""
    explain: bool = False
    attempt: Count = 1
    """Which attempt to serve the request this is; its progress will bear the same number."""
    constraints: Constraints = UNCONSTRAINED
    leg: RouteLeg = RouteLeg.WHOLE
    workload: tuple[str, ...] = ()
    """What kinds of work it is, such as `structured` or `portable`: routers have rules for some."""


class Term(msgspec.Struct, frozen=True):
    """One candidate as the policy saw it; what is not said by the policy stays zero."""

    worker: WorkerId
    cost: float
    overlap_blocks: int = 0
    """Leading blocks of the prompt that it holds in any tier, or is thought to hold."""
    queued_prefill_tokens: int = 0
    decode_blocks: int = 0
    host_blocks: int = 0
    """Of the overlap, in host memory and not in the GPU."""
    disk_blocks: int = 0
    """Of the overlap, only on disk."""
    requests: int = 0
    """In flight on the worker, queued ones included."""
    values: dict[str, float] = {}
    """What else the policy makes of it, such as `ttft_ms`: predicted time to first token."""
    excluded: str = ""
    """The filter that took the candidate out, empty if it took part."""


class Elsewhere(msgspec.Struct, frozen=True):
    """Another worker holds more of the prompt: it might be fetched from there."""

    worker: WorkerId
    tail: int
    """The name of the last block of what it holds."""
    blocks: Count
    new_blocks: Count
    """Of these, what the chosen worker lacks."""


class Chosen(msgspec.Struct, frozen=True, tag="chosen"):
    """Go there; the router has booked the work until progress says otherwise."""

    worker: WorkerId
    incarnation: int
    url: str
    router: str
    policy: str
    overlap_blocks: int
    """Leading blocks that the worker holds in any tier, or is thought to hold."""
    block_tokens: int
    new_prefill_tokens: int = 0
    """What of the prompt is to be computed, as booked. What has to be fetched from slower tiers
    counts in part; even if all of it is cached, one token is computed."""
    terms: tuple[Term, ...] = ()
    """Every candidate, when the request asked for an explanation."""
    engine_choice: str = ""
    """Why workers of one engine came first; empty where no rule said so."""
    elsewhere: Elsewhere | None = None
    """None: nobody whom it could be fetched from holds much more."""


class Rejected(msgspec.Struct, frozen=True, tag="rejected"):
    """Not now, or not here. `reason` is one of the words below; `detail` is for people."""

    reason: str
    detail: str
    retry_after_s: float = 1.0


class Queued(msgspec.Struct, frozen=True, tag="queued"):
    """Nobody is free yet. Said only to who set `answer_s`: ask again at once to go on waiting,
    with what is left of the deadline. A request keeps its place by that, with any router."""

    ahead: int
    """How many requests are likely to be served before."""


UNKNOWN_MODEL = "unknown_model"
NO_WORKER = "no_worker"
ALL_BUSY = "all_busy"
NOT_READY = "not_ready"

Verdict = Chosen | Rejected
RouteReply = Chosen | Queued | Rejected
