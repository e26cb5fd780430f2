"""The requests that gateways say this engine serves, and our part of their traces.

Gateways tell each step on the bus, at most once. A request's span begins with its dispatch, as a
child of the gateway's span, and ends with it; one whose end was lost expires.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus
from opentelemetry.trace import Span, SpanKind, Tracer

from agents.metrics import AgentMetrics
from controlplane.runtime.tracing import extract, tracer
from proto.codec import Reader, Unreadable
from proto.ids import RequestId, WorkerId
from proto.progress import Phase, Progress
from proto.subjects import Subjects
from proto.wire.ports import Bus, Message

log = logging.getLogger(__name__)

OPEN_MAX = 4_096
"""Requests followed at a time; a further one pushes out the one that was quiet for longest."""
QUIET_S = 600.0
"""A request that nobody spoke of for so long has ended unheard."""
SWEEP_S = 10.0

Attempt = tuple[RequestId, int]


class _Open:
    """A request under way."""

    def __init__(self, span: Span, heard_s: float) -> None:
        self.span = span
        self.heard_s = heard_s


class RequestLog:
    """Follows `progress.<worker>`."""

    def __init__(
        self,
        bus: Bus,
        subjects: Subjects,
        worker: WorkerId,
        engine: str,
        metrics: AgentMetrics,
        clock: Callable[[], float],
        spans: Tracer | None = None,
    ) -> None:
        self._bus = bus
        self._subject = subjects.progress(worker)
        self._worker = worker
        self._engine = engine
        self._metrics = metrics
        self._clock = clock
        self._spans = spans or tracer(__name__)
        self._reader: Reader[Progress] = Reader(Progress)
        self._open: dict[Attempt, _Open] = {}  # the one that was quiet for longest comes first
        self._ended_s = -math.inf

    @property
    def in_flight(self) -> int:
        """Requests dispatched to this engine and not known to have ended."""
        return len(self._open)

    @property
    def quiet_s(self) -> float:
        """Since a request was last heard to end; infinite before one was."""
        return self._clock() - self._ended_s

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled. Raises `BusUnavailable` if it cannot begin to."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._sweep)
                async with self._bus.subscribe(self._subject) as messages:
                    task_status.started()
                    async for message in messages:
                        self.hear(message)
        finally:
            for attempt in list(self._open):
                self._end(attempt, "agent stopped")

    def hear(self, message: Message) -> None:
        """Take one step of one request; steps may be missing or come twice."""
        try:
            progress = self._reader.open(message.data).body
        except Unreadable as error:
            self._metrics.unreadable.labels("progress").inc()
            log.debug("unreadable progress: %s", error)
            return
        attempt = (progress.request, progress.attempt)
        match progress.phase:
            case Phase.DISPATCHED:
                self._begin(attempt, message)
            case Phase.FIRST_TOKEN:
                if request := self._refresh(attempt):
                    request.span.add_event("first token")
            case Phase.ALIVE:
                self._refresh(attempt)
            case Phase.ENDED:
                self._end(attempt, progress.outcome, progress.output_tokens)

    def expire(self) -> None:
        """End what nobody spoke of for `QUIET_S`."""
        limit_s = self._clock() - QUIET_S
        for attempt in [a for a, request in self._open.items() if request.heard_s < limit_s]:
            self._end(attempt, "expired")

    async def _sweep(self) -> None:
        while True:
            await anyio.sleep(SWEEP_S)
            self.expire()

    def _begin(self, attempt: Attempt, message: Message) -> None:
        if self._refresh(attempt):
            return
        if len(self._open) >= OPEN_MAX:
            self._end(next(iter(self._open)), "pushed out")
        span = self._spans.start_span(
            "agent.request",
            context=extract(message.headers),
            kind=SpanKind.CONSUMER,
            attributes={
                "tokenplane.request": attempt[0],
                "tokenplane.attempt": attempt[1],
                "tokenplane.worker": self._worker,
                "tokenplane.engine": self._engine,
            },
        )
        self._open[attempt] = _Open(span, self._clock())

    def _refresh(self, attempt: Attempt) -> _Open | None:
        request = self._open.pop(attempt, None)
        if request:
            request.heard_s = self._clock()
            self._open[attempt] = request
        return request

    def _end(self, attempt: Attempt, outcome: str, output_tokens: int = 0) -> None:
        request = self._open.pop(attempt, None)
        if request is None:
            return
        self._ended_s = self._clock()
        request.span.set_attribute("tokenplane.outcome", outcome)
        request.span.set_attribute("tokenplane.output_tokens", output_tokens)
        request.span.end()
