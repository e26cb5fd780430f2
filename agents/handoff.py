"""The transfer coordinator's commands, carried out on one engine.

Doing a command twice is as good as doing it once, and none waits for longer than its adapter does.
An engine that cannot be told something says so: its own lease then does it, later.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from opentelemetry.trace import SpanKind

from agents.adapters.protocol import EngineAway, EngineHandoff, EngineHash
from agents.metrics import AgentMetrics
from controlplane.runtime.tracing import extract, tracer
from proto.codec import Producer, Reader, Unreadable
from proto.ids import WorkerId
from proto.subjects import Subjects
from proto.transfers import Command, CommandReply, Outcome, Verb
from proto.wire.errors import RequestRefused
from proto.wire.ports import Endpoint, Message

spans = tracer(__name__)

Act = Callable[[Command], Awaitable[CommandReply]]


class Handoff:
    """Endpoints for every verb; `engine` knows how."""

    def __init__(
        self,
        engine: EngineHandoff,
        subjects: Subjects,
        worker: WorkerId,
        producer: Producer,
        metrics: AgentMetrics,
        block_of: Callable[[int], EngineHash | None],
    ) -> None:
        self._engine = engine
        self._block_of = block_of
        self._subjects = subjects
        self._worker = worker
        self._producer = producer
        self._metrics = metrics
        self._commands = Reader[Command](Command)

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """To be served while the agent runs."""
        return [
            Endpoint(
                verb.value,
                self._subjects.agent(self._worker, verb),
                partial(self._obey, verb),
                group=None,
                concurrency=16,
                queue_messages=1024,
            )
            for verb in Verb
        ]

    async def _obey(self, verb: Verb, message: Message) -> bytes:
        try:
            command = self._commands.open(message.data).body
        except Unreadable as error:
            self._metrics.unreadable.labels("command").inc()
            raise RequestRefused(400, str(error)) from error
        with spans.start_as_current_span(
            f"agent.{verb}", context=extract(message.headers), kind=SpanKind.SERVER
        ) as span:
            span.set_attribute("tokenplane.ticket", command.ticket)
            span.set_attribute("tokenplane.worker", self._worker)
            try:
                reply = await self._act(verb)(command)
            except EngineAway as error:
                reply = CommandReply(Outcome.FAILED, str(error))
            span.set_attribute("tokenplane.outcome", reply.outcome)
        self._metrics.commands.labels(verb, reply.outcome).inc()
        return self._producer.seal(reply)

    def _act(self, verb: Verb) -> Act:
        match verb:
            case Verb.ABORT_PREFILL | Verb.ABORT_DECODE:
                return self._engine.abort
            case Verb.RELEASE:
                return self._engine.release
            case Verb.REPLICATE:
                return self._engine.replicate
            case Verb.OFFER:
                return self._offer

    async def _offer(self, command: Command) -> CommandReply:
        block = self._block_of(command.tail)
        if block is None:
            return CommandReply(Outcome.GONE, "it is not cached any more")
        return await self._engine.offer(command, block)
