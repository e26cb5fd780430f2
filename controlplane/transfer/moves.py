"""Movements for their own sake, carried out: who has blocks offers them, who wants them fetches.

Each has a ticket and goes the way of any other: its prefill is the offer. It is carried by the
replica that was asked; should that one die, the ticket expires, and the others see to it that
nothing stays held.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio
import msgspec
from opentelemetry.trace import SpanKind

from controlplane.runtime.tracing import extract, inject, tracer
from controlplane.transfer.commander import Commander
from controlplane.transfer.coordinator import Coordinator, Walk
from controlplane.transfer.metrics import TransferMetrics
from controlplane.transfer.movement import Route
from controlplane.transfer.settings import TransferSettings
from controlplane.transfer.shelf import Shelf
from proto.codec import Unreadable
from proto.ids import RequestId, ServiceId, WorkerId
from proto.transfers import (
    Chain,
    CommandReply,
    Denied,
    Evacuate,
    Evacuated,
    Move,
    Moved,
    MoveReply,
    Outcome,
    Purpose,
    Report,
    ReportReply,
    State,
    Stays,
    Step,
    Ticket,
    TicketId,
    Verb,
)
from proto.wire.errors import BusError
from proto.wire.ports import Headers

log = logging.getLogger(__name__)
spans = tracer("tokenplane.transfer")


class Failed(Exception):
    """A movement has come to nothing; the text is a cause."""


@dataclass(frozen=True)
class Hands:
    """What the service lends: how tickets are reported on, and told of."""

    hear: Callable[[Report], Awaitable[ReportReply]]
    happened: Callable[[Walk], None]
    new_id: Callable[[], TicketId]
    clock: Callable[[], float]


class Moves:
    """Of one replica."""

    def __init__(
        self,
        settings: TransferSettings,
        name: ServiceId,
        core: Coordinator,
        shelf: Shelf,
        commander: Commander,
        hands: Hands,
        metrics: TransferMetrics,
    ) -> None:
        self._settings = settings
        self._name = name
        self._core = core
        self._shelf = shelf
        self._commander = commander
        self._hands = hands
        self._metrics = metrics

    async def move(self, asked: Move, headers: Headers) -> MoveReply:
        """Do it if it pays; answered when it is done, or will not be. Raises `BusError` where
        tickets cannot be stored."""
        with spans.start_as_current_span(
            "transfer.move", context=extract(headers), kind=SpanKind.SERVER
        ) as span:
            span.set_attribute("tokenplane.purpose", asked.purpose)
            span.set_attribute("tokenplane.request", asked.request)
            span.set_attribute("tokenplane.source", asked.source)
            reply = await self._move(asked)
            if isinstance(reply, Moved):
                span.set_attribute("tokenplane.ticket", reply.ticket)
                span.set_attribute("tokenplane.target", reply.target)
                span.set_attribute("tokenplane.kv_bytes", reply.kv_bytes)
            else:
                span.set_attribute("tokenplane.stays", reply.reason)
        outcome = "moved" if isinstance(reply, Moved) else reply.reason
        self._metrics.moves.labels(asked.purpose, outcome).inc()
        return reply

    async def evacuate(self, said: Evacuate, headers: Headers) -> Evacuated:
        """Move what a leaving worker has, one after the other, what was used last first."""
        homes: dict[int, WorkerId] = {}
        chains = moved_bytes = 0
        with spans.start_as_current_span(
            "transfer.evacuate", context=extract(headers), kind=SpanKind.SERVER
        ) as span:
            span.set_attribute("tokenplane.source", said.worker)
            for chain in said.chains:
                reply = await self._leave(said, chain, homes)
                if isinstance(reply, Moved):
                    chains += 1
                    moved_bytes += reply.kv_bytes
                    homes[chain.root] = reply.target
            span.set_attribute("tokenplane.chains", chains)
            span.set_attribute("tokenplane.kv_bytes", moved_bytes)
        return Evacuated(chains, moved_bytes)

    async def _leave(self, said: Evacuate, chain: Chain, homes: dict[int, WorkerId]) -> MoveReply:
        """What belongs together goes to one worker, while that has room."""
        asked = Move(
            RequestId(f"drain-{said.worker}"),
            said.model,
            Purpose.EVACUATE,
            said.worker,
            chain.tail,
            chain.blocks,
            homes.get(chain.root, WorkerId("")),
        )
        if asked.target:  # it has the rest
            asked = msgspec.structs.replace(asked, new_blocks=chain.new_blocks)
        reply = await self.move(asked, inject())
        if isinstance(reply, Stays) and reply.reason in ("no_room", "no_target") and asked.target:
            anywhere = msgspec.structs.replace(asked, target=WorkerId(""), new_blocks=0)
            reply = await self.move(anywhere, inject())
        return reply

    async def _move(self, asked: Move) -> MoveReply:
        decided = self._core.move(asked, self._hands.new_id(), self._name, self._hands.clock())
        if isinstance(decided, Stays):
            return decided
        walk, way = decided
        walk.ticket = msgspec.structs.replace(walk.ticket, trace=inject())
        await self._shelf.add(walk)
        self._hands.happened(walk)
        moved: Moved | None = None
        cause, patience_s = "late", self._patience_s(asked, way)
        try:
            with anyio.move_on_after(patience_s) as patience:
                moved = await self._carry(walk.ticket)
            if patience.cancelled_caught:
                self._core.rates.saw_late(way.link, way.kv_bytes, patience_s, self._hands.clock())
        except Failed as failure:
            cause = str(failure)
        finally:
            if moved is None:
                await self._give_up(walk.ticket, cause)
        return moved or Stays("failed", cause)

    def _patience_s(self, asked: Move, way: Route) -> float:
        patience_s = way.patience_s if asked.purpose is Purpose.FETCH else self._settings.move_s
        return min(patience_s, asked.within_s) if asked.within_s else patience_s

    async def _carry(self, ticket: Ticket) -> Moved:
        """Offer, fetch, done. Raises `Failed`."""
        offered = await self._tell(ticket, Verb.OFFER)
        staged = Report(ticket.id, ticket.fence, Step.TRANSFER, handle=offered.handle)
        ticket = await self._report(staged)
        while ticket.state is State.STAGED:  # not let in yet
            ticket = await self._report(Report(ticket.id, ticket.fence, Step.TRANSFER))
        began_s = self._hands.clock()
        fetched = await self._tell(ticket, Verb.REPLICATE)
        seconds = self._hands.clock() - began_s
        landed = Report(
            ticket.id, ticket.fence, Step.LAND, kv_bytes=fetched.kv_bytes, seconds=seconds
        )
        await self._report(landed)
        return Moved(ticket.id, ticket.decode.worker, fetched.kv_bytes, seconds)

    async def _tell(self, ticket: Ticket, verb: Verb) -> CommandReply:
        end = ticket.prefill if verb is Verb.OFFER else ticket.decode
        try:
            reply = await self._commander.tell(
                end, verb, ticket, self._settings.move_s, ticket.handle
            )
        except (BusError, Unreadable) as error:
            raise Failed("agent_away") from error
        self._metrics.duties.labels(verb, reply.outcome).inc()
        if reply.outcome is not Outcome.DONE:
            log.info("%s: %s could not %s: %s", ticket.id, end.worker, verb, reply.detail)
            raise Failed(f"{verb}_{reply.outcome}")
        return reply

    async def _report(self, said: Report) -> Ticket:
        try:
            reply = await self._hands.hear(said)
        except BusError as error:
            raise Failed("not_stored") from error
        if isinstance(reply, Denied):
            raise Failed(reply.reason)
        return reply.ticket

    async def _give_up(self, ticket: Ticket, cause: str) -> None:
        with anyio.move_on_after(self._settings.duty_s, shield=True):
            try:
                await self._hands.hear(Report(ticket.id, ticket.fence, Step.FAIL, cause=cause))
            except BusError as error:
                log.warning("%s is left to expire: %s", ticket.id, error)
