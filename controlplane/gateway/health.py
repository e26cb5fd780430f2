"""Health by progress: who does not get on with what it has begun is given nothing new.

An engine can hang with its doors open: it takes connections, its probes say 200, and no token
comes. What it cannot fake is progress. Every second the streams that have begun are looked at;
where none of a worker's moves for `stuck_s` though somebody waits for it, the worker is put into
quarantine and asked for one token. If that comes it was a pause, and all is as before. If not, its
streams are broken off, so that they go on elsewhere, and it is asked again now and then.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio
import msgspec

from controlplane.gateway.flight import Flight
from controlplane.gateway.metrics import GatewayMetrics
from controlplane.gateway.openai import Api
from controlplane.gateway.routing import Routing
from controlplane.gateway.settings import GatewaySettings
from controlplane.gateway.telling import Teller
from controlplane.registry.view import RegistryView
from proto.ids import WorkerId
from proto.progress import Phase
from proto.route import Chosen
from proto.wire.errors import HttpError
from proto.wire.ports import Http, HttpTimeouts
from proto.workers import PROBE_PROMPT, WorkerRecord

log = logging.getLogger(__name__)

LOOK_S = 1.0
PROBE_AGAIN_S = 1.0
PROBE_AGAIN_MAX_S = 15.0
STUCK = "engine_stuck"


@dataclass(eq=False)
class Exchange:
    """One leg of an answer, under way on a worker."""

    flight: Flight
    chosen: Chosen
    told_s: float
    """When routers last heard that it runs."""


@dataclass(eq=False)
class Stream(Exchange):
    """One that is streamed. Whoever carries it says while it is `held` by its client, which is not
    the engine's fault."""

    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    held: bool = False
    seen_tokens: int = 0
    """When it was looked at last."""
    begun: bool = False
    """The worker has said something."""

    def look(self) -> bool:
        """Whether it has moved since the last look."""
        moved = self.flight.output_tokens > self.seen_tokens
        self.seen_tokens = self.flight.output_tokens
        self.begun = self.begun or moved
        return moved


class Standstill:
    """Since when none of a worker's streams has moved. Pure."""

    def __init__(self) -> None:
        self._since_s: dict[WorkerId, float] = {}

    def look(self, moves: Mapping[WorkerId, bool], now_s: float) -> dict[WorkerId, float]:
        """For how long each worker stands still. `moves` has those that somebody waits for, and
        whether anything of theirs has moved since the last look."""
        since_s = {w: self._since_s.get(w, now_s) for w in moves}
        self._since_s = {w: now_s if moves[w] else since_s[w] for w in moves}
        return {w: now_s - since_s for w, since_s in self._since_s.items()}


class Health:
    """Watches streams, and keeps workers in quarantine."""

    def __init__(
        self,
        settings: GatewaySettings,
        http: Http,
        routing: Routing,
        view: RegistryView,
        metrics: GatewayMetrics,
        teller: Teller,
    ) -> None:
        self.adopt(settings)
        self._http = http
        self._view = view
        self._metrics = metrics
        self._teller = teller
        self._streams: set[Stream] = set()
        self._unseen: set[Exchange] = set()
        self._standstill = Standstill()
        self._quarantined = routing.quarantined
        metrics.quarantined.set_function(lambda: len(self._quarantined))

    def adopt(self, settings: GatewaySettings) -> None:
        """Be patient by other settings from now on."""
        self._alive_s = settings.alive_s
        self._stuck_s = settings.stuck_s
        self._timeouts = HttpTimeouts(settings.connect_s, settings.probe_s, settings.probe_s)

    @contextmanager
    def watched(self, flight: Flight, chosen: Chosen) -> Iterator[Stream]:
        """A worker answers with a stream; its scope is cancelled if the worker is stuck."""
        stream = Stream(flight, chosen, anyio.current_time(), seen_tokens=flight.output_tokens)
        self._streams.add(stream)
        try:
            yield stream
        finally:
            self._streams.discard(stream)

    @contextmanager
    def unseen(self, flight: Flight, chosen: Chosen) -> Iterator[None]:
        """A worker is at an answer of which nothing is seen until it is whole: that it runs is all
        that routers can be told."""
        exchange = Exchange(flight, chosen, anyio.current_time())
        self._unseen.add(exchange)
        try:
            yield
        finally:
            self._unseen.discard(exchange)

    async def run(self) -> None:
        """Look until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                await anyio.sleep(min(LOOK_S, self._stuck_s / 2))
                now_s = anyio.current_time()
                for exchange in self._unseen:
                    self._tell(exchange, Phase.DISPATCHED, now_s)
                moves: dict[WorkerId, bool] = {}
                for stream in tuple(self._streams):
                    moved = stream.look()
                    if moved:
                        stream.flight.timed(now_s)
                        self._tell(stream, Phase.ALIVE, now_s)
                    elif not stream.begun:
                        self._tell(stream, Phase.DISPATCHED, now_s)
                    if moved or (stream.begun and not stream.held):
                        worker = stream.chosen.worker
                        moves[worker] = moves.get(worker, False) or moved
                for worker, still_s in self._standstill.look(moves, now_s).items():
                    if still_s >= self._stuck_s and worker not in self._quarantined:
                        self._quarantined.add(worker)
                        tasks.start_soon(self._quarantine, worker)

    def _tell(self, exchange: Exchange, phase: Phase, now_s: float) -> None:
        """Now and then, lest routers take it for lost."""
        if now_s - exchange.told_s >= self._alive_s:
            exchange.told_s = now_s
            self._teller.tell(exchange.flight, exchange.chosen, phase)

    def _of(self, worker: WorkerId) -> list[Stream]:
        return [stream for stream in self._streams if stream.chosen.worker == worker]

    async def _quarantine(self, worker: WorkerId) -> None:
        """Until it answers a probe, or is no longer who it was."""
        known, pause_s = self._view.workers.get(worker), PROBE_AGAIN_S
        log.warning("%s: no stream moves; nothing new for it until it answers a probe", worker)
        try:
            while known is not None and not await self._answers(known):
                self._teller.worker_failed(worker, STUCK)
                for stream in self._of(worker):
                    stream.scope.cancel()
                await anyio.sleep(pause_s)
                pause_s = min(PROBE_AGAIN_MAX_S, 2 * pause_s)
                now = self._view.workers.get(worker)
                known = now if now and now.incarnation == known.incarnation else None
        finally:
            self._quarantined.discard(worker)
        log.warning("%s: out of quarantine", worker)

    async def _answers(self, known: WorkerRecord) -> bool:
        """Whether the worker says one token, or at least why not."""
        body = msgspec.json.encode({"model": known.model, "prompt": PROBE_PROMPT, "max_tokens": 1})
        url = known.url + Api.COMPLETIONS.value
        headers = {"content-type": "application/json"}
        probe = self._http.exchange(
            "POST", url, body=body, headers=headers, timeouts=self._timeouts
        )
        try:
            async with probe as response:
                await response.read()
                answered = response.status < 500
        except HttpError as error:
            log.warning("%s does not answer a probe: %s", known.worker, error)
            answered = False
        self._metrics.probes.labels("answered" if answered else "failed").inc()
        return answered
