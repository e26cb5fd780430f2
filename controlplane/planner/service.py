"""The planner as a service: listens to the fleet, and writes what it should be.

Every replica listens; one is in office and decides. It begins from the state that its predecessor
stored and from the last word on each pool, which it writes again: a predecessor that has not
noticed its end then finds that its own writes are refused, as each is guarded by what the writer
saw last.
Where the store, the bus or the stream of records are away nothing is decided that needs them, and
whatever was wanted last stays wanted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import anyio
import msgspec
from anyio.abc import TaskStatus
from anyio.to_thread import run_sync
from opentelemetry.trace import Span, format_trace_id
from pydantic import ValidationError

from controlplane.capacity import Kept, WorkerClass
from controlplane.planner.core import PlannerCore
from controlplane.planner.forecast import forecast
from controlplane.planner.leader import Leadership
from controlplane.planner.metrics import PlannerMetrics
from controlplane.planner.state import StateUnusable, restore, state_of
from controlplane.registry.membership import Change, Joined, Left, Updated
from controlplane.registry.view import RegistryView
from controlplane.runtime.clock import steady_clock
from controlplane.runtime.tracing import inject, tracer
from proto.codec import Envelope, Producer, Reader, Unreadable
from proto.ids import new_incarnation
from proto.load import LoadReport
from proto.records import RequestRecord
from proto.scaling import Action, Desired, PlanTick, Scaled
from proto.subjects import Keys, Subjects
from proto.wire.errors import BusError, StoreError
from proto.wire.ports import Bus, Delivery, Put, Store, StreamSpec

log = logging.getLogger(__name__)
spans = tracer("tokenplane.planner")
T = TypeVar("T")

KEPT_S = 7 * 24 * 3600.0
KEPT_BYTES = 256 << 20
APPEND_S = 3.0
RETRY_S = 2.0
DURABLE = "planner"
"""The name under which the stream of records remembers how far planners have read."""


@dataclass(frozen=True)
class Surroundings:
    """What a planner is given of the world."""

    bus: Bus
    store: Store
    subjects: Subjects
    keys: Keys
    view: RegistryView
    metrics: PlannerMetrics


class PlannerService:
    """One replica."""

    name = "planner"

    def __init__(
        self,
        core: PlannerCore,
        around: Surroundings,
        *,
        profiles: Mapping[WorkerClass, Kept] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`profiles` is what is known of engines before anybody has run them here."""
        self.core = core
        self._bus = around.bus
        self._store = around.store
        self._subjects = around.subjects
        self._keys = around.keys
        self._view = around.view
        self._metrics = around.metrics
        self._clock = clock = clock or steady_clock()
        self._profiles = profiles or {}
        self._producer = Producer(core.name, new_incarnation(clock()), clock)
        self.leadership = Leadership(
            around.store, around.keys.planner_leader, core.name, core.settings.lease_s
        )
        self._revisions: dict[str, int] = {}
        """Of each pool's key, as it was last read or written here."""
        self._saved_s = 0.0

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Listen, stand for election, and decide while in office; until cancelled."""
        loads = Reader[LoadReport](LoadReport)
        async with (
            anyio.create_task_group() as tasks,
            self._bus.subscribe(self._subjects.every_load) as messages,
        ):
            unsubscribe = self._view.subscribe(self._on_change)
            try:
                tasks.start_soon(self.leadership.run, self._in_office)
                task_status.started()
                async for message in messages:
                    try:
                        self._on_load(loads.open(message.data))
                    except Unreadable:
                        self._metrics.unreadable.labels("LoadReport").inc()
            finally:
                unsubscribe()

    async def drain(self) -> None:
        """There is nothing to finish: who is wanted stays wanted."""

    def _on_change(self, change: Change) -> None:
        match change:
            case Joined(record) | Updated(record, _):
                self.core.worker(record, self._clock())
            case Left(record):
                self.core.worker_left(record.worker)

    def _on_load(self, envelope: Envelope[LoadReport]) -> None:
        self.core.hear_load(envelope.body, self._clock())

    async def _in_office(self) -> None:
        self._metrics.leads.set(1)
        try:
            await self._take_over()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read_records)
                tasks.start_soon(self._hear_scalers)
                await self._decide()
        finally:
            self._metrics.leads.set(0)

    async def _take_over(self) -> None:
        """Go on from where the predecessor was. Raises `StoreError`."""
        kept = await self._store.get(self._keys.planner_state)
        if kept is not None:
            try:
                restore(self.core, kept.value, self._clock())
            except StateUnusable as error:
                log.warning("what the planner before has stored is of no use: %s", error)
        self.core.capacities.restore(self._profiles)
        self._revisions.clear()
        for entry in await self._store.list(self._keys.desired):
            try:
                word = Desired.model_validate_json(entry.value)
            except ValidationError as error:
                log.warning("skipping %s: %s", entry.key, error.errors(include_input=False)[0])
                self._revisions[entry.key] = entry.revision
                continue
            self.core.recall(word, self._clock())
            if self.core.settings.advisory:
                continue
            mine = word.model_copy(update={"planner": self.core.name})
            revision = await self._store.put_if(
                entry.key, mine.model_dump_json().encode(), expected_revision=entry.revision
            )
            if revision is not None:
                self._revisions[entry.key] = revision

    async def _hear_scalers(self) -> None:
        """What has come of the words, from those that act on them."""
        async with self._store.watch(self._keys.scaled) as events:
            async for event in events:
                if not isinstance(event, Put):
                    continue
                try:
                    scaled = Scaled.model_validate_json(event.entry.value)
                except ValidationError as error:
                    wrong = error.errors(include_input=False)[0]
                    log.warning("skipping %s: %s", event.entry.key, wrong["msg"])
                    continue
                if scaled.trouble:
                    log.warning("pool %s is not scaled: %s", scaled.pool.name, scaled.trouble)
                self.core.hear_scaled(scaled, self._clock())

    async def _read_records(self) -> None:
        """Requests that have ended, each at least once, from where planners have read to."""
        records = Reader[RequestRecord](RequestRecord)
        stream = self._subjects.requests_stream
        while True:
            try:
                async with self._bus.consume(stream, durable=DURABLE) as deliveries:
                    async for delivery in deliveries:
                        await self._take_record(delivery, records)
            except BusError as error:
                log.debug("no request records for now: %s", error)
            await anyio.sleep(RETRY_S)

    async def _take_record(self, delivery: Delivery, records: Reader[RequestRecord]) -> None:
        try:
            record = records.open(delivery.message.data).body
        except Unreadable:
            self._metrics.unreadable.labels("RequestRecord").inc()
        else:
            ended_s = record.arrived_s + record.duration_ms / 1000
            if ended_s >= self._clock() - self.core.settings.sample_s:
                self.core.hear_record(record, self._clock())
        await delivery.ack()

    async def _decide(self) -> None:
        spec = StreamSpec(self._subjects.plan_stream, (self._subjects.plan,), KEPT_S, KEPT_BYTES)
        stream_made = False
        while True:
            await anyio.sleep(self.core.settings.tick_s)
            if not stream_made:
                stream_made = await self._make_stream(spec)
            await self._forecast()
            with spans.start_as_current_span("planner.tick") as span:
                tick = self.core.tick(self._clock(), view_stale=self._view.stale_since is not None)
                self._tell(tick, span)
                if not self.core.settings.advisory:
                    await self._write(tick)
                if stream_made:
                    await self._append(tick, span)
            await self._save(tick)

    async def _forecast(self) -> None:
        """Off the loop, as it takes tens of milliseconds."""
        for model, (history, horizon_s) in self.core.due(self._clock()).items():
            copied = msgspec.structs.replace(history, bins=history.bins.copy())
            self.core.take(model, await run_sync(partial(forecast, copied, horizon_s)))

    def _tell(self, tick: PlanTick, span: Span) -> None:
        self._metrics.tell(tick)
        for plan in tick.phases:
            span.add_event(
                f"{plan.model} {plan.role}",
                {
                    "tokenplane.action": plan.action.value,
                    "tokenplane.reason": plan.reason.value,
                    "tokenplane.workers": plan.workers,
                    "tokenplane.wanted": plan.wanted,
                    "tokenplane.needed": plan.needed,
                    "tokenplane.floor": plan.floor,
                    "tokenplane.rate": plan.rate,
                    "tokenplane.ttft_ms": plan.ttft_ms,
                    "tokenplane.tpot_ms": plan.tpot_ms,
                    "tokenplane.decision": plan.decision,
                },
            )
            if plan.action is not Action.HOLD:
                log.info(
                    "%s %s: %s from %d to %d, as %s (needed %g, floor %d)",
                    plan.model,
                    plan.role,
                    plan.action,
                    plan.workers,
                    plan.wanted,
                    plan.reason,
                    plan.needed,
                    plan.floor,
                )
            for pool, workers in plan.drift.items():
                log.warning("pool %s has %+d workers against what is wanted", pool, workers)

    async def _write(self, tick: PlanTick) -> None:
        """The words that this tick changes. One that somebody else has overwritten ends the term:
        there is another planner in office."""
        context = inject().get("traceparent", "")
        for decided in self.core.desired(tick):
            word = decided.model_copy(update={"traceparent": context})
            key = self._keys.desired_of(word.pool.name)
            revision = await self._store.put_if(
                key,
                word.model_dump_json().encode(),
                expected_revision=self._revisions.get(key, 0),
            )
            if revision is None:
                self._metrics.refused.inc()
                raise StoreError(f"{key} was written by somebody else; standing down")
            self._revisions[key] = revision

    async def _append(self, tick: PlanTick, span: Span) -> None:
        trace = span.get_span_context().trace_id
        told = msgspec.structs.replace(tick, trace_id=format_trace_id(trace) if trace else "")
        try:
            await self._bus.append(
                self._subjects.plan,
                self._producer.seal(told),
                timeout_s=APPEND_S,
                headers=inject(),
            )
        except BusError as error:
            log.debug("this tick is not in the diary: %s", error)

    async def _make_stream(self, spec: StreamSpec) -> bool:
        try:
            await self._bus.ensure_stream(spec, timeout_s=APPEND_S)
        except BusError as error:
            log.debug("there is no diary yet: %s", error)
            return False
        return True

    async def _save(self, tick: PlanTick) -> None:
        now_s = self._clock()
        did = any(plan.action is not Action.HOLD for plan in tick.phases)
        if not did and now_s - self._saved_s < self.core.settings.state_s:
            return
        self._saved_s = now_s
        await self._store.put(self._keys.planner_state, state_of(self.core, now_s))
