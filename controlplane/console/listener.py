"""The console's ears: everything that is said on the bus and the board can use."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio
from prometheus_client import CollectorRegistry, Counter

from controlplane.console.board import Board
from proto.codec import Reader, Unreadable
from proto.decisions import Decision
from proto.load import LoadReport
from proto.progress import Progress
from proto.records import RequestRecord
from proto.scaling import PlanTick
from proto.subjects import Subjects
from proto.transfers import Transition
from proto.wire.ports import Bus

T = TypeVar("T")

QUEUE_MESSAGES = 8_192
"""What comes faster than it is taken is not shown."""


class Listener:
    """Feeds a board until cancelled; what cannot be read is counted and skipped."""

    def __init__(
        self, bus: Bus, subjects: Subjects, board: Board, metrics: CollectorRegistry
    ) -> None:
        self._bus = bus
        self._subjects = subjects
        self._board = board
        self._unreadable = Counter(
            "tokenplane_console_unreadable_messages",
            "Messages skipped because they could not be read",
            ["kind"],
            registry=metrics,
        )

    async def run(self) -> None:
        """Listen until cancelled."""
        subjects, board = self._subjects, self._board
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow, subjects.every_load, LoadReport, board.saw_load)
            tasks.start_soon(self._follow, subjects.every_progress, Progress, board.saw_progress)
            tasks.start_soon(self._follow, subjects.requests, RequestRecord, board.saw_end)
            tasks.start_soon(self._follow, subjects.decisions, Decision, board.saw_decision)
            tasks.start_soon(self._follow, subjects.transitions, Transition, board.saw_transition)
            tasks.start_soon(self._follow, subjects.plan, PlanTick, board.saw_plan)

    async def _follow(self, subject: str, kind: type[T], take: Callable[[T, float], None]) -> None:
        reader = Reader[T](kind)
        async with self._bus.subscribe(subject, queue_messages=QUEUE_MESSAGES) as messages:
            async for message in messages:
                try:
                    body = reader.open(message.data).body
                except Unreadable:
                    self._unreadable.labels(kind.__name__).inc()
                    continue
                take(body, anyio.current_time())
