"""Commands to agents."""

from __future__ import annotations

from controlplane.runtime.tracing import inject
from proto.codec import Producer, Reader
from proto.subjects import Subjects
from proto.transfers import Command, CommandReply, End, Ticket, Verb
from proto.wire.ports import Bus


class Commander:
    """Tells the agent of either end of a ticket to do something."""

    def __init__(self, bus: Bus, subjects: Subjects, producer: Producer) -> None:
        self._bus = bus
        self._subjects = subjects
        self._producer = producer
        self._replies = Reader[CommandReply](CommandReply)

    async def tell(
        self, end: End, verb: Verb, ticket: Ticket, timeout_s: float, handle: bytes = b""
    ) -> CommandReply:
        """Raises `BusError`, `Unreadable`."""
        command = Command(
            ticket.id,
            ticket.fence,
            verb,
            ticket.request,
            end.incarnation,
            handle,
            ticket.tail,
        )
        answer = await self._bus.request(
            self._subjects.agent(end.worker, verb),
            self._producer.seal(command),
            timeout_s=timeout_s,
            headers=inject(),
        )
        return self._replies.open(answer.data).body
