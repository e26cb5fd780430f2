"""One line a request for the planner, the bill and the curious; durable, without content."""

from __future__ import annotations

import msgspec

from proto.ids import RequestId, WorkerId


class RequestRecord(msgspec.Struct, frozen=True):
    """A request that has ended, however it ended; shed requests count too.

    Times are seconds since the epoch; durations milliseconds; None where it never came to that.
    """

    request: RequestId
    model: str
    tenant: str
    slo_class: str
    arrived_s: float
    outcome: str
    """`completed`, `cancelled`, or the kind of the typed error the client got."""
    prompt_tokens: int
    output_tokens: int = 0
    cached_tokens: int | None = None
    """As the engine reported it."""
    predicted_cached_tokens: int = 0
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    duration_ms: float = 0.0
    attempts: int = 0
    worker: WorkerId | None = None
    policy: str = ""
    trace_id: str = ""
    router: str = ""
    """Who decided, empty if the gateway did by itself."""
    engine: str = ""
    """Name and version of the engine that gave the (last of the) answer: `vllm/0.11.2`."""
    version: str = ""
    """Of the gateway."""
    kind: str = ""
    """What was written: completion, chat, structured, tools."""
    sampled: bool = True
    accepted_drafts: int | None = None
    """Of the output, brought by speculative decoding; None where the engine does not say."""
    rejected_drafts: int = 0
    base_model: str = ""
    """The model whose workers it was for, of which `model` may be an adapter; empty where nobody
    serves that."""
