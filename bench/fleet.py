"""fleet: a router that hears 1,000 workers at once, over real NATS.

Each worker holds 1,024 blocks in chains of 32 and turns them over: a KV batch stores a chain and
removes the oldest. Half of the chains are drawn from 1,000 that many workers hold. Load reports
come twice a second from each worker, and 100 prompts a second are decided for. One process plays
all agents, and another asks for decisions, on the same cores. It goes on for as long as `--seconds`
says.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import anyio
import anyio.to_process
import numpy as np

from bench import agents
from bench.agents import Agent
from bench.deciders import OurDecider
from bench.match import names_at_random
from bench.measure import percentile
from bench.options import Options
from bench.ours import BLOCK_TOKENS, FIRST_LIFE, MODEL
from bench.prompts import workload
from bench.rig import Rig, cpu_s, open_rig
from bench.rows import Bar, Row, row
from bench.scrape import Scrape, scrape
from bench.watched_router import LONGEST_DELAY, LONGEST_RUN
from controlplane.runtime.carriers import open_carriers
from controlplane.runtime.settings import CommonSettings
from proto.codec import Producer
from proto.hashing import BlockHasher, Scope, Words
from proto.subjects import Keys, Subjects
from proto.wire.ports import Bus

BARS = (
    Bar("event loop blocked by our own code, longest", "ours", "at most", 10.0),
    Bar("KV batches lost", "ours", "at most", 0.0),
    Bar("snapshots to repair", "ours", "at most", 0.0),
    Bar("RSS, growth in the second half", "ours", "at most", 1.0),
)
WORKERS = 1_000
CHAIN_BLOCKS = 32
CHAINS = 32
POPULAR = 1_000
BATCHES_PER_S = 4_000
REPORTS_PER_S = 2 * WORKERS
DECISIONS_PER_S = 100
PROMPT_TOKENS, PROMPTS = 8_192, 100
TICK_S = 0.001
WARM_S = 5.0
LOOK_S, SCRAPE_S = 1.0, 15.0
INTERVALS = 4
"""Resident memory is told at both ends of each."""
MIB = 1 << 20


@dataclass
class Watch:
    """What has been seen so far."""

    rss_mib: list[float] = field(default_factory=list)
    """Once a second, from the first moment to the last."""
    scrapes: list[Scrape] = field(default_factory=list)
    decisions_ms: list[float] = field(default_factory=list)
    router_cpu_s: float = 0.0
    seconds: float = 0.0


class Fleet:
    """All agents, and what the next one says."""

    def __init__(self, subjects: Subjects, rng: np.random.Generator) -> None:
        self._rng = rng
        self._popular = [names_at_random(CHAIN_BLOCKS, rng) for _ in range(POPULAR)]
        self.agents = [Agent(number, subjects, time.time) for number in range(WORKERS)]
        for agent in self.agents:
            for _ in range(CHAINS):
                agent.hold(self._chain(agent))

    def batch(self, number: int) -> tuple[str, bytes]:
        """Subject and KV batch number so and so."""
        agent = self.agents[number % WORKERS]
        return agent.kv_subject, agent.turn_over(self._chain(agent))

    def report(self, number: int) -> tuple[str, bytes]:
        """Subject and load report number so and so."""
        agent = self.agents[number % WORKERS]
        return agent.load_subject, agent.report()

    def _chain(self, agent: Agent) -> Words:
        """One that the agent does not hold: a popular one, or one that nobody has."""
        if self._rng.random() < 0.5:
            popular = self._popular[self._rng.integers(POPULAR)]
            if not agent.holds(popular):
                return popular
        return names_at_random(CHAIN_BLOCKS, self._rng)


def run(options: Options) -> Iterator[Row]:
    """How fast it went, how late it was heard, and what it cost."""
    seconds = min(options.seconds, 5.0) if options.quick else options.seconds
    watch = anyio.run(_live, seconds, backend="asyncio", backend_options={"use_uvloop": True})
    yield from _rows(watch)


async def _live(seconds: float) -> Watch:
    """The fleet talks all the time; it is watched once it has warmed up."""
    rng = np.random.default_rng(0)
    async with open_rig() as rig:
        bus, subjects = rig.carriers.bus, Subjects(rig.settings.cluster)
        fleet = Fleet(subjects, rng)
        async with agents.serving(
            fleet.agents, bus, rig.carriers.store, Keys(rig.settings.cluster)
        ):
            metrics_url = await rig.start_router("-m", "bench.watched_router")
            watch = Watch()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_say, bus, fleet.batch, BATCHES_PER_S)
                tasks.start_soon(_say, bus, fleet.report, REPORTS_PER_S)
                async with anyio.create_task_group() as watching:
                    watching.start_soon(_hear_asker, rig.settings, watch, WARM_S + seconds)
                    await anyio.sleep(WARM_S)
                    await _look(rig, metrics_url, watch, seconds)
                tasks.cancel_scope.cancel()
    return watch


async def _say(bus: Bus, what: Callable[[int], tuple[str, bytes]], per_s: float) -> None:
    """Publish at a steady pace, until cancelled."""
    began_s, said = time.perf_counter(), 0
    while True:
        due = int((time.perf_counter() - began_s) * per_s)
        for number in range(said, due):
            await bus.publish(*what(number))
        said = max(said, due)
        await anyio.sleep(TICK_S)


async def _hear_asker(settings: CommonSettings, watch: Watch, seconds: float) -> None:
    """Have prompts decided for by a process that does nothing else: this one is busy talking."""
    watch.decisions_ms = await anyio.to_process.run_sync(ask, settings, seconds, cancellable=True)


def ask(settings: CommonSettings, seconds: float) -> list[float]:
    """Have prompts decided for at a steady pace; how long each took, in milliseconds."""
    backend = {"use_uvloop": True}
    return anyio.run(_ask, settings, seconds, backend="asyncio", backend_options=backend)


async def _ask(settings: CommonSettings, seconds: float) -> list[float]:
    hasher = BlockHasher(settings.secret_bytes, Scope(MODEL), BLOCK_TOKENS)
    producer = Producer("bench-caller", FIRST_LIFE, time.time)
    rng = np.random.default_rng(1)
    prompts = workload(1, PROMPTS, tokens=PROMPT_TOKENS, chains=1, rng=rng).prompts
    taken_ms: list[float] = []
    async with open_carriers(settings, "bench-caller") as carriers:
        asking = (carriers.bus, Subjects(settings.cluster), hasher, producer, prompts)
        decider = OurDecider(*asking, form="tokens")
        until_s = time.perf_counter() + seconds
        for number in itertools.count():
            began_s = time.perf_counter()
            if began_s > until_s:
                return taken_ms
            decision = await decider.decide(number % PROMPTS, 0)
            took_s = time.perf_counter() - began_s
            taken_ms.append(1e3 * took_s)
            await decider.free(decision, 0)
            await anyio.sleep(max(0.0, 1 / DECISIONS_PER_S - took_s))
    raise AssertionError("an endless count has ended")


async def _look(rig: Rig, metrics_url: str, watch: Watch, seconds: float) -> None:
    """Memory every second, metrics as often as Prometheus would read them."""
    router, http = rig.process("router"), rig.carriers.http
    watch.scrapes.append(await scrape(http, metrics_url))
    began_s, cpu_before_s, scraped_s = time.perf_counter(), cpu_s(router), 0.0
    while True:
        watch.seconds = time.perf_counter() - began_s
        watch.rss_mib.append(router.memory_info().rss / MIB)
        if watch.seconds >= seconds:
            break
        if watch.seconds >= scraped_s + SCRAPE_S:
            scraped_s = watch.seconds
            watch.scrapes.append(await scrape(http, metrics_url))
        await anyio.sleep(min(LOOK_S, seconds - watch.seconds))
    watch.router_cpu_s = cpu_s(router) - cpu_before_s
    watch.scrapes.append(await scrape(http, metrics_url))


def _rows(watch: Watch) -> Iterator[Row]:
    first, last, seconds = watch.scrapes[0], watch.scrapes[-1], watch.seconds
    batches = last.since(first, "tokenplane_router_kv_batches_total")
    lag = "tokenplane_router_kv_lag_seconds"
    yield row("watched for", "s", seconds)
    yield row("KV batches heard", "1/s", batches / seconds)
    yield row("blocks stored, and as many removed", "1/s", batches * CHAIN_BLOCKS / seconds)
    yield row("load reports published", "1/s", REPORTS_PER_S)
    yield row("event lag, p50", "ms", 1e3 * last.quantile(first, lag, 0.5))
    yield row("event lag, p99", "ms", 1e3 * last.quantile(first, lag, 0.99))
    yield row("KV batches lost", "", last.samples["tokenplane_router_dropped_messages"])
    yield row("snapshots to repair", "", last.since(first, "tokenplane_router_index_repairs_total"))
    for cause, name in (("our own code", LONGEST_RUN), ("anything", LONGEST_DELAY)):
        longest_s = max(each.samples[name] for each in watch.scrapes[1:])
        yield row(f"event loop blocked by {cause}, longest", "ms", 1e3 * longest_s)
    yield row(f"decision, {WORKERS:,} workers, p50", "ms", percentile(watch.decisions_ms, 0.5))
    yield row(f"decision, {WORKERS:,} workers, p99", "ms", percentile(watch.decisions_ms, 0.99))
    yield row("router's share of a core", "%", 100 * watch.router_cpu_s / seconds)
    yield from _rss_rows(watch.rss_mib, seconds)


def _rss_rows(rss_mib: Sequence[float], seconds: float) -> Iterator[Row]:
    for part in range(INTERVALS + 1):
        at = round(part * (len(rss_mib) - 1) / INTERVALS)
        yield row(f"RSS after {part * seconds / INTERVALS:,.0f} s", "MiB", rss_mib[at])
    half = rss_mib[len(rss_mib) // 2 :]
    slope = float(np.polyfit(np.linspace(0, seconds / 2, len(half)), half, 1)[0])
    yield row("RSS, growth in the second half", "MiB/min", 60 * slope)
