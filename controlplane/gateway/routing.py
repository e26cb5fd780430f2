"""Where a request goes: ask a router, and choose by ourselves when none answers."""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from itertools import compress
from typing import NamedTuple

import anyio
import msgspec
from opentelemetry.trace import SpanKind

from controlplane.gateway.metrics import GatewayMetrics
from controlplane.gateway.models import served
from controlplane.gateway.openai import Ask
from controlplane.gateway.routers import Routers
from controlplane.gateway.settings import GatewaySettings
from controlplane.gateway.tenants import ANONYMOUS, Tenant
from controlplane.registry.view import RegistryView
from controlplane.runtime.tracing import step, tracer
from proto.codec import Unreadable
from proto.constraints import UNCONSTRAINED, Constraints
from proto.engine_choice import EngineRules
from proto.hashing import BlockHasher, Scope, pack
from proto.ids import NAME_MAX_CHARS, RequestId, WorkerId
from proto.route import (
    NO_WORKER,
    UNKNOWN_MODEL,
    Chosen,
    Rejected,
    RouteLeg,
    RouteRequest,
    Verdict,
)
from proto.wire.errors import BusError, RequestRefused
from proto.workers import Role, WorkerRecord, WorkerState

log = logging.getLogger(__name__)
spans = tracer("tokenplane.gateway")

HASHERS_MAX = 1_024
FALLBACK = "fallback"
"""The policy that is reported when the gateway chose by itself."""


@dataclass(frozen=True)
class Hints:
    """Who asks, and what a client may say about how it wants to be routed."""

    policy: str = ""
    session: str = ""
    tenant: Tenant = ANONYMOUS
    constraints: Constraints = UNCONSTRAINED
    workload: tuple[str, ...] = ()


class Crew(NamedTuple):
    """What is to be known of a model's workers, taken together."""

    block_sizes: frozenset[int]
    """In tokens."""
    splits: bool
    """Some of them only prefill."""


class Routing:
    """Asks routers; keeps just enough of its own to go on without them."""

    def __init__(
        self,
        settings: GatewaySettings,
        secret: bytes,
        view: RegistryView,
        metrics: GatewayMetrics,
        routers: Routers,
    ) -> None:
        self._settings = settings
        self._secret = secret
        self._view = view
        self._rules = EngineRules(settings.engine_rules)
        self._metrics = metrics
        self._routers = routers
        self._hashers: dict[tuple[Scope, int], BlockHasher] = {}
        self._crews: dict[str, Crew] = {}
        self._crews_as_of = 0
        """`changes` of the view."""
        self._in_flight: Counter[WorkerId] = Counter()
        self._inhibited: dict[WorkerId, float] = {}
        self.quarantined: set[WorkerId] = set()
        """Whom nothing new is given to, as `health` has found them stuck."""

    def adopt(self, settings: GatewaySettings) -> None:
        """Ask by other settings from now on."""
        self._settings = settings
        self._routers.adopt(settings)

    def opened(self, worker: WorkerId) -> None:
        """A request of ours runs on the worker."""
        self._in_flight[worker] += 1

    def closed(self, worker: WorkerId) -> None:
        """It no longer does."""
        self._in_flight[worker] -= 1
        if not self._in_flight[worker]:
            del self._in_flight[worker]

    def inhibit(self, worker: WorkerId) -> None:
        """The worker has just failed us; leave it alone for a while (KR19)."""
        self._inhibited[worker] = anyio.current_time() + self._settings.inhibit_s

    async def choose(
        self,
        request: RequestId,
        ask: Ask,
        tokens: array[int] | None,
        hints: Hints,
        attempt: int,
        failed: Collection[WorkerId],
        leg: RouteLeg | None = None,
    ) -> Verdict:
        """A worker for the prompt, or why there is none, for the `attempt` that comes after those
        of `failed` workers. Without a `leg` it is for all that is to be answered, of which another
        worker may do the prefill where there are such. Raises `RequestRefused` (400) when a router
        finds the request itself wrong."""
        known = served(self._view, ask.model)
        model, adapter = (known.card.name, known.adapter) if known else (ask.model, "")
        scope = Scope(model, adapter, ask.cache_salt)
        route = RouteRequest(
            request=request,
            model=model,
            prompt_tokens=ask.guessed_prompt_tokens
            if tokens is None
            else len(tokens) + ask.unread_tokens,
            blocks=self._names(scope, tokens) if tokens is not None else {},
            expected_output_tokens=ask.expected_output_tokens,
            tenant=hints.tenant.name,
            slo_class=hints.tenant.slo_class,
            priority=hints.tenant.priority,
            session=hints.session,
            policy=hints.policy,
            exclude=tuple({*failed, *self.quarantined}),
            attempt=attempt,
            constraints=msgspec.structs.replace(hints.constraints, adapter=adapter),
            leg=(RouteLeg.DECODE if self._crew(model).splits else RouteLeg.WHOLE)
            if leg is None
            else leg,
            workload=hints.workload,
        )
        with step(spans, "gateway.route", SpanKind.CLIENT) as span:
            began_s = anyio.current_time()
            try:
                reply = await self._routers.decide(route)
            except (BusError, Unreadable) as error:
                if isinstance(error, RequestRefused) and error.code < 500:
                    raise
                self._metrics.fallbacks.labels(type(error).__name__).inc()
                log.warning("no router answered (%s); choosing by myself", error)
                reply = self._by_myself(route)
            self._metrics.route_s.observe(anyio.current_time() - began_s)
            if isinstance(reply, Chosen):
                span.set_attribute("tokenplane.worker", reply.worker)
                span.set_attribute("tokenplane.policy", reply.policy)
                if reply.engine_choice:
                    span.set_attribute("tokenplane.engine_choice", reply.engine_choice)
            else:
                span.set_attribute("tokenplane.rejected", reply.reason)
            return reply

    async def choose_prefill(
        self,
        request: RequestId,
        ask: Ask,
        tokens: array[int] | None,
        hints: Hints,
        attempt: int,
        failed: Collection[WorkerId],
    ) -> Chosen | None:
        """A worker that would prefill for another one, None if there is none."""
        try:
            reply = await self.choose(
                leg_request(request), ask, tokens, hints, attempt, failed, RouteLeg.PREFILL
            )
        except BusError as error:
            log.warning("no prefill worker was chosen: %s", error)
            return None
        return reply if isinstance(reply, Chosen) else None

    def splits(self, record: WorkerRecord) -> bool:
        """Whether another worker may prefill for this one."""
        return record.role is Role.DECODE and self._crew(record.model).splits

    def _crew(self, model: str) -> Crew:
        """Of a model's workers; every request asks, and they seldom change."""
        if self._crews_as_of != self._view.changes:
            self._crews.clear()
            self._crews_as_of = self._view.changes
        crew = self._crews.get(model)
        if crew is None:
            workers = [r for r in self._view.workers.values() if r.model == model]
            sizes = frozenset(r.block_tokens for r in workers)
            crew = Crew(sizes, any(r.role is Role.PREFILL for r in workers))
            if workers:
                self._crews[model] = crew
        return crew

    def _by_myself(self, route: RouteRequest) -> Verdict:
        """The worker with the fewest of our own requests; the request plane outlives routers, and
        for a while the registry too."""
        if self._blind():
            return Rejected(NO_WORKER, "neither routers nor the registry have answered for long")
        known = [r for r in self._view.workers.values() if r.model == route.model]
        if not known:
            return Rejected(UNKNOWN_MODEL, f"no worker serves {route.model!r}")
        ready = [
            r
            for r in known
            if r.state is WorkerState.READY
            and (r.role is Role.PREFILL) == (route.leg is RouteLeg.PREFILL)
            and r.worker not in route.exclude
            and not route.constraints.refusal(r)
            and not self._rules.refuses(route, r)
        ]
        if not ready:
            return Rejected(NO_WORKER, "no worker is ready that meets the request's demands")
        avoided = self._avoided()
        free = [r for r in ready if r.worker not in avoided] or ready
        preferred = self._rules.preference(route.workload, [r.engine for r in free])
        if preferred is not None:
            free = list(compress(free, preferred.kept))
        best = min(free, key=lambda r: (self._in_flight[r.worker], hash((route.request, r.worker))))
        return Chosen(
            worker=best.worker,
            incarnation=best.incarnation,
            url=best.url,
            router="",
            policy=FALLBACK,
            overlap_blocks=0,
            block_tokens=best.block_tokens,
            engine_choice=preferred.reason if preferred else "",
        )

    def _blind(self) -> bool:
        """What we know of workers is too old to go by."""
        since_s = self._view.stale_since
        return since_s is not None and anyio.current_time() - since_s > self._settings.blind_s

    def _avoided(self) -> set[WorkerId]:
        now_s = anyio.current_time()
        self._inhibited = {w: until for w, until in self._inhibited.items() if until > now_s}
        return set(self._inhibited)

    def _names(self, scope: Scope, tokens: array[int]) -> dict[int, bytes]:
        """Packed block names for each block size among the model's workers."""
        sizes = self._crew(scope.model).block_sizes
        return {size: pack(self._hasher(scope, size).names(tokens)) for size in sizes}

    def _hasher(self, scope: Scope, block_tokens: int) -> BlockHasher:
        key = (scope, block_tokens)
        hasher = self._hashers.get(key)
        if hasher is None:
            if len(self._hashers) >= HASHERS_MAX:
                self._hashers.clear()  # cheap to make again, and tenants choose their salts
            hasher = self._hashers[key] = BlockHasher(self._secret, scope, block_tokens)
        return hasher


def leg_request(request: RequestId) -> RequestId:
    """By this name the prefill leg of a request is routed and booked: it is a piece of work of its
    own, on another worker. Where that is too long the beginning goes, which is the client's."""
    suffix = "-prefill"
    return RequestId(request[len(suffix) - NAME_MAX_CHARS :] + suffix)
