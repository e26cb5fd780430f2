"""Request records on their way to the durable stream: written behind the requests' backs.

Those that come while others are being stored are stored next, and together, so that the pace does
not hang on how long the stream takes for one.
"""

from __future__ import annotations

import logging
from collections import deque

import anyio

from controlplane.gateway.metrics import GatewayMetrics
from controlplane.runtime.underway import Underway
from proto.codec import Producer
from proto.records import RequestRecord
from proto.subjects import Subjects
from proto.wire.errors import BusError
from proto.wire.ports import Bus, StreamSpec

log = logging.getLogger(__name__)

KEPT_S = 7 * 24 * 3600.0
KEPT_BYTES = 1 << 30
APPEND_S = 5.0
RETRY_S = 5.0
TOGETHER_MAX = 64


class RecordWriter:
    """One queue; a record that finds it full is dropped and counted."""

    def __init__(
        self,
        bus: Bus,
        subjects: Subjects,
        producer: Producer,
        metrics: GatewayMetrics,
        waiting_max: int,
    ) -> None:
        self._bus = bus
        self._subjects = subjects
        self._producer = producer
        self._metrics = metrics
        self._waiting_max = waiting_max
        self._waiting: deque[RequestRecord] = deque()
        self._news = anyio.Event()
        self._underway = Underway()

    def write(self, record: RequestRecord) -> None:
        """Never waits."""
        if len(self._waiting) >= self._waiting_max:
            self._metrics.records_dropped.inc()
            return
        self._waiting.append(record)
        self._underway.begin()
        self._news.set()

    async def run(self) -> None:
        """Store records until cancelled."""
        await self._make_stream()
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            await self.store_waiting()

    async def store_waiting(self) -> None:
        """Store those that wait; also for who has cancelled `run`."""
        while self._waiting:
            async with anyio.create_task_group() as tasks:
                for _ in range(min(len(self._waiting), TOGETHER_MAX)):
                    tasks.start_soon(self._store, self._waiting.popleft())

    async def settled(self) -> None:
        """Until every record has been stored, or dropped; the caller sets the deadline."""
        await self._underway.none()

    async def _make_stream(self) -> None:
        spec = StreamSpec(
            self._subjects.requests_stream, (self._subjects.requests,), KEPT_S, KEPT_BYTES
        )
        complained = False
        while True:
            try:
                await self._bus.ensure_stream(spec)
                return
            except BusError as error:
                if not complained:
                    log.error("request records cannot be stored: %s; trying again", error)
                complained = True
                await anyio.sleep(RETRY_S)

    async def _store(self, record: RequestRecord) -> None:
        try:
            await self._bus.append(
                self._subjects.requests, self._producer.seal(record), timeout_s=APPEND_S
            )
        except BusError as error:
            self._metrics.records_dropped.inc()
            log.warning("the record of request %s was not stored: %s", record.request, error)
        finally:
            self._underway.end()
