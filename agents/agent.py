"""The agent of one engine: its parts, put together as one service."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

import anyio
from anyio.abc import TaskStatus
from prometheus_client import CollectorRegistry

from agents.adapters.protocol import DraftSwitch, EngineAdapter, EngineFacts
from agents.drafts import Drafts
from agents.evacuation import Evacuation
from agents.handoff import Handoff
from agents.hardware import hardware_of
from agents.live import LiveSet
from agents.metrics import AgentMetrics
from agents.presence import Presence
from agents.publisher import Outbox
from agents.requests import RequestLog
from agents.settings import AgentProcess
from agents.snapshot import Snapshots
from agents.usage import UsageMeter
from agents.watch import EngineWatch, Listener, Pace
from controlplane.runtime.clock import steady_clock
from controlplane.runtime.version import VERSION
from proto.codec import Producer, Reader, Unreadable
from proto.draining import DrainReply, DrainRequest
from proto.hardware import load_catalogue
from proto.hashing import secret_mark
from proto.ids import Incarnation, ServiceId, WorkerId, new_incarnation
from proto.subjects import Keys, Subjects
from proto.wire.errors import RequestRefused
from proto.wire.ports import Bus, Endpoint, Message, ServiceInfo, Store
from proto.workers import ModelCard, Role, WorkerRecord, WorkerState

log = logging.getLogger(__name__)

IDLE_POLLS = 2
"""A drained engine must be found idle so many times in a row: a request may be on its way."""


class AgentService:
    """A service: tells the control plane the truth about one engine, for as long as it runs.

    It may start before its engine, and outlives what happens to engine, bus and store. Only to
    start it needs the bus: else `BusUnavailable`.
    """

    name = "agent"

    def __init__(
        self,
        process: AgentProcess,
        adapter: EngineAdapter,
        bus: Bus,
        store: Store,
        metrics: CollectorRegistry,
        *,
        clock: Callable[[], float] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        clock = clock or steady_clock()
        settings = process.agent
        worker = WorkerId(settings.worker)
        subjects = Subjects(process.cluster)
        self.incarnation = new_incarnation(clock())
        self._settings = settings
        self._hardware = hardware_of(settings, load_catalogue(process.hardware_file))
        self._usage = UsageMeter(self._hardware)
        self._bus = bus
        self._draining = False
        self._leaving = False
        self._drains = Endpoint("drain", subjects.agent(worker, "drain"), self._obey_drain)
        self._drain_requests = Reader[DrainRequest](DrainRequest)
        self._producer = Producer(ServiceId(worker), self.incarnation, clock)
        self._hurry = anyio.Event()
        self._metrics = AgentMetrics(metrics)
        self._live = LiveSet()
        self._outbox = Outbox(
            bus, subjects, worker, self.incarnation, self._live, self._metrics, clock
        )
        self._snapshots = Snapshots(
            self._outbox, subjects, worker, self.incarnation, self._metrics, clock
        )
        self._presence = Presence(
            store, Keys(process.cluster), worker, self._metrics, rng or random.Random()
        )
        self._requests = RequestLog(bus, subjects, worker, settings.engine, self._metrics, clock)
        self._secret_mark = secret_mark(process.secret_bytes)
        self._watch = EngineWatch(
            adapter,
            self._live,
            process.secret_bytes,
            Pace(settings.load_interval_s, settings.misses_max, settings.retry_s),
            Listener(cache_changed=self._outbox.wake, state_changed=self._tell),
            self._metrics,
        )
        self._handoff = Handoff(
            adapter.handoff,
            subjects,
            worker,
            self._producer,
            self._metrics,
            self._watch.block_of,
        )
        self._evacuation = Evacuation(
            settings.evacuate_s,
            adapter.handoff,
            self._watch,
            bus,
            subjects,
            self._producer,
            self._metrics,
        )
        switch = adapter if isinstance(adapter, DraftSwitch) and settings.draft_switch else None
        self._drafts = Drafts(settings.draft_policy, settings.canary_policy, switch, self._metrics)
        self._expose()

    async def _outrank_the_past(self) -> None:
        """Whatever our clock says, this life is later than the one in the registry."""
        past = await self._presence.past()
        if past < self.incarnation:
            return
        log.warning("our clock is behind that of the agent before us, or has been set back")
        self.incarnation = Incarnation(past + 1)
        self._producer.incarnation = self.incarnation
        for part in (self._outbox, self._snapshots):
            part.outrank(self.incarnation)

    @property
    def serving(self) -> bool:
        """The engine is healthy, and the registry knows."""
        return self._watch.healthy and self._presence.registered

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Work until cancelled; then leave the registry."""
        info = ServiceInfo(
            "tokenplane-agent",
            VERSION,
            "Tells the truth about one engine",
            {"worker": self._settings.worker},
        )
        await self._outrank_the_past()
        async with (
            anyio.create_task_group() as tasks,
            self._bus.serve(
                info, [self._snapshots.endpoint, *self._handoff.endpoints, self._drains]
            ),
        ):
            await tasks.start(self._requests.run)
            for part in (self._outbox, self._presence, self._watch):
                tasks.start_soon(part.run)
            tasks.start_soon(self._report)
            tasks.start_soon(
                self._evacuation.run, WorkerId(self._settings.worker), self.incarnation
            )
            task_status.started()
            await anyio.sleep_forever()

    async def drain(self) -> None:
        """Take no new requests, wait until the engine has none left, leave the registry."""
        self._draining = self._leaving = True
        self._tell()
        idle_polls = 0
        self._evacuation.begin()
        while self._watch.healthy and idle_polls < IDLE_POLLS:
            await self._watch.next_poll()
            idle_polls = idle_polls + 1 if self._idle() else 0
        if self._watch.healthy:
            await self._evacuation.ended()
        await self._presence.leave()

    async def _obey_drain(self, message: Message) -> bytes:
        """Somebody wants the worker to finish and take nothing new, or to serve again."""
        try:
            wanted = self._drain_requests.open(message.data).body.drain
        except Unreadable as error:
            self._metrics.unreadable.labels("drain").inc()
            raise RequestRefused(400, str(error)) from error
        if self._leaving and not wanted:
            raise RequestRefused(409, "this agent is stopping; start it again instead")
        if wanted != self._draining:
            self._draining = wanted
            self._tell()
            if wanted:
                self._evacuation.begin()
            else:
                self._evacuation.forget()
        evacuating = self._evacuation.under_way
        return self._producer.seal(DrainReply(self._draining, self._left(), evacuating))

    def _left(self) -> int:
        """Requests that are not over; one, if another engine may still have to read their KV."""
        load = self._watch.load
        requests = max(self._requests.in_flight, load.running + load.waiting if load else 0)
        return requests or int(self._has_readers())

    def _has_readers(self) -> bool:
        """An idle engine that uses blocks keeps them for another one: a request's prefill ends
        with its answer, and only then are its blocks fetched.

        What was told before the last request had ended does not tell of its blocks. Nobody begins
        to read later than the lease lasts, and an engine that tells nothing new while it is idle
        (TensorRT-LLM) would say so for ever: that long is waited for.
        """
        facts, load = self._watch.facts, self._watch.load
        if facts is None or facts.transfer is None or load is None:
            return False
        if min(self._requests.quiet_s, self._watch.quiet_s) > facts.transfer.lease_s:
            return False
        return load.used_blocks > 0 or self._requests.quiet_s <= self._watch.load_age_s

    def _idle(self) -> bool:
        return not self._left()

    async def _report(self) -> None:
        """Say how busy the engine is, at each interval, and at once when something has changed."""
        while True:
            with anyio.move_on_after(self._settings.load_interval_s):
                await self._hurry.wait()
            self._hurry = anyio.Event()
            if self._watch.facts and self._watch.load:
                usage = self._usage.take(self._watch.load, anyio.current_time())
                self._metrics.used(self._record(self._watch.facts), usage)
                steps = await self._outbox.report(
                    self._watch.load,
                    total_blocks=self._watch.facts.total_blocks,
                    healthy=self._watch.healthy,
                    draining=self._draining,
                )
                await self._drafts.take(steps, self._watch.load.work, anyio.current_time())

    def _tell(self) -> None:
        """Let the registry and the routers know how the engine is now."""
        if facts := self._watch.facts:
            self._presence.tell(self._record(facts), _card(facts))
        self._hurry.set()

    def _record(self, facts: EngineFacts) -> WorkerRecord:
        settings = self._settings
        return WorkerRecord(
            worker=WorkerId(settings.worker),
            incarnation=self.incarnation,
            model=facts.model,
            engine=settings.engine,
            engine_version=facts.version,
            url=settings.public_url or settings.engine_url,
            role=Role(settings.role),
            state=self._state(),
            block_tokens=facts.block_tokens,
            total_blocks=facts.total_blocks,
            max_batched_tokens=facts.max_batched_tokens,
            max_running=facts.max_running,
            kv_events=facts.kv_events,
            hardware=self._hardware,
            taints=settings.taints,
            adapters=self._watch.load.adapters if self._watch.load else (),
            loads_adapters=settings.loads_adapters,
            capabilities=settings.capabilities,
            transfer=facts.transfer,
            agent_version=VERSION,
            secret_mark=self._secret_mark,
        )

    def _state(self) -> WorkerState:
        if self._draining:
            return WorkerState.DRAINING
        return WorkerState.READY if self._watch.healthy else WorkerState.UNHEALTHY

    def _expose(self) -> None:
        metrics = self._metrics
        metrics.watch("live_blocks", "KV blocks live in the GPU tier.", lambda: self._live.blocks)
        metrics.watch(
            "weights_gb",
            "Memory that the model takes of all accelerators, as declared; 0: not known.",
            lambda: self._hardware.weights_gb,
        )
        metrics.watch(
            "orphan_blocks", "Blocks that cannot be named yet.", lambda: self._watch.orphans
        )
        metrics.watch(
            "engine_healthy", "1 while the engine may serve.", lambda: float(self._watch.healthy)
        )
        metrics.watch_load(lambda: self._watch.load)
        metrics.watch(
            "total_blocks",
            "KV blocks that the engine has.",
            lambda: self._watch.facts.total_blocks if self._watch.facts else 0,
        )
        metrics.watch(
            "requests_in_flight",
            "Requests sent to the engine and not known to have ended.",
            lambda: self._requests.in_flight,
        )


def _card(facts: EngineFacts) -> ModelCard:
    tokenizer = facts.tokenizer
    if tokenizer is None:
        return ModelCard(name=facts.model, context_tokens=facts.context_tokens)
    return ModelCard(
        name=facts.model,
        context_tokens=facts.context_tokens,
        tokenizer_json=tokenizer.json,
        tokenizer_path=None if tokenizer.json else tokenizer.path,
        chat_template=tokenizer.chat_template,
        special_tokens=tokenizer.special_tokens,
    )
