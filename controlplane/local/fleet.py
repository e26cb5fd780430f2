"""What the fleet is doing now, gathered from the same messages that everyone else hears."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeVar

import anyio

from controlplane.console.board import Activity
from proto.codec import Reader, Unreadable
from proto.ids import WorkerId
from proto.load import LoadReport
from proto.progress import CANCELLED, COMPLETED, Phase, Progress
from proto.subjects import Subjects
from proto.wire.ports import Bus

T = TypeVar("T")

RATE_WINDOW_S = 5.0
RATE_SAMPLES_MAX = 20_000


class FleetActivity:
    """Listens to load and progress; unreadable messages are skipped (routers count them)."""

    def __init__(self, bus: Bus, subjects: Subjects) -> None:
        self.workers: dict[WorkerId, Activity] = {}
        self._bus = bus
        self._subjects = subjects
        self._ended_s: deque[float] = deque(maxlen=RATE_SAMPLES_MAX)
        self.completed = 0
        self.failed = 0

    def requests_per_s(self, now_s: float) -> float:
        """Requests that ended within the last `RATE_WINDOW_S` seconds, per second."""
        while self._ended_s and self._ended_s[0] < now_s - RATE_WINDOW_S:
            self._ended_s.popleft()
        return len(self._ended_s) / RATE_WINDOW_S

    async def run(self) -> None:
        """Listen until cancelled."""
        loads, progress = Reader[LoadReport](LoadReport), Reader[Progress](Progress)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow, self._subjects.every_load, loads, self._saw_load)
            tasks.start_soon(self._follow, self._subjects.every_progress, progress, self._saw_step)

    async def _follow(self, subject: str, reader: Reader[T], take: Callable[[T], None]) -> None:
        async with self._bus.subscribe(subject) as messages:
            async for message in messages:
                try:
                    take(reader.open(message.data).body)
                except Unreadable:
                    continue

    def _saw_load(self, report: LoadReport) -> None:
        self.workers.setdefault(report.worker, Activity()).add(report, anyio.current_time())

    def _saw_step(self, progress: Progress) -> None:
        if progress.phase is Phase.ENDED:
            self._ended_s.append(anyio.current_time())
            self.completed += progress.outcome == COMPLETED
            self.failed += progress.outcome not in (COMPLETED, CANCELLED)
