from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from agents import requests
from agents.metrics import AgentMetrics
from agents.requests import RequestLog
from controlplane.runtime.tracing import inject
from proto.codec import Producer
from proto.ids import Incarnation, RequestId, WorkerId
from proto.progress import Phase, Progress
from proto.subjects import Subjects
from proto.wire.memory.bus import MemoryHub
from proto.wire.ports import Message
from tests.unit.agents.reader import wait_until

WORKER = WorkerId("w")
SUBJECTS = Subjects("test")


class Told:
    """A request log that gateways talk to; the test moves its clock and sees its spans."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.bus = MemoryHub().connect("agent")
        self.registry = CollectorRegistry()
        self._spans = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._spans))
        self.log = RequestLog(
            self.bus,
            SUBJECTS,
            WORKER,
            "sim",
            AgentMetrics(self.registry),
            lambda: self.now_s,
            self.provider.get_tracer("agent"),
        )
        self._gateway = Producer("gateway-1", Incarnation(1), lambda: self.now_s)

    def message(
        self, phase: Phase, request: str = "r", attempt: int = 1, **fields: object
    ) -> Message:
        progress = Progress(RequestId(request), WORKER, attempt, phase, **fields)  # type: ignore[arg-type]
        return Message(SUBJECTS.progress(WORKER), self._gateway.seal(progress), inject())

    def hear(self, phase: Phase, request: str = "r", attempt: int = 1, **fields: object) -> None:
        self.log.hear(self.message(phase, request, attempt, **fields))

    @property
    def ended(self) -> Sequence[ReadableSpan]:
        return self._spans.get_finished_spans()

    def outcomes(self) -> list[object]:
        return [(span.attributes or {})["tokenplane.outcome"] for span in self.ended]


@pytest.fixture
def told() -> Told:
    return Told()


def test_a_request_is_a_span_from_dispatch_to_end(told: Told) -> None:
    with told.provider.get_tracer("gateway").start_as_current_span("dispatch") as dispatch:
        told.hear(Phase.DISPATCHED)
    assert told.log.in_flight == 1
    told.hear(Phase.FIRST_TOKEN)
    told.hear(Phase.ALIVE, output_tokens=5)
    told.hear(Phase.ENDED, output_tokens=9, outcome="completed")
    assert told.log.in_flight == 0
    _, span = told.ended
    assert span.name == "agent.request"
    assert span.parent is not None
    assert span.parent.span_id == dispatch.get_span_context().span_id
    assert dict(span.attributes or {}) == {
        "tokenplane.request": "r",
        "tokenplane.attempt": 1,
        "tokenplane.worker": "w",
        "tokenplane.engine": "sim",
        "tokenplane.outcome": "completed",
        "tokenplane.output_tokens": 9,
    }
    assert [event.name for event in span.events] == ["first token"]


def test_without_a_trace_it_begins_one(told: Told) -> None:
    told.hear(Phase.DISPATCHED)
    told.hear(Phase.ENDED, outcome="cancelled")
    (span,) = told.ended
    assert span.parent is None
    assert span.context is not None
    assert span.context.trace_id != trace.INVALID_TRACE_ID


def test_attempts_are_told_apart(told: Told) -> None:
    told.hear(Phase.DISPATCHED, attempt=1)
    told.hear(Phase.DISPATCHED, attempt=2)
    told.hear(Phase.ENDED, attempt=1, outcome="engine_failed")
    assert (told.log.in_flight, told.outcomes()) == (1, ["engine_failed"])


def test_steps_may_be_missing_or_come_twice(told: Told) -> None:
    told.hear(Phase.FIRST_TOKEN)
    told.hear(Phase.ENDED)
    told.hear(Phase.DISPATCHED)
    told.hear(Phase.DISPATCHED)
    told.hear(Phase.ENDED, outcome="completed")
    told.hear(Phase.ENDED, outcome="completed")
    assert (told.log.in_flight, told.outcomes()) == (0, ["completed"])


def test_a_request_whose_end_was_lost_expires(told: Told) -> None:
    told.hear(Phase.DISPATCHED, "silent")
    told.hear(Phase.DISPATCHED, "alive")
    told.now_s = requests.QUIET_S - 1
    told.hear(Phase.ALIVE, "alive")
    told.now_s = requests.QUIET_S + 1
    told.log.expire()
    assert (told.log.in_flight, told.outcomes()) == (1, ["expired"])


def test_over_the_bound_the_quietest_goes(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "OPEN_MAX", 2)
    told.hear(Phase.DISPATCHED, "a")
    told.hear(Phase.DISPATCHED, "b")
    told.hear(Phase.ALIVE, "a")
    told.hear(Phase.DISPATCHED, "c")
    assert told.log.in_flight == 2
    (span,) = told.ended
    assert (span.attributes or {})["tokenplane.request"] == "b"


def test_an_unreadable_message_is_counted(told: Told) -> None:
    told.log.hear(Message(SUBJECTS.progress(WORKER), b"\xc1"))
    counted = told.registry.get_sample_value(
        "tokenplane_agent_unreadable_messages_total", {"subject": "progress"}
    )
    assert (told.log.in_flight, counted) == (0, 1)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_it_listens_on_its_subject_and_ends_its_spans_when_stopped(told: Told) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(told.log.run)
        await anyio.wait_all_tasks_blocked()
        message = told.message(Phase.DISPATCHED)
        await told.bus.publish(message.subject, message.data)
        await wait_until(lambda: told.log.in_flight == 1)
        assert told.log.in_flight == 1
        tasks.cancel_scope.cancel()
    assert (told.log.in_flight, told.outcomes()) == (0, ["agent stopped"])
