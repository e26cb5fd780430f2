"""The gateway's metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from controlplane.runtime.histogram import QuickHistogram

LATENCY_BUCKETS_S = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
)  # fmt: skip
LAG_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
TPOT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)

ENGINE_FAILURES = (
    "engine_gave_up", "engine_lost", "engine_malformed", "engine_refused", "engine_silent",
    "engine_stuck", "engine_unreachable",
)  # fmt: skip
NO_ROUTER = ("BusTimeout", "NoResponder")
"""Known beforehand, so that the first one is seen to come: what appears at 1 has no rate."""

LENGTH_BUCKETS = (16, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384, 32_768, 65_536)


class GatewayMetrics:
    """One set a process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "tokenplane_gateway_requests",
            "Requests that have ended, by model and outcome",
            ["model", "outcome"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "tokenplane_gateway_requests_in_flight", "Requests being served", registry=registry
        )
        self.loop_lag_s = QuickHistogram(
            "tokenplane_gateway_loop_lag_seconds",
            "How late the event loop came to what was due, looked at twenty times a second",
            buckets=LAG_BUCKETS_S,
            registry=registry,
        )
        self.ttft_s = QuickHistogram(
            "tokenplane_gateway_time_to_first_token_seconds",
            "From a request's arrival to its first token",
            ["model"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.tpot_s = QuickHistogram(
            "tokenplane_gateway_time_per_output_token_seconds",
            "From first to last token, divided by the tokens after the first",
            ["model"],
            buckets=TPOT_BUCKETS_S,
            registry=registry,
        )
        self.duration_s = QuickHistogram(
            "tokenplane_gateway_request_seconds",
            "From a request's arrival to its end, by model and outcome",
            ["model", "outcome"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.prompt_tokens = QuickHistogram(
            "tokenplane_gateway_prompt_tokens",
            "Prompt of a request, in tokens",
            ["model"],
            buckets=LENGTH_BUCKETS,
            registry=registry,
        )
        self.output_tokens = QuickHistogram(
            "tokenplane_gateway_output_tokens",
            "Answer to a request, in tokens",
            ["model"],
            buckets=LENGTH_BUCKETS,
            registry=registry,
        )
        self.route_s = QuickHistogram(
            "tokenplane_gateway_route_seconds",
            "From asking a router to its answer",
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.0),
            registry=registry,
        )
        self.tokens = Counter(
            "tokenplane_gateway_tokens",
            "Tokens of served requests: prompt; of it predicted, by the router, to be cached; told,"
            " prompts of requests whose engine said what was cached, and of those cached; output",
            ["model", "kind"],
            registry=registry,
        )
        self.handovers = Counter(
            "tokenplane_gateway_handovers",
            "Requests of split fleets: prefilled elsewhere (remote), by the decode worker (local,"
            " fallback), and second tries (retry), by reason",
            ["outcome", "reason"],
            registry=registry,
        )
        self.fetches = Counter(
            "tokenplane_gateway_prefix_fetches",
            "Requests whose worker might fetch some of the prompt from another one, by what came"
            " of it",
            ["outcome"],
            registry=registry,
        )
        self.drafts = Counter(
            "tokenplane_gateway_drafts",
            "Tokens drafted by speculative decoding, where engines tell of each request, by model,"
            " kind of text, sampling (greedy, sampled) and outcome (accepted, rejected)",
            ["model", "kind", "sampling", "outcome"],
            registry=registry,
        )
        self.passes = Counter(
            "tokenplane_gateway_decode_passes",
            "Passes of engines that brought the tokens after the first, with drafts and without",
            ["model", "kind", "sampling", "speculating"],
            registry=registry,
        )
        self.accept_length = QuickHistogram(
            "tokenplane_gateway_accept_length",
            "Tokens of a pass, on average over a request that was speculated on",
            ["model", "kind", "sampling"],
            buckets=(1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0),
            registry=registry,
        )
        self.speculation_ttft_s = QuickHistogram(
            "tokenplane_gateway_speculation_time_to_first_token_seconds",
            "As time_to_first_token_seconds, by whether the engine speculated",
            ["model", "kind", "sampling", "speculating"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.speculation_tpot_s = QuickHistogram(
            "tokenplane_gateway_speculation_time_per_output_token_seconds",
            "As time_per_output_token_seconds, by whether the engine speculated",
            ["model", "kind", "sampling", "speculating"],
            buckets=TPOT_BUCKETS_S,
            registry=registry,
        )
        self.emission_gap_s = QuickHistogram(
            "tokenplane_gateway_emission_gap_seconds",
            "Between what a stream brings and what it brings next: a token, or several that drafts"
            " brought at once",
            ["model", "kind", "sampling", "speculating"],
            buckets=TPOT_BUCKETS_S,
            registry=registry,
        )
        self.fallbacks = Counter(
            "tokenplane_gateway_route_fallbacks",
            "Requests placed by the gateway itself because no router answered",
            ["reason"],
            registry=registry,
        )
        self.asked_again = Counter(
            "tokenplane_gateway_route_asked_again",
            "Questions to routers that were asked a second time because no answer came",
            registry=registry,
        )
        self.retries = Counter(
            "tokenplane_gateway_retries",
            "Attempts on another worker, by why the one before failed",
            ["reason"],
            registry=registry,
        )
        self.migrations = Counter(
            "tokenplane_gateway_migrations",
            "Answers that went on with another engine, by why the one before failed",
            ["reason"],
            registry=registry,
        )
        for reason in ENGINE_FAILURES:
            self.retries.labels(reason)
            self.migrations.labels(reason)
        for reason in NO_ROUTER:
            self.fallbacks.labels(reason)
        self.quarantined = Gauge(
            "tokenplane_gateway_quarantined_workers",
            "Workers that get nothing new because none of their streams moved",
            registry=registry,
        )
        self.probes = Counter(
            "tokenplane_gateway_probes",
            "Tokens asked of workers in quarantine, by whether one came",
            ["outcome"],
            registry=registry,
        )
        self.untokenised = Counter(
            "tokenplane_gateway_untokenised_requests",
            "Requests routed by load only, because their prompt could not be tokenised here",
            ["model"],
            registry=registry,
        )
        self.records_dropped = Counter(
            "tokenplane_gateway_records_dropped",
            "Request records that could not be stored",
            registry=registry,
        )
