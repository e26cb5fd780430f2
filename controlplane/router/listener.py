"""What a router hears: KV batches, load, progress and other routers' bookings, into the core."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from controlplane.registry.membership import Change, Joined, Left, Updated
from controlplane.router.core import RouterCore
from controlplane.router.ingest import Lane
from controlplane.router.metrics import RouterMetrics
from controlplane.router.room import WaitingRoom
from controlplane.router.snapshots import Repair
from proto.codec import Envelope, Reader, Unreadable
from proto.kv import KvBatch
from proto.load import LoadReport
from proto.progress import Bookings, Progress, Withdrawn
from proto.subjects import Subjects
from proto.wire.ports import Bus, Message, Subscription
from proto.workers import WorkerRecord

log = logging.getLogger(__name__)

T = TypeVar("T")

TURN_BYTES = 32 << 10
"""Taken in before route requests get a turn: 4,096 blocks or so, two milliseconds of work."""
MESSAGE_BYTES = 512
"""What a message weighs beside its content."""


class Listener:
    """Follows the bus and the registry, and sees to it that what the core believes is true."""

    def __init__(
        self,
        bus: Bus,
        subjects: Subjects,
        core: RouterCore,
        repair: Repair,
        metrics: RouterMetrics,
        clock: Callable[[], float],
        room: WaitingRoom,
    ) -> None:
        self._bus = bus
        self._subjects = subjects
        self._core = core
        self._repair = repair
        self._metrics = metrics
        self._clock = clock
        self._room = room
        self._subscriptions: dict[str, Subscription] = {}
        self._take_progress: Callable[[], None]

    @asynccontextmanager
    async def listening(self, tasks: TaskGroup) -> AsyncIterator[None]:
        """Once entered, nothing that is said is missed; `tasks` reads it, and runs repairs."""
        subjects = self._subjects
        async with AsyncExitStack() as stack:
            follow = partial(self._follow, stack, tasks)
            await follow(subjects.every_kv, KvBatch, partial(self._on_kv, tasks))
            await follow(subjects.every_load, LoadReport, partial(self._on_load, tasks))
            self._take_progress = await follow(subjects.every_progress, Progress, self._on_progress)
            await follow(subjects.every_ledger, Bookings, self._on_bookings)
            await follow(subjects.withdrawn, Withdrawn, self._on_withdrawn)
            yield

    def on_change(self, tasks: TaskGroup, change: Change) -> None:
        """The registry shows another fleet."""
        match change:
            case Joined(record) | Updated(record, _):
                self._core.worker_joined(record)
                if record.kv_events:
                    self._keep_lane(tasks, record)
            case Left(record):
                self._core.worker_left(record.worker)
                self._repair.forget(record.worker)
        self._room.stir()

    def hear_progress(self) -> None:
        """Take in what has been told of requests until now. Questions are answered where they are
        read: who has just been served and asks again is to find its worker free."""
        self._take_progress()

    def dropped(self) -> dict[str, int]:
        """Messages lost since the start because they came faster than they were read, by kind."""
        return {kind: each.dropped for kind, each in self._subscriptions.items()}

    async def _follow(
        self,
        stack: AsyncExitStack,
        tasks: TaskGroup,
        subject: str,
        kind: type[T],
        take: Callable[[Envelope[T]], None],
    ) -> Callable[[], None]:
        """Returns what takes in, at once, all that waits."""
        reader = Reader[T](kind)
        messages = await stack.enter_async_context(self._bus.subscribe(subject))
        self._subscriptions[kind.__name__] = messages
        self._metrics.unreadable.labels(kind.__name__)  # there from the start, so that 1 is a rise

        def hear(message: Message) -> None:
            try:
                take(reader.open(message.data))
            except (Unreadable, ValueError, OverflowError) as error:
                self._metrics.unreadable.labels(kind.__name__).inc()
                log.debug("skipping a message on %s: %s", message.subject, error)

        async def follow() -> None:
            taken_bytes = 0
            async for message in messages:
                hear(message)
                taken_bytes += len(message.data) + MESSAGE_BYTES
                if taken_bytes >= TURN_BYTES:
                    taken_bytes = 0
                    await checkpoint()

        def catch_up() -> None:
            while (message := messages.take()) is not None:
                hear(message)

        tasks.start_soon(follow)
        return catch_up

    def _keep_lane(self, tasks: TaskGroup, record: WorkerRecord) -> None:
        lane = self._repair.lanes.setdefault(record.worker, Lane(record.worker))
        self._repair.apply(lane.registered(record.incarnation))
        self._repair.heal(record.worker, tasks)

    def _on_kv(self, tasks: TaskGroup, envelope: Envelope[KvBatch]) -> None:
        batch = envelope.body
        lane = self._repair.lanes.get(batch.worker)
        if lane is None:
            return  # not registered: it will be asked for a snapshot when it is
        self._repair.apply(lane.offer(envelope.incarnation, envelope.sequence, batch))
        self._repair.heal(batch.worker, tasks)
        self._metrics.batches.inc()
        self._metrics.lag_s.observe(max(0.0, self._clock() - envelope.time_s))

    def _on_load(self, tasks: TaskGroup, envelope: Envelope[LoadReport]) -> None:
        report, core = envelope.body, self._core
        lane = self._repair.lanes.get(report.worker)
        # A report may overtake the batches that it speaks of, as they wait in another queue: who
        # lags would take that for a loss, and fall behind for good fetching snapshots.
        if lane is not None and not self._subscriptions[KvBatch.__name__].waiting:
            if envelope.incarnation < lane.incarnation:
                return  # the agent's last words before it started anew
            held = core.known.held(report.worker)
            self._repair.apply(lane.check(report, envelope.incarnation, held))
            self._repair.heal(report.worker, tasks)
        core.observe_load(report, anyio.current_time())
        self._room.stir()

    def _on_progress(self, envelope: Envelope[Progress]) -> None:
        self._core.progress(envelope.body, anyio.current_time())
        self._room.stir()

    def _on_bookings(self, envelope: Envelope[Bookings]) -> None:
        if envelope.producer != self._core.name:
            for booking in envelope.body.bookings:
                self._core.booked_elsewhere(booking, anyio.current_time())

    def _on_withdrawn(self, envelope: Envelope[Withdrawn]) -> None:
        self._room.withdraw(envelope.body)
        self._core.withdraw(envelope.body, anyio.current_time())
        self._room.stir()
