"""What the fleet is doing now, gathered from the same messages that everyone else hears."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import anyio

from proto.codec import Reader, Unreadable
from proto.ids import WorkerId
from proto.load import LoadReport
from proto.progress import Phase, Progress
from proto.subjects import Subjects
from proto.wire.ports import Bus

T = TypeVar("T")

RATE_WINDOW_S = 5.0
RATE_SAMPLES_MAX = 20_000
HIT_WINDOW_REPORTS = 120
"""Load reports over which a worker's hit rate is taken: half a minute at four a second."""


@dataclass
class WorkerActivity:
    """One worker's recent load reports."""

    reports: deque[LoadReport] = field(default_factory=lambda: deque(maxlen=HIT_WINDOW_REPORTS))
    heard_s: float = 0.0

    @property
    def latest(self) -> LoadReport | None:
        return self.reports[-1] if self.reports else None

    @property
    def hit_rate(self) -> float | None:
        """Share of prompt tokens found in the cache lately; None without traffic."""
        if len(self.reports) < 2:
            return None
        queried = self.reports[-1].queried_tokens - self.reports[0].queried_tokens
        cached = self.reports[-1].cached_tokens - self.reports[0].cached_tokens
        return cached / queried if queried > 0 else None


class FleetActivity:
    """Listens to load and progress; unreadable messages are skipped (routers count them)."""

    def __init__(self, bus: Bus, subjects: Subjects) -> None:
        self.workers: dict[WorkerId, WorkerActivity] = {}
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
        activity = self.workers.setdefault(report.worker, WorkerActivity())
        if activity.latest and report.queried_tokens < activity.latest.queried_tokens:
            activity.reports.clear()  # the engine started anew: its counters did too
        activity.reports.append(report)
        activity.heard_s = anyio.current_time()

    def _saw_step(self, progress: Progress) -> None:
        if progress.phase is Phase.ENDED:
            self._ended_s.append(anyio.current_time())
            self.completed += progress.outcome == "completed"
            self.failed += progress.outcome not in ("completed", "cancelled")
