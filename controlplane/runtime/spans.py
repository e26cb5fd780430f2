"""Spans by their names: what each is, who makes it, and what it tells. docs/tracing.md is written
from this, and a test holds the code to it.

Names and attributes are a promise: they are added to, and changed only with a word in the
changelog. Attributes that OpenTelemetry's GenAI conventions have keep their names (`gen_ai.`).
"""

from __future__ import annotations

from typing import NamedTuple


class SpanSpec(NamedTuple):
    """One kind of span."""

    name: str
    service: str
    parent: str
    """Name of the span above it, or what else it hangs on."""
    meaning: str
    attributes: tuple[str, ...] = ()


ATTRIBUTES = {
    "gen_ai.operation.name": "`chat`, `text_completion`, `embeddings` or `responses`",
    "gen_ai.request.model": "the model that was asked for",
    "gen_ai.usage.input_tokens": "tokens of the prompt",
    "gen_ai.usage.output_tokens": "tokens of the answer",
    "gen_ai.usage.cache_read.input_tokens": "of the prompt, those that the engine found in its cache",
    "error.type": "why it failed: the code that the client got",
    "tokenplane.request": "the request's id, the answer's `x-request-id`; the same in every attempt",
    "tokenplane.client_request": "the `x-request-id` that the client sent, if it did",
    "tokenplane.outcome": "`completed`, `cancelled`, or why not",
    "tokenplane.attempts": "engines that were tried, or went on with the answer",
    "tokenplane.attempt": "which of them this is, from 1",
    "tokenplane.worker": "who serves it",
    "tokenplane.engine": "the engine's kind",
    "tokenplane.engine_choice": "which rule preferred the kind of engine that serves it, and why",
    "tokenplane.policy": "by which policy it was placed",
    "tokenplane.ttft_ms": "time to first token, from the request's arrival",
    "tokenplane.predicted_cached_tokens": "of the prompt, those that the router thought cached",
    "tokenplane.prompt_tokens": "tokens of the prompt, as far as routing knows them",
    "tokenplane.output_tokens": "tokens that this engine made of the answer",
    "tokenplane.overlap_blocks": "leading blocks of the prompt that the worker was thought to hold",
    "tokenplane.waited_ms": "how long it waited in the router for a worker",
    "tokenplane.candidates": "the candidates, cheapest first, each with its terms on a line",
    "tokenplane.rejected": "why nobody was chosen",
    "tokenplane.rejected.detail": "the same, for people",
    "tokenplane.workers": "how many workers there are",
    "tokenplane.tenant": "on whose account",
    "tokenplane.router": "which router placed it",
    "tokenplane.version": "which build of the gateway carried it",
    "tokenplane.action": "on an event: what the planner does about a phase",
    "tokenplane.reason": "and why, in one word",
    "tokenplane.wanted": "workers that there should be",
    "tokenplane.pool": "workers of one model, role and hardware",
    "tokenplane.needed": "workers that the load of now takes",
    "tokenplane.floor": "workers that what is forecast takes",
    "tokenplane.rate": "requests that arrive a second",
    "tokenplane.tpot_ms": "time per output token, as estimated",
    "tokenplane.decision": "the decision that this belongs to; the scaler's words name it, too",
    "tokenplane.ticket": "which movement of KV blocks",
    "tokenplane.prefill": "who prefills",
    "tokenplane.decode": "who decodes",
    "tokenplane.local": "why the decode worker prefills by itself",
    "tokenplane.denied": "why a report was refused",
    "tokenplane.state": "how far the movement has come",
    "tokenplane.step": "on an event: what was done to the ticket",
    "tokenplane.purpose": "why a cached prefix is moved: `fetch`, `replicate`, `evacuate`",
    "tokenplane.source": "who has it",
    "tokenplane.target": "who gets it",
    "tokenplane.kv_bytes": "bytes that had to be moved",
    "tokenplane.chains": "prefixes that were moved",
    "tokenplane.stays": "why it was not moved",
    "tokenplane.cause": "why a movement was ended by the coordinator",
}

_STEP = ("tokenplane.ticket", "tokenplane.step", "tokenplane.state", "tokenplane.denied")

SPANS = (
    SpanSpec(
        "gateway.request", "gateway", "the client's span, if it sends one",
        "A request from its first byte to the last of its answer",
        (
            "gen_ai.operation.name", "gen_ai.request.model", "gen_ai.usage.input_tokens",
            "gen_ai.usage.output_tokens", "gen_ai.usage.cache_read.input_tokens", "error.type",
            "tokenplane.request", "tokenplane.client_request", "tokenplane.outcome",
            "tokenplane.attempts", "tokenplane.worker",
            "tokenplane.policy", "tokenplane.ttft_ms", "tokenplane.predicted_cached_tokens",
            "tokenplane.tenant", "tokenplane.router", "tokenplane.engine", "tokenplane.version",
        ),
    ),
    SpanSpec(
        "gateway.admit", "gateway", "gateway.request",
        "Who asks, and may they: key, limits, what the request demands",
    ),
    SpanSpec(
        "gateway.tokenize", "gateway", "gateway.request", "The prompt made into tokens, to route by",
        ("gen_ai.usage.input_tokens",),
    ),
    SpanSpec(
        "gateway.route", "gateway", "gateway.request",
        "Routers asked where to go; once for every attempt",
        ("tokenplane.worker", "tokenplane.policy", "tokenplane.engine_choice", "tokenplane.rejected"),
    ),
    SpanSpec(
        "router.decide", "router", "gateway.route", "One decision, with what was weighed",
        (
            "tokenplane.request", "gen_ai.request.model", "tokenplane.prompt_tokens",
            "tokenplane.candidates", "tokenplane.worker", "tokenplane.policy",
            "tokenplane.engine_choice", "tokenplane.overlap_blocks", "tokenplane.waited_ms", "tokenplane.rejected",
            "tokenplane.rejected.detail",
        ),
    ),
    SpanSpec(
        "gateway.engine", "gateway", "gateway.request",
        "One attempt: the request with an engine, until that has answered or failed. A retry, and an"
        " answer that goes on elsewhere, are further ones",
        ("tokenplane.worker", "tokenplane.attempt"),
    ),
    SpanSpec(
        "gateway.prefill", "gateway", "gateway.request",
        "The first leg of an attempt in two: the prompt with the engine that prefills it, under a"
        " ticket",
        ("tokenplane.worker", "tokenplane.ticket"),
    ),
    SpanSpec(
        "gateway.transfer", "gateway", "gateway.request",
        "From the prefilled prompt to the decode engine's first byte: its blocks on their way",
        ("tokenplane.worker", "tokenplane.ticket"),
    ),
    SpanSpec(
        "gateway.decode", "gateway", "gateway.engine", "The rest of the answer, by that engine",
        ("tokenplane.worker", "tokenplane.ticket"),
    ),
    SpanSpec(
        "agent.request", "agent", "gateway.engine or gateway.prefill",
        "The same as the agent beside the engine hears of it",
        (
            "tokenplane.request", "tokenplane.attempt", "tokenplane.worker", "tokenplane.engine",
            "tokenplane.outcome", "tokenplane.output_tokens",
        ),
    ),
    SpanSpec(
        "gateway.fetch", "gateway", "gateway.request",
        "The request waits for its worker to get what another one has of the prompt",
        ("tokenplane.source", "tokenplane.worker", "tokenplane.outcome"),
    ),
    SpanSpec(
        "router.replicate", "router", "nothing: it is a trace of its own",
        "A prefix that is asked for often is to be copied to another worker",
        ("tokenplane.source", "tokenplane.outcome"),
    ),
    SpanSpec(
        "agent.evacuate", "agent", "nothing: it is a trace of its own",
        "A worker drains, and leaves what it caches to others",
        ("tokenplane.worker", "tokenplane.outcome"),
    ),
    SpanSpec(
        "transfer.evacuate", "transfer", "agent.evacuate", "Its prefixes are moved, one by one",
        ("tokenplane.source", "tokenplane.chains", "tokenplane.kv_bytes"),
    ),
    SpanSpec(
        "transfer.move", "transfer", "gateway.fetch, router.replicate or transfer.evacuate",
        "A cached prefix is moved, if that beats computing it. Each transition of its ticket is an"
        " event on it",
        (
            "tokenplane.purpose", "tokenplane.request", "tokenplane.source", "tokenplane.target",
            "tokenplane.ticket", "tokenplane.kv_bytes", "tokenplane.stays",
        ),
    ),
    SpanSpec(
        "transfer.reserve", "transfer", "gateway.request",
        "May it be prefilled elsewhere, and by whom? Reserves the place that decodes",
        ("tokenplane.ticket", "tokenplane.prefill", "tokenplane.decode", "tokenplane.local"),
    ),
    SpanSpec(
        "transfer.*", "transfer", "gateway.request or gateway.engine",
        "A step of the movement that the gateway reports: `prefill`, `staged`, `land`, `fail`,"
        " `cancel` and so on. Each transition of the ticket is an event on it",
        _STEP,
    ),
    SpanSpec(
        "transfer.*", "transfer", "transfer.reserve",
        "A step that the coordinator takes by itself, such as `expire`, in the request's own trace",
        ("tokenplane.ticket", "tokenplane.cause"),
    ),
    SpanSpec(
        "agent.*", "agent", "the step that it follows from",
        "A command to an engine: `abort_prefill`, `abort_decode`, `release`, `offer`, `replicate`",
        ("tokenplane.ticket", "tokenplane.worker", "tokenplane.outcome"),
    ),
    SpanSpec(
        "planner.tick", "planner", "nothing: a tick is a trace of its own",
        "One look at load and forecast, and what is wanted then: an event for each phase of a model",
        (
            "tokenplane.action", "tokenplane.reason", "tokenplane.workers", "tokenplane.wanted",
            "tokenplane.needed", "tokenplane.floor", "tokenplane.rate", "tokenplane.ttft_ms",
            "tokenplane.tpot_ms", "tokenplane.decision",
        ),
    ),
    SpanSpec(
        "scaler.scale", "planner", "`planner.tick`",
        "What a scaler does about the word of that tick, until as many workers run as it wants"
        " (starting ones count) and none drains; where it cannot, each trouble is an event. With"
        " `tokenplane up` the service is `up`",
        (
            "tokenplane.decision", "tokenplane.reason", "tokenplane.pool", "tokenplane.wanted",
            "tokenplane.outcome",
        ),
    ),
    SpanSpec(
        "registry.workers", "registry", "who asks", "The registry is asked who is there",
        ("tokenplane.workers",),
    ),
)  # fmt: skip
