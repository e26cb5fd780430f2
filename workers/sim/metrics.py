"""The engine's numbers under vLLM's names, read at each scrape; latencies as they happen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from workers.sim.engine import Engine, StepSums
from workers.sim.generation import Generation
from workers.sim.request import Progress, ProgressKind
from workers.sim.speculation import Tally

_TTFT_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_ITL_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
_E2E_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_STEP_TOKENS = tuple(float(2**power) for power in (0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14))
_LABELS = ("model_name", "engine")


class Metrics:
    """Everything that /metrics tells of one engine. `speed` turns its seconds into real ones."""

    def __init__(self, model: str, engine: Engine, speed: float) -> None:
        self._registry = CollectorRegistry()
        self._speed = speed
        labels = {"model_name": model, "engine": "0"}

        def histogram(name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
            family = Histogram(
                f"vllm:{name}", help, _LABELS, buckets=buckets, registry=self._registry
            )
            return family.labels(**labels)

        self._ttft = histogram("time_to_first_token_seconds", "Time to first token.", _TTFT_S)
        self._itl = histogram("inter_token_latency_seconds", "Time between tokens.", _ITL_S)
        self._e2e = histogram("e2e_request_latency_seconds", "Time of whole requests.", _E2E_S)
        self._prefill = histogram("request_prefill_time_seconds", "Time in prefill.", _E2E_S)
        self._prefill_s = 0.0
        """That prompts have added to steps since the last first token."""
        self._steps = histogram("iteration_tokens_total", "Tokens per engine step.", _STEP_TOKENS)

        def counter(name: str, help: str) -> Counter:
            family = Counter(f"vllm:{name}", help, _LABELS, registry=self._registry)
            return family.labels(**labels)

        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens of answered requests.")
        self._generation_tokens = counter("generation_tokens", "Tokens generated.")
        self._ended = Counter(
            "vllm:request_success",
            "Requests by how they ended.",
            (*_LABELS, "finished_reason"),
            registry=self._registry,
        )
        self._labels = labels
        for reason in ("stop", "length", "abort", "error"):
            self._ended.labels(**labels, finished_reason=reason)
        self._registry.register(_EngineCollector(model, engine))

    def observe_progress(self, generation: Generation, progress: Progress) -> None:
        """To be called before the generation takes the progress over."""
        new_tokens = progress.output_tokens - generation.produced_tokens
        if progress.kind is ProgressKind.FIRST_TOKEN:
            self._ttft.observe((progress.time_s - generation.arrived_s) / self._speed)
            self._prompt_tokens.inc(generation.prompt_tokens)
            # vLLM: from its scheduling to its first token, the same while prompts take turns.
            self._prefill.observe(self._prefill_s)
            self._prefill_s = 0.0
        elif new_tokens:
            self._itl.observe((progress.time_s - generation.last_token_s) / self._speed)
        self._generation_tokens.inc(new_tokens)
        if progress.kind is ProgressKind.FINISHED:
            self._e2e.observe((progress.time_s - generation.arrived_s) / self._speed)
            self._count_end(generation.ending.finish_reason)

    def observe_steps(self, sums: StepSums) -> None:
        """Several steps at once (the engine was late) count with their mean."""
        self._prefill_s += sums.prefill_ms / 1000 / self._speed
        tokens = sums.prefill_tokens + sums.decode_batch + sums.accepted_drafts
        for _ in range(sums.steps):
            self._steps.observe(tokens / sums.steps)

    def observe_abort(self) -> None:
        """A request was cancelled."""
        self._count_end("abort")

    def observe_error(self) -> None:
        """The engine gave a request up."""
        self._count_end("error")

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)

    def _count_end(self, reason: str) -> None:
        self._ended.labels(**self._labels, finished_reason=reason).inc()


class _EngineCollector(Collector):
    """What the engine counts itself."""

    def __init__(self, model: str, engine: Engine) -> None:
        self._values = [model, "0"]
        self._engine = engine

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        load = self._engine.load()
        used = load.used_blocks / load.total_blocks
        yield self._gauge("num_requests_running", "Requests in execution.", load.running)
        yield self._gauge("num_requests_waiting", "Requests waiting.", load.waiting)
        yield self._gauge("kv_cache_usage_perc", "KV-cache usage, 1 is full.", used)
        yield self._counter("num_preemptions", "Preemptions.", load.preemptions)
        yield self._counter("prefix_cache_queries", "Tokens looked up.", load.queried_tokens)
        yield self._counter("prefix_cache_hits", "Tokens found.", load.cached_tokens)
        fetched = load.fetched_tokens
        yield self._counter("external_prefix_cache_hits", "Tokens fetched from elsewhere.", fetched)
        yield self._staged(load.staged)
        yield self._cache_config(load.total_blocks)
        if self._engine.speculation is not None:
            yield from self._drafts(self._engine.tally)

    def _drafts(self, tally: Tally) -> Iterator[Metric]:
        told = "spec_decode_num_"
        yield self._counter(f"{told}drafts", "Verifications.", tally.verifications)
        yield self._counter(f"{told}draft_tokens", "Tokens drafted.", tally.drafted_tokens)
        yield self._counter(f"{told}accepted_tokens", "Drafts kept.", tally.accepted_tokens)
        family = CounterMetricFamily(
            f"vllm:{told}accepted_tokens_per_pos",
            "Drafts kept, by position.",
            labels=(*_LABELS, "position"),
        )
        for position, accepted in enumerate(tally.accepted_at):
            family.add_metric([*self._values, str(position)], accepted)
        yield family

    def _staged(self, requests: int) -> GaugeMetricFamily:
        """vLLM has no such metric."""
        family = GaugeMetricFamily(
            "sim:kv_staged_requests", "Kept for others to fetch.", labels=_LABELS
        )
        family.add_metric(self._values, requests)
        return family

    def _gauge(self, name: str, help: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"vllm:{name}", help, labels=_LABELS)
        family.add_metric(self._values, value)
        return family

    def _counter(self, name: str, help: str, value: float) -> CounterMetricFamily:
        family = CounterMetricFamily(f"vllm:{name}", help, labels=_LABELS)
        family.add_metric(self._values, value)
        return family

    def _cache_config(self, blocks: int) -> GaugeMetricFamily:
        config = {
            "engine": "0",
            "block_size": str(self._engine.block_tokens),
            "num_gpu_blocks": str(blocks),
            "num_cpu_blocks": "None",
            "kv_cache_size_tokens": str(blocks * self._engine.block_tokens),
            "enable_prefix_caching": "True",
            "prefix_caching_hash_algo": "sha256",
            "cache_dtype": "auto",
        }
        family = GaugeMetricFamily(
            "vllm:cache_config_info", "How the cache is set up.", labels=list(config)
        )
        family.add_metric(list(config.values()), 1)
        return family
