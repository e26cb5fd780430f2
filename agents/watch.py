"""One engine, watched: attached to, asked how it is, listened to, given up when it has changed.

An engine that comes back as another one (a new life, other facts) is attached to anew, from an
empty live set; one that was merely away is taken up where it was left.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import anyio
import msgspec

from agents.adapters.protocol import (
    Cleared,
    EngineAdapter,
    EngineAway,
    EngineEvent,
    EngineFacts,
    EngineHash,
    EngineLoad,
    EngineUnfit,
    LossReason,
    Lost,
)
from agents.live import LiveSet
from agents.metrics import AgentMetrics
from agents.translator import Translator
from proto.transfers import Chain

log = logging.getLogger(__name__)


class Pace(msgspec.Struct, frozen=True):
    """How often an engine is asked, and how patiently."""

    interval_s: float
    misses_max: int
    """Unanswered polls in a row after which the engine is unhealthy."""
    retry_s: float
    """Between attempts to attach."""


class Listener(msgspec.Struct, frozen=True):
    """Who is told; both are called from the watch's task and must be quick."""

    cache_changed: Callable[[], None]
    state_changed: Callable[[], None]
    """The engine's facts, its health, its adapters, or all of its cache at once."""


class EngineWatch:
    """Keeps a `LiveSet` true to one engine, and knows how the engine is."""

    def __init__(
        self,
        adapter: EngineAdapter,
        live: LiveSet,
        secret: bytes,
        pace: Pace,
        listener: Listener,
        metrics: AgentMetrics,
    ) -> None:
        self._adapter = adapter
        self._live = live
        self._secret = secret
        self._pace = pace
        self._listener = listener
        self._metrics = metrics
        self._translator: Translator | None = None
        self._misses = 0
        self._restart_heard = False  # on the event stream, since the last poll that was answered
        self._polled = anyio.Event()
        self._asked_s = self._busy_s = -math.inf
        self.facts: EngineFacts | None = None
        """None before the engine was first attached."""
        self.load: EngineLoad | None = None
        """As last told."""
        self.refusal = ""
        """Why the engine may not serve although it answers; empty if it may."""

    @property
    def healthy(self) -> bool:
        """Attached, answering, and speaking of the same blocks as it did at first."""
        return self.facts is not None and not self.refusal and self._misses < self._pace.misses_max

    @property
    def load_age_s(self) -> float:
        """How long ago the engine was asked for the load that it last told."""
        return anyio.current_time() - self._asked_s

    @property
    def quiet_s(self) -> float:
        """Since it last told of a request, or was attached to: of before nothing is known."""
        return anyio.current_time() - self._busy_s

    @property
    def orphans(self) -> int:
        """Blocks of the engine that cannot be named."""
        return self._translator.orphans if self._translator else 0

    def block_of(self, name: int) -> EngineHash | None:
        """A block that the engine caches, by its canonical name."""
        return self._translator.block_of(name) if self._translator else None

    def chains_of(self, blocks: Sequence[EngineHash]) -> list[Chain]:
        """The prefixes that end in blocks of the engine's cache."""
        return self._translator.chains_of(blocks) if self._translator else []

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self._attach()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._follow)
                await self._poll_until_another_life()
                tasks.cancel_scope.cancel()

    async def next_poll(self) -> None:
        """Wait until the engine has been asked once more, whatever came of it."""
        await self._polled.wait()

    # --- how it is

    async def _attach(self) -> None:
        while True:
            try:
                facts = await self._adapter.probe()
                asked_s = anyio.current_time()
                load = await self._adapter.load()
            except EngineAway as error:
                self._missed(error)
            except EngineUnfit as error:
                self._refuse(str(error))
            else:
                break
            await anyio.sleep(self._pace.retry_s)
        log.info(
            "attached to an engine %s with %s: %d blocks of %d tokens",
            *(facts.version, facts.model, facts.total_blocks, facts.block_tokens),
        )
        if not facts.kv_events:
            log.warning(
                "NO KV EVENTS: %s, so routers can only guess what this engine caches; see "
                "docs/engines.md",
                facts.why_no_events,
            )
        self._live.clear()
        self._translator = Translator(
            self._live, self._secret, facts.model, facts.block_tokens, facts.total_blocks
        )
        self.facts, self.refusal, self._busy_s = facts, "", asked_s
        self._answered(load, asked_s)
        self._listener.cache_changed()
        self._listener.state_changed()

    async def _poll_until_another_life(self) -> None:
        while True:
            await anyio.sleep(self._pace.interval_s)
            asked_s = anyio.current_time()
            try:
                load = await self._adapter.load()
            except (EngineAway, EngineUnfit) as error:
                self._missed(error)
                continue
            if self.load and load.is_later_life(self.load):
                log.warning("the engine has restarted")
                if not await self._still_followed():
                    return
            self._answered(load, asked_s)

    async def _still_followed(self) -> bool:
        """After a restart: whether the event stream began anew by itself, for the same engine.

        Then the live set already is that of the new life, and must not be thrown away.
        """
        try:
            return self._restart_heard and await self._adapter.probe() == self.facts
        except (EngineAway, EngineUnfit):
            return False

    def _answered(self, load: EngineLoad, asked_s: float) -> None:
        was_healthy = self.healthy
        before = self.load.adapters if self.load else ()
        if self._misses:
            self._adapter.recheck()
        self.load, self._misses, self._restart_heard = load, 0, False
        self._asked_s = asked_s
        if load.running or load.waiting:
            self._busy_s = asked_s
        if not was_healthy and self.healthy:
            log.info("the engine is healthy")
            self._listener.state_changed()
        elif load.adapters != before:
            log.info("adapters: %s", ", ".join(load.adapters) or "none")
            self._listener.state_changed()
        self._tick()

    def _missed(self, error: Exception) -> None:
        self._misses += 1
        if self._misses == self._pace.misses_max:
            log.error("the engine is unhealthy: %s", error)
            self._listener.state_changed()
        self._tick()

    def _refuse(self, reason: str) -> None:
        if reason != self.refusal:
            log.error("THIS ENGINE MAY NOT SERVE: %s", reason)
        self.refusal = reason
        self._live.clear()
        self._listener.cache_changed()
        self._listener.state_changed()
        self._tick()

    def _tick(self) -> None:
        self._polled.set()
        self._polled = anyio.Event()

    # --- what it caches

    async def _follow(self) -> None:
        try:
            await self._adapter.follow(self._deliver)
        except EngineUnfit as error:
            self._refuse(str(error))

    def _deliver(self, events: Sequence[EngineEvent]) -> None:
        assert self._translator is not None
        abrupt = False
        for event in events:
            self._metrics.events.labels(type(event).__name__.lower()).inc()
            if isinstance(event, Lost):
                self._note_loss(event)
            abrupt = abrupt or isinstance(event, Lost | Cleared)
            self._translator.apply(event)
        self._listener.cache_changed()
        if abrupt:
            self._listener.state_changed()

    def _note_loss(self, loss: Lost) -> None:
        log.warning("KV events lost (%s): %s", loss.reason, loss.detail)
        self._metrics.losses.labels(loss.reason).inc()
        self._restart_heard = self._restart_heard or loss.reason is LossReason.RESTART
