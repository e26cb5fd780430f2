"""The gateway's words with the transfer coordinator."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import msgspec

from controlplane.runtime.tracing import inject
from controlplane.runtime.underway import Underway
from proto.codec import Producer, Reader, Unreadable
from proto.subjects import Subjects
from proto.transfers import (
    Begin,
    BeginReply,
    Denied,
    Local,
    Move,
    MoveReply,
    Report,
    ReportReply,
    Stays,
    Step,
    Stepped,
    Ticket,
    TicketId,
    new_ticket_id,
)
from proto.wire.errors import BusError, BusUnavailable, NoResponder
from proto.wire.ports import Bus, Headers

log = logging.getLogger(__name__)

REPORT_S = 5.0
TRIES = 3
PATIENT_TRIES = 6
"""Where nobody waits: some ten seconds, in which a coordinator comes back."""
PAUSE_FIRST_S = 0.3
LATER_MAX = 4096
FIRST_FENCE = 1
KEEP_S = 1.0
KEEPS = 3
"""Words in the time that a ticket would wait without them."""
GRACE_S = 0.25
"""For the coordinator to answer in time that it will not be in time."""


class Tickets:
    """Asks, reports, and reports later what nobody waits for."""

    def __init__(self, bus: Bus, subjects: Subjects, producer: Producer, begin_s: float) -> None:
        self._bus = bus
        self._begin_subject = subjects.transfer("begin")
        self._move_subject = subjects.transfer("move")
        self._report_subject = subjects.transfer("report")
        self._producer = producer
        self._begin_s = begin_s
        self._begins = Reader[BeginReply](BeginReply)
        self._reports = Reader[ReportReply](ReportReply)
        self._moves = Reader[MoveReply](MoveReply)
        self._rng = random.SystemRandom()
        self._later: list[tuple[Report, Headers, bool]] = []
        self._kept: dict[TicketId, _Kept] = {}
        self._underway = Underway()
        self._news = anyio.Event()

    async def begin(self, asked: Begin) -> BeginReply:
        """Without a coordinator that answers, the decode worker does all of it. What it may have
        granted all the same, or will when a place is free, is taken back."""
        asked = msgspec.structs.replace(asked, id=new_ticket_id(self._rng))
        try:
            sealed = self._producer.seal(asked)
            answer = await self._bus.request(
                self._begin_subject, sealed, timeout_s=self._begin_s, headers=inject()
            )
            return self._begins.open(answer.data).body
        except (BusError, Unreadable) as error:
            log.warning("no ticket for %s: %s", asked.request, error)
            if not isinstance(error, NoResponder | BusUnavailable):
                self._take_back(asked.id, Step.FAIL, "unheard")
            return Local("no_coordinator", str(error), fallback=True)
        except BaseException:
            self._take_back(asked.id, Step.CANCEL, "cancelled")
            raise

    async def move(self, asked: Move) -> MoveReply:
        """Answered when it has been done, or will not be."""
        try:
            answer = await self._bus.request(
                self._move_subject,
                self._producer.seal(asked),
                timeout_s=asked.within_s + GRACE_S,
                headers=inject(),
            )
            return self._moves.open(answer.data).body
        except (BusError, Unreadable) as error:
            log.info("nothing is moved for %s: %s", asked.request, error)
            return Stays("no_coordinator", str(error))

    async def report(
        self,
        said: Report,
        headers: Headers | None = None,
        tries: int = TRIES,
        *,
        foreseen: bool = False,
    ) -> Ticket | Denied:
        """What has come of it; said again where no answer came, and, if the ticket is `foreseen`,
        where there is none yet."""
        headers = inject() if headers is None else headers
        why, pause_s = "", PAUSE_FIRST_S
        for _ in range(tries):
            try:
                answer = await self._bus.request(
                    self._report_subject,
                    self._producer.seal(said),
                    timeout_s=REPORT_S,
                    headers=headers,
                )
                reply = self._reports.open(answer.data).body
                if isinstance(reply, Stepped):
                    return reply.ticket
                if not (foreseen and reply.reason == "unknown"):
                    return reply
                why = reply.detail
            except (BusError, Unreadable) as error:
                why = str(error)
                log.warning("ticket %s: %s was not told: %s", said.ticket, said.step, error)
            await anyio.sleep(pause_s)
            pause_s *= 2
        return Denied("no_coordinator", why)

    def give_up(self, ticket: Ticket, step: Step, cause: str) -> None:
        """It has come to nothing; nobody waits until that is known."""
        self.report_later(Report(ticket.id, ticket.fence, step, cause=cause))

    def report_later(self, said: Report) -> None:
        """Nobody waits for the answer. What is too much is dropped: the ticket then expires."""
        self._put(said, foreseen=False)

    @contextmanager
    def kept(self, ticket: Ticket) -> Iterator[None]:
        """Its transfer is not given up meanwhile, however long nothing is heard of it."""
        self._kept[ticket.id] = _Kept(ticket)
        try:
            yield
        finally:
            self._kept.pop(ticket.id, None)

    async def run(self) -> None:
        """Report what is to be reported later, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep)
            while True:
                await self._news.wait()
                self._news = anyio.Event()
                while self._later:
                    tasks.start_soon(self._report_patiently, *self._later.pop(0))

    async def settled(self) -> None:
        """Until all that was to be reported later has been; the caller sets the deadline."""
        await self._underway.none()

    def _take_back(self, id: TicketId, step: Step, cause: str) -> None:
        """The coordinator may be about to grant it."""
        self._put(Report(id, FIRST_FENCE, step, cause=cause), foreseen=True)

    def _put(self, said: Report, *, foreseen: bool) -> None:
        if self._underway.count < LATER_MAX:
            self._later.append((said, inject(), foreseen))
            self._underway.begin()
            self._news.set()

    async def _keep(self) -> None:
        while True:
            await anyio.sleep(KEEP_S)
            for kept in self._kept.values():
                if kept.is_due(anyio.current_time()):
                    ticket = kept.ticket
                    self.report_later(Report(ticket.id, ticket.fence, Step.TRANSFER))

    async def _report_patiently(self, said: Report, headers: Headers, foreseen: bool) -> None:
        try:
            await self.report(said, headers, PATIENT_TRIES, foreseen=foreseen)
        finally:
            self._underway.end()


class _Kept:
    """A ticket that goes on while its owner says so."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self._every_s = (ticket.deadline_s - ticket.changed_s) / KEEPS
        self._said_s = anyio.current_time()

    def is_due(self, now_s: float) -> bool:
        """True once each time."""
        due = now_s >= self._said_s + self._every_s
        if due:
            self._said_s = now_s
        return due


def landed(ticket: Ticket, seconds: float) -> Report:
    """The first token has come: so the blocks have."""
    return Report(ticket.id, ticket.fence, Step.LAND, seconds=seconds)
