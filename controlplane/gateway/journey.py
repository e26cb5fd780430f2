"""One request under one ticket: its two legs, and the ways on where one of them fails.

    the prefill leg fails           another prefill worker; else the decode worker prefills
    the decode worker is lost       another one reads what is staged, while its lease holds
    the decode worker cannot read   another prefill worker; else the decode worker prefills
    anything after the first token  as for any other request (`migration`)

Whatever happens, the ticket is told of it, so that no engine keeps blocks that nobody wants.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import NamedTuple

import anyio
import msgspec

from controlplane.gateway.attempt import Attempts
from controlplane.gateway.dialects import Dialect, NoHandle, dialect_of
from controlplane.gateway.fetching import Fetching
from controlplane.gateway.flight import EngineFailed, Flight, Sink
from controlplane.gateway.landing import Landing
from controlplane.gateway.metrics import GatewayMetrics
from controlplane.gateway.migration import Leg
from controlplane.gateway.openai import ClientError
from controlplane.gateway.prefill import PrefillLegs, PrefillRefused
from controlplane.gateway.pulse import Pulse
from controlplane.gateway.routing import Routing
from controlplane.gateway.tickets import Tickets
from controlplane.registry.view import RegistryView
from proto.ids import WorkerId
from proto.route import Chosen
from proto.transfers import Denied, Report, State, Step, Ticket
from proto.workers import WorkerRecord

log = logging.getLogger(__name__)

ADMIT_TRIES = 60
"""A transfer that is not let in is asked for again, as long as its lease holds."""
LEASE_MARGIN_S = 1.0
"""Blocks are not asked for so shortly before their lease is over. The coordinator's margin, when it
lets a transfer begin, is larger."""
LOST = frozenset({"engine_unreachable", "engine_lost", "engine_silent"})


class Gone(Exception):
    """The ticket leads nowhere any more; the decode worker has to prefill by itself."""


class Means(NamedTuple):
    """What a journey is made with."""

    attempts: Attempts
    prefill: PrefillLegs
    view: RegistryView
    routing: Routing
    tickets: Tickets
    metrics: GatewayMetrics
    pulse: Pulse
    fetching: Fetching


class Journey:
    """Made for one request; travelled once."""

    def __init__(
        self, means: Means, flight: Flight, chosen: Chosen, leg: Leg, sink: Sink, ticket: Ticket
    ) -> None:
        self._to = means
        self._flight = flight
        self._chosen = chosen
        self._leg = leg
        self._sink = sink
        self._ticket = ticket
        self._excluded: list[WorkerId] = []
        self._staged_s = 0.0
        """By our clock, since when its blocks may be staged."""

    async def travel(self, prefill: Chosen | None) -> None:
        """`prefill` is what the router said of who prefills, if it is the ticket's choice, too.

        Raises `Gone` if nothing has been sent to the client, and all that `Attempts.make`
        does; then the ticket has ended."""
        try:
            if prefill is not None:
                ticket = self._ticket
                await self._to.fetching.fetch(self._flight.request, ticket.model, prefill)
            while not await self._both_legs():
                pass
        except Gone:
            raise
        except EngineFailed as failure:
            self._to.tickets.give_up(self._ticket, Step.FAIL, failure.reason)
            raise
        except ClientError as error:
            self._to.tickets.give_up(self._ticket, Step.CANCEL, error.code)
            raise
        except BaseException:
            self._to.tickets.give_up(self._ticket, Step.CANCEL, "cancelled")
            raise

    async def _both_legs(self) -> bool:
        """False: once more, under the ticket as it is now."""
        prefill = self._to.view.workers.get(self._ticket.prefill.worker)
        dialect = None if prefill is None else dialect_of(prefill, self._ticket.order)
        if prefill is None or dialect is None:
            self._to.tickets.give_up(self._ticket, Step.FAIL, "no_dialect")
            raise Gone(f"{self._ticket.prefill.worker} is gone, or cannot be talked to")
        if self._ticket.state is State.PREFILLING:
            answer = await self._prefilled(dialect, prefill)
            if answer is None:
                return False
            try:
                handle = dialect.handle(answer)
            except NoHandle as error:
                await self._other_prefill(str(error))
                return False
            await self._start_transfer(handle)
            return await self._decode(dialect, prefill)
        if self._ticket.handle:
            return await self._decode(dialect, prefill)
        return await self._overlapped(dialect, prefill)

    async def _prefilled(self, dialect: Dialect, prefill: WorkerRecord) -> bytes | None:
        """The prefill engine's answer; None if another one is to try."""
        began_s = anyio.current_time()
        try:
            answer = await self._prefill_leg(dialect, prefill)
        except EngineFailed as failure:
            self._to.routing.inhibit(prefill.worker)
            await self._other_prefill(str(failure))
            return None
        # If we stood still meanwhile, the answer may have waited for us all that time.
        now_s = anyio.current_time()
        self._staged_s = now_s - self._to.pulse.stood_still_s(began_s, now_s)
        return answer

    async def _prefill_leg(self, dialect: Dialect, prefill: WorkerRecord) -> bytes:
        leg = dialect.prefill(self._leg, self._ticket, prefill)
        try:
            return await self._to.prefill.carry(self._flight, leg, prefill, self._ticket)
        except PrefillRefused as error:
            self._to.tickets.give_up(self._ticket, Step.FAIL, "rejected")
            raise Gone(str(error)) from error

    async def _start_transfer(self, handle: bytes) -> None:
        """Blocks are staged; wait until they may be moved."""
        ticket = self._ticket
        for _ in range(ADMIT_TRIES):
            reply = await self._to.tickets.report(
                Report(
                    ticket.id,
                    ticket.fence,
                    Step.TRANSFER,
                    handle=handle,
                    age_s=anyio.current_time() - self._staged_s,
                )
            )
            self._ticket = self._or_gone(reply)
            if self._ticket.state is State.TRANSFERRING:
                return
        self._to.tickets.give_up(ticket, Step.FAIL, "not_let_in")
        raise Gone("its transfer was not let in")

    async def _decode(self, dialect: Dialect, prefill: WorkerRecord) -> bool:
        ticket = self._ticket
        if anyio.current_time() > self._staged_s + ticket.lease_s - LEASE_MARGIN_S:
            # An engine may read blocks that are another request's by now, and not notice.
            self._to.tickets.give_up(ticket, Step.FAIL, "lease_over")
            raise Gone(f"the lease of ticket {ticket.id} ran out before it was read")
        leg = dialect.decode(self._leg, ticket, prefill, ticket.handle)
        try:
            await self._decode_leg(leg)
        except EngineFailed as failure:
            if self._flight.started:
                raise
            await self._again(failure)
            return False
        return True

    async def _overlapped(self, dialect: Dialect, prefill: WorkerRecord) -> bool:
        """Both legs at once; the prefill leg's answer says nothing that we need."""
        failure: Exception | None = None
        prefill_failed: list[EngineFailed] = []

        async def prefill_leg(decoding: anyio.CancelScope) -> None:
            try:
                await self._prefill_leg(dialect, prefill)
            except (EngineFailed, Gone) as error:
                prefill_failed.append(EngineFailed("prefill_lost", str(error)))
                if not self._flight.started:
                    decoding.cancel()

        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as decoding:
                tasks.start_soon(prefill_leg, decoding)
                try:
                    leg = dialect.decode(self._leg, self._ticket, prefill, b"")
                    await self._decode_leg(leg)
                except Exception as error:  # noqa: BLE001 raised again outside of the group
                    failure = error
            tasks.cancel_scope.cancel()
        if decoding.cancelled_caught and self._flight.started:
            # Its first token came before it heard that it was cancelled: that cannot be said again.
            raise EngineFailed("engine_lost", str(prefill_failed[0]))
        if decoding.cancelled_caught:
            self._to.routing.inhibit(prefill.worker)
            await self._other_prefill(str(prefill_failed[0]))
            return False
        if isinstance(failure, EngineFailed) and not self._flight.started:
            await self._other_prefill(str(failure))
            return False
        if failure is not None:
            raise failure
        return True

    async def _decode_leg(self, leg: Leg) -> None:
        ticket = self._ticket
        chosen = self._chosen
        if chosen.worker != ticket.decode.worker:
            end = ticket.decode
            chosen = msgspec.structs.replace(
                chosen, worker=end.worker, incarnation=end.incarnation, url=end.url
            )
        sink = Landing(self._sink, self._to.tickets, ticket)
        # A whole answer comes long after its blocks have landed, and only then is that known.
        waits = nullcontext() if self._flight.ask.stream else self._to.tickets.kept(ticket)
        try:
            with waits:
                await self._to.attempts.make(self._flight, chosen, leg, sink)
        finally:
            sink.close()

    async def _again(self, failure: EngineFailed) -> None:
        """The decode leg has failed before its first token: whose fault was it?"""
        if failure.reason in LOST:
            worker = self._ticket.decode.worker
            self._to.routing.inhibit(worker)
            self._excluded.append(worker)
            reply = await self._report(Step.OTHER_DECODE, str(failure))
            if isinstance(reply, Ticket):
                self._ticket = reply
                if reply.state is State.STAGED:
                    await self._start_transfer(reply.handle)
                return
            self._to.tickets.give_up(self._ticket, Step.FAIL, failure.reason)
            raise failure
        await self._other_prefill(str(failure))

    async def _other_prefill(self, why: str) -> None:
        log.warning("request %s needs another prefill worker: %s", self._flight.request, why)
        self._excluded.append(self._ticket.prefill.worker)
        reply = await self._report(Step.OTHER_PREFILL, why)
        self._ticket = self._or_gone(reply)

    async def _report(self, step: Step, why: str) -> Ticket | Denied:
        ticket, excluded = self._ticket, tuple(self._excluded)
        self._to.metrics.handovers.labels("retry", step.value).inc()
        return await self._to.tickets.report(
            Report(ticket.id, ticket.fence, step, cause=why[:200], exclude=excluded)
        )

    def _or_gone(self, reply: Ticket | Denied) -> Ticket:
        if isinstance(reply, Ticket):
            return reply
        # A step whose answer was lost may have been made: what goes on here must not be aborted.
        self._to.tickets.give_up(self._ticket, Step.FAIL, reply.reason)
        raise Gone(reply.detail)
