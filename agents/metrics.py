"""An agent's numbers for Prometheus. Names stand here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from agents.adapters.protocol import EngineLoad
from agents.usage import Usage
from proto.load import StepSums
from proto.workers import WorkerRecord

CLASS = ("hardware", "engine", "engine_version", "model")
"""Labels of what makes one worker like another."""


LOAD_GAUGES: dict[str, tuple[str, Callable[[EngineLoad], float]]] = {
    "running_requests": ("Requests that the engine runs.", lambda load: load.running),
    "waiting_requests": ("Requests that wait in the engine.", lambda load: load.waiting),
    "queued_prefill_tokens": (
        "Prompt tokens that wait in the engine.",
        lambda load: load.queued_prefill_tokens,
    ),
    "used_blocks": ("KV blocks that sequences use.", lambda load: load.used_blocks),
    "queried_prompt_tokens": (
        "Prompt tokens that the engine looked up in its cache since it started.",
        lambda load: load.queried_tokens,
    ),
    "cached_prompt_tokens": (
        "Prompt tokens that the engine found in its cache since it started.",
        lambda load: load.cached_tokens,
    ),
    "preemptions": (
        "Sequences that the engine threw out for want of blocks since it started.",
        lambda load: load.preemptions,
    ),
}
"""What is told of an engine's load: 0 while it is not known. The engine's own names are passed on
beside these by its own `/metrics`."""


class AgentMetrics:
    """Counters that the parts of an agent add to, and gauges read at each scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.events = Counter(
            "tokenplane_agent_events",
            "KV events read from the engine, by kind (stored, removed, cleared, lost).",
            ["kind"],
            registry=registry,
        )
        self.losses = Counter(
            "tokenplane_agent_losses",
            "Times when the engine's cache became uncertain, by reason.",
            ["reason"],
            registry=registry,
        )
        self.batches = Counter(
            "tokenplane_agent_kv_batches",
            "KV batches, by outcome (sent, lost: readers will ask for a snapshot).",
            ["outcome"],
            registry=registry,
        )
        self.snapshots = Counter(
            "tokenplane_agent_snapshot_requests",
            "Questions for a snapshot or the next chunk of one, by outcome (answered, refused).",
            ["outcome"],
            registry=registry,
        )
        self.registrations = Counter(
            "tokenplane_agent_registrations",
            "Leases taken in the registry; more than one means that one was lost.",
            registry=registry,
        )
        self.commands = Counter(
            "tokenplane_agent_commands",
            "The transfer coordinator's commands, by verb and outcome.",
            ["verb", "outcome"],
            registry=registry,
        )
        self.evacuations = Counter(
            "tokenplane_agent_evacuations",
            "Drains of which the engine's cache was to be moved to others, by what came of it.",
            ["outcome"],
            registry=registry,
        )
        self.unreadable = Counter(
            "tokenplane_agent_unreadable_messages",
            "Messages on the bus that could not be read, by subject.",
            ["subject"],
            registry=registry,
        )

        self._drafts = Counter(
            "tokenplane_agent_drafts",
            "Tokens drafted, by outcome (accepted, rejected). Each accepted one saves a pass.",
            ["outcome"],
            registry=registry,
        )
        self._verifications = Counter(
            "tokenplane_agent_verifications",
            "Sequences in steps that checked drafts of theirs.",
            registry=registry,
        )
        self.switches = Counter(
            "tokenplane_agent_draft_switches",
            "Times when drafts were found worth it again, or no longer, and why.",
            ["to", "reason"],
            registry=registry,
        )
        self._accelerator_s = self._of_class(
            "accelerator_seconds", "Seconds that accelerators were held, busy or not."
        )
        self._dollars = self._of_class("cost_dollars", "What they cost, where a price is known.")
        self._tokens = Counter(
            "tokenplane_agent_tokens",
            "Tokens that the engine computed, by class of worker and kind (prefill, generated).",
            [*CLASS, "kind"],
            registry=registry,
        )

    def used(self, record: WorkerRecord, usage: Usage) -> None:
        """What an engine has used and made in an interval."""
        of = (record.hardware.profile, record.engine, record.engine_version, record.model)
        self._accelerator_s.labels(*of).inc(usage.accelerator_seconds)
        self._dollars.labels(*of).inc(usage.dollars)
        self._tokens.labels(*of, "prefill").inc(usage.prefill_tokens)
        self._tokens.labels(*of, "generated").inc(usage.generated_tokens)

    def drafted(self, sums: StepSums) -> None:
        """What came of drafts in a window."""
        self._verifications.inc(sums.verifications)
        self._drafts.labels("accepted").inc(sums.accepted_drafts)
        self._drafts.labels("rejected").inc(max(0, sums.drafted_tokens - sums.accepted_drafts))

    def _of_class(self, name: str, documentation: str) -> Counter:
        return Counter(f"tokenplane_agent_{name}", documentation, CLASS, registry=self._registry)

    def watch_load(self, load: Callable[[], EngineLoad | None]) -> None:
        """Gauges of the engine's load, as it was polled last."""

        def of(read: Callable[[EngineLoad], float]) -> Callable[[], float]:
            return lambda: float(read(now)) if (now := load()) else 0.0

        for name, (documentation, read) in LOAD_GAUGES.items():
            self.watch(name, documentation, of(read))

    def watch(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        """A gauge `tokenplane_agent_<name>`."""
        gauge = Gauge(f"tokenplane_agent_{name}", documentation, registry=self._registry)
        gauge.set_function(value)
