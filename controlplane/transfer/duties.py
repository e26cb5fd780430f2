"""What ended tickets owe, done: commands to agents, until each has been obeyed or is void."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from controlplane.transfer.commander import Commander
from controlplane.transfer.coordinator import Walk
from controlplane.transfer.metrics import TransferMetrics
from controlplane.transfer.shelf import Shelf
from controlplane.transfer.ticket import Refused, settle
from proto.codec import Unreadable
from proto.transfers import Duty, Outcome, Ticket
from proto.wire.errors import BusError

log = logging.getLogger(__name__)

VOID = "void"
UNREACHED = "unreached"


class Duties:
    """Sees to one duty at a time; any number of calls at once."""

    def __init__(
        self,
        shelf: Shelf,
        commander: Commander,
        metrics: TransferMetrics,
        command_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._shelf = shelf
        self._commander = commander
        self._metrics = metrics
        self._command_s = command_s
        self._clock = clock

    async def do(self, ticket: Ticket, duty: Duty) -> None:
        """Command the agent, and strike the duty off if that was obeyed or is void."""
        if duty.until_s <= self._clock():
            outcome = VOID
        else:
            outcome = await self._command(ticket, duty)
        self._metrics.duties.labels(duty.verb, outcome).inc()
        if outcome in (VOID, Outcome.DONE, Outcome.GONE):
            try:
                await self._shelf.change(ticket.id, lambda now: Walk(settle(now, duty)))
            except (Refused, BusError) as error:
                log.warning("ticket %s: %s is done, but not struck off: %s",
                    ticket.id, duty.verb, error)  # fmt: skip

    async def claim(self, ticket: Ticket) -> bool:
        """Take over a ticket whose duties were left undone; False if another replica did."""
        now_s = self._clock()
        mine = msgspec.structs.replace(ticket, changed_s=now_s)

        def make(now: Ticket) -> Walk:
            return Walk(mine if now == ticket else now)

        try:
            return (await self._shelf.change(ticket.id, make)).ticket == mine
        except (Refused, BusError):
            return False

    async def _command(self, ticket: Ticket, duty: Duty) -> str:
        try:
            reply = await self._commander.tell(
                duty.end, duty.verb, ticket, self._command_s, duty.handle
            )
        except (BusError, Unreadable) as error:
            log.warning("ticket %s: %s was not told to %s: %s",
                ticket.id, duty.end.worker, duty.verb, error)  # fmt: skip
            return UNREACHED
        if reply.outcome is Outcome.FAILED:
            log.warning("ticket %s: %s could not %s: %s",
                ticket.id, duty.end.worker, duty.verb, reply.detail)  # fmt: skip
        return reply.outcome
