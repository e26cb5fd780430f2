"""A worker that takes no more requests leaves what it caches to those who stay.

Once in every drain its agent asks the engine what was used last, and the coordinator to have it
moved where that pays. Nobody waits for it longer than `patience_s`; what is not moved is computed
again.
"""

from __future__ import annotations

import logging

import anyio

from agents.adapters.protocol import EngineAway, EngineHandoff, EngineUnfit
from agents.metrics import AgentMetrics
from agents.watch import EngineWatch
from controlplane.runtime.tracing import inject, tracer
from proto.codec import Producer, Reader, Unreadable
from proto.ids import WorkerId
from proto.subjects import Subjects
from proto.transfers import Chain, Evacuate, Evacuated
from proto.wire.errors import BusError
from proto.wire.ports import Bus

log = logging.getLogger(__name__)
spans = tracer(__name__)

CHAINS_MAX = 512
"""That are spoken of; older ones are given up."""


class Evacuation:
    """Of one worker; `begin` and `forget` may be called at any time."""

    def __init__(
        self,
        patience_s: float,
        engine: EngineHandoff,
        watch: EngineWatch,
        bus: Bus,
        subjects: Subjects,
        producer: Producer,
        metrics: AgentMetrics,
    ) -> None:
        self._patience_s = patience_s
        self._engine = engine
        self._watch = watch
        self._bus = bus
        self._subject = subjects.transfer("evacuate")
        self._producer = producer
        self._metrics = metrics
        self._replies = Reader[Evacuated](Evacuated)
        self._wanted = anyio.Event()
        self._ended = anyio.Event()
        self._ended.set()

    @property
    def under_way(self) -> bool:
        """It has begun, and others have not got everything yet."""
        return not self._ended.is_set()

    def begin(self) -> None:
        """The worker drains. Once until `forget`."""
        transfer = self._watch.facts.transfer if self._watch.facts else None
        if self._patience_s and transfer and transfer.copies and not self._wanted.is_set():
            if not self.under_way:
                self._ended = anyio.Event()
            self._wanted.set()

    def forget(self) -> None:
        """The worker serves again, and may drain another time. What is under way goes on, and is
        that of a drain that begins before its end."""
        self._wanted = anyio.Event()

    async def ended(self) -> None:
        """Wait until nothing more will be moved."""
        await self._ended.wait()

    async def run(self, worker: WorkerId, incarnation: int) -> None:
        """See to it, until cancelled."""
        while True:
            await self._wanted.wait()
            outcome = "late"
            with spans.start_as_current_span("agent.evacuate") as span:
                with anyio.move_on_after(self._patience_s):
                    outcome = await self._evacuate(worker, incarnation)
                span.set_attribute("tokenplane.worker", worker)
                span.set_attribute("tokenplane.outcome", outcome)
            self._metrics.evacuations.labels(outcome).inc()
            self._ended.set()
            wanted = self._wanted
            while self._wanted is wanted and wanted.is_set():
                await self._watch.next_poll()

    async def _evacuate(self, worker: WorkerId, incarnation: int) -> str:
        """What came of it, in a word."""
        try:
            chains = await self._chains()
        except (EngineAway, EngineUnfit) as error:
            log.warning("what the engine caches is not moved: %s", error)
            return "engine_away"
        if not chains or self._watch.facts is None:
            return "nothing"
        said = Evacuate(worker, incarnation, self._watch.facts.model, chains)
        try:
            answer = await self._bus.request(
                self._subject,
                self._producer.seal(said),
                timeout_s=self._patience_s,
                headers=inject(),
            )
            moved = self._replies.open(answer.data).body
        except (BusError, Unreadable) as error:
            log.warning("nobody moves what the engine caches: %s", error)
            return "no_coordinator"
        log.info("%d of %d chains were moved, %d bytes", moved.chains, len(chains), moved.kv_bytes)
        return "moved" if moved.chains else "stays"

    async def _chains(self) -> tuple[Chain, ...]:
        return tuple(self._watch.chains_of(await self._engine.latest(CHAINS_MAX)))
