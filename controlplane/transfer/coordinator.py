"""The coordinator's mind: which movement is worth it, between whom, and what a report makes of it.

Pure: the service feeds it records, loads, tickets and the time, and stores what it returns. It
never sees a prompt. Nothing it returns has happened before the bucket has taken it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from controlplane.transfer.book import Book
from controlplane.transfer.cost import Rates, Side, keep_local
from controlplane.transfer.fleet import Fleet, NoPair, Pair, Want, end
from controlplane.transfer.movement import Route, copy_ticket, route
from controlplane.transfer.settings import TransferSettings
from controlplane.transfer.ticket import (
    News,
    Refused,
    check_fence,
    check_legal,
    over,
    prolonged,
    step,
)
from proto.ids import ServiceId
from proto.load import LoadReport
from proto.transfers import (
    TERMINAL,
    Begin,
    End,
    Local,
    Move,
    Purpose,
    Report,
    State,
    Stays,
    Step,
    Ticket,
    TicketId,
    Transition,
)
from proto.workers import HandoffOrder, Role, WorkerRecord

DECODE_FULL = "decode_full"
FROM_OUTSIDE = frozenset(
    {Step.TRANSFER, Step.LAND, Step.OTHER_PREFILL, Step.OTHER_DECODE, Step.FAIL, Step.CANCEL}
)
"""Steps that an owner may report; the others are the coordinator's own."""


class NoWorker(Refused):
    """Nobody can take the place of the end that was lost."""

    reason = "no_worker"


@dataclass
class Walk:
    """A ticket on its way through several steps that are stored together."""

    ticket: Ticket
    made: list[Transition] = field(default_factory=list)
    waits: bool = False
    """Its transfer is not let in yet."""
    owes: bool = False
    """More than before."""

    def go(
        self,
        what: Step,
        now_s: float,
        settings: TransferSettings,
        *,
        other: End | None = None,
        handle: bytes = b"",
        cause: str = "",
        age_s: float = 0.0,
    ) -> None:
        """Raises `Refused`."""
        before = self.ticket
        news = News(other, handle, cause, age_s)
        after = step(before, what, now_s, settings.patience, news)
        self.ticket = after
        self.owes |= len(after.owed) > len(before.owed)
        self.made.append(
            Transition(
                after.id,
                after.request,
                after.sequence,
                what,
                before.state,
                after.state,
                after.prefill.worker,
                after.prefill.incarnation,
                after.decode.worker,
                after.decode.incarnation,
                now_s,
                after.kv_bytes,
                after.link,
                after.cause,
                now_s - before.changed_s,
            )
        )


class Coordinator:
    """Decides; knows the fleet, the rates and all tickets."""

    def __init__(self, settings: TransferSettings) -> None:
        self.fleet = Fleet()
        self.rates = Rates()
        self.book = Book()
        self._settings = settings

    def adopt(self, settings: TransferSettings) -> None:
        """Choose by other bounds from now on; tickets under way keep their deadlines."""
        self._settings = settings

    def begin(self, asked: Begin, id: TicketId, now_s: float) -> Walk | Local:
        """A ticket that is reserved and prefilling, or why the decode worker does it alone.

        `Local(DECODE_FULL)` may become something else a moment later.
        """
        new_tokens = {asked.decode.worker: asked.decode.new_prefill_tokens}
        if asked.prefill is not None:
            new_tokens[asked.prefill.worker] = asked.prefill.new_prefill_tokens
        labels = (asked.topology,) if asked.topology else self._settings.topology_required
        want = Want(asked.model, asked.prompt_tokens, new_tokens, asked.exclude, labels)
        pair = self._best(want, asked.decode.worker)
        side = Side(
            asked.decode.worker,
            asked.decode.new_prefill_tokens,
            self.fleet.loads.get(asked.decode.worker),
        )
        remote_s = pair.seconds if isinstance(pair, Pair) else None
        settings = self._settings
        if reason := keep_local(
            settings.choice, settings.bounds, asked.prompt_tokens, side, remote_s, self.rates
        ):
            return Local(reason)
        if isinstance(pair, NoPair):
            return Local(pair.reason, pair.detail, fallback=True)
        walk = Walk(_ticket(asked, id, pair, labels, now_s))
        walk.go(Step.RESERVE, now_s, settings)
        walk.go(Step.PREFILL, now_s, settings)
        if walk.ticket.order is HandoffOrder.OVERLAPPED:
            walk.go(Step.TRANSFER, now_s, settings)
        return walk

    def move(
        self, asked: Move, id: TicketId, owner: ServiceId, now_s: float
    ) -> tuple[Walk, Route] | Stays:
        """A ticket for a cached prefix, whose source is to offer it, and what that is predicted to
        take; or why it had better stay."""
        way = route(asked, self.fleet, self.book, self.rates, self._settings.worth)
        if isinstance(way, Stays):
            return way
        walk = Walk(copy_ticket(asked, way, id, owner, now_s))
        walk.go(Step.RESERVE, now_s, self._settings)
        walk.go(Step.PREFILL, now_s, self._settings)
        return walk, way

    def report(self, ticket: Ticket, said: Report, now_s: float) -> Walk:
        """What the owner's report makes of the ticket; nothing, if it was heard before.
        Raises `Refused`."""
        walk = Walk(ticket)
        if said.step not in FROM_OUTSIDE:
            raise Refused(f"{said.step} is not for an owner to report")
        if _heard_before(ticket, said):
            if said.step is Step.TRANSFER:
                walk.ticket = prolonged(ticket, now_s, self._settings.patience)
            return walk
        if said.step not in (Step.CANCEL, Step.FAIL):  # what an owner gives up is given up
            check_fence(ticket, said.fence)
        match said.step:
            case Step.TRANSFER:
                self._transfer(walk, said, now_s)
            case Step.LAND:
                self._land(walk, said, now_s)
            case Step.OTHER_PREFILL:
                self._other_prefill(walk, said, now_s)
            case Step.OTHER_DECODE:
                self._other_decode(walk, said, now_s)
            case _:
                walk.go(said.step, now_s, self._settings, cause=said.cause)
        return walk

    def let_in(self, ticket: Ticket) -> bool:
        """Whether its transfer may begin now: neither end, nor the link, has too much to move."""
        book, most = self.book, self._settings.transfers_max
        if max(book.transfers[ticket.prefill.worker], book.transfers[ticket.decode.worker]) >= most:
            return False
        ahead = book.link_bytes[ticket.link]
        backlog_s = ahead / self.rates.link_bytes_per_s(ticket.link)
        return not ahead or backlog_s <= self._settings.link_backlog_s

    def due(self, now_s: float) -> list[Ticket]:
        """Tickets whose time is over."""
        return [t for t in self.book if t.state not in TERMINAL and t.deadline_s <= now_s]

    def forgettable(self, now_s: float) -> list[Ticket]:
        """Tickets that are over, and of which nobody is likely to speak any more."""
        keep_s = self._settings.keep_s
        return [t for t in self.book if over(t) and t.changed_s + keep_s <= now_s]

    def undone(self, now_s: float) -> list[Ticket]:
        """Tickets with duties that should have been done by now."""
        retry_s = self._settings.duty_retry_s
        return [t for t in self.book if t.owed and t.changed_s + retry_s <= now_s]

    def landed(self, ticket: Ticket, said: Report) -> None:
        """Learn from a transfer that is over."""
        self.rates.saw_transfer(ticket.link, ticket.kv_bytes, said.seconds)

    def saw_load(self, report: LoadReport) -> None:
        """A worker says what it is busy with."""
        self.fleet.loads[report.worker] = report
        self.rates.saw_steps(report.worker, report.steps)

    def _best(self, want: Want, preferred: WorkerRecord | str) -> Pair | NoPair:
        """The router's decode worker if it has a place, else whoever has most room."""
        fleet, book = self.fleet, self.book
        decodes = sorted(
            fleet.candidates(want, Role.DECODE),
            key=lambda r: (r.worker != preferred, book.reserved[r.worker]),
        )
        why = NoPair("no_decode_worker", f"no decode worker of {want.model} is ready")
        for decode in decodes:
            blocks = -(-want.prompt_tokens // decode.block_tokens)
            if not fleet.has_place(decode, blocks, book):
                why = NoPair(DECODE_FULL, f"{decode.worker} has no place for it")
                continue
            limit = self._settings.staged_bytes_max
            pair = fleet.pair(want, decode, book, self.rates, limit)
            if isinstance(pair, Pair):
                return pair
            why = pair
        return why

    def _transfer(self, walk: Walk, said: Report, now_s: float) -> None:
        if walk.ticket.state is State.PREFILLING:
            walk.go(Step.STAGE, now_s, self._settings, handle=said.handle, age_s=said.age_s)
        check_legal(walk.ticket, Step.TRANSFER)
        walk.waits = not self.let_in(walk.ticket)
        if not walk.waits:
            walk.go(Step.TRANSFER, now_s, self._settings)

    def _land(self, walk: Walk, said: Report, now_s: float) -> None:
        handoff = walk.ticket.purpose is Purpose.HANDOFF
        moved = said.kv_bytes or (walk.ticket.kv_bytes if handoff else 0)
        walk.ticket = msgspec.structs.replace(walk.ticket, kv_bytes=moved)
        walk.go(Step.LAND, now_s, self._settings)
        if walk.ticket.state is State.LANDED:
            # An engine that has read its blocks tells the other so, which lets them go.
            walk.go(Step.RELEASE, now_s, self._settings)

    def _other_prefill(self, walk: Walk, said: Report, now_s: float) -> None:
        ticket = walk.ticket
        decode = self.fleet.records.get(ticket.decode.worker)
        want = _again(ticket, said)
        pair = (
            self.fleet.pair(want, decode, self.book, self.rates, self._settings.staged_bytes_max)
            if decode is not None
            else NoPair("no_decode_worker", "its decode worker is gone")
        )
        if isinstance(pair, NoPair):
            walk.go(Step.FAIL, now_s, self._settings, cause=pair.reason)
            return
        walk.go(Step.OTHER_PREFILL, now_s, self._settings, other=end(pair.prefill))
        assert pair.prefill.transfer is not None
        lease_s = pair.prefill.transfer.lease_s
        walk.ticket = msgspec.structs.replace(walk.ticket, link=pair.link, lease_s=lease_s)
        walk.go(Step.PREFILL, now_s, self._settings)
        if walk.ticket.order is HandoffOrder.OVERLAPPED:
            walk.go(Step.TRANSFER, now_s, self._settings)

    def _other_decode(self, walk: Walk, said: Report, now_s: float) -> None:
        """Whoever can read what is staged; the lease must hold."""
        ticket = walk.ticket
        want = _again(ticket, said)
        prefill = self.fleet.records.get(ticket.prefill.worker)
        others = [] if prefill is None else self._readers(prefill, want)
        if not others:
            walk.go(Step.FAIL, now_s, self._settings, cause="no_decode_worker")
            return
        walk.go(Step.OTHER_DECODE, now_s, self._settings, other=end(others[0].decode))
        walk.ticket = msgspec.structs.replace(walk.ticket, link=others[0].link)
        if walk.ticket.state is State.STAGED:
            walk.waits = not self.let_in(walk.ticket)
            if not walk.waits:
                walk.go(Step.TRANSFER, now_s, self._settings)

    def _readers(self, prefill: WorkerRecord, want: Want) -> list[Pair]:
        """Decode workers with a place that can read what `prefill` has staged."""
        alone = Fleet({prefill.worker: prefill}, self.fleet.loads)
        block_tokens = prefill.block_tokens
        pairs = [
            alone.pair(want, decode, self.book, self.rates, self._settings.staged_bytes_max + 1)
            for decode in self.fleet.candidates(want, Role.DECODE)
            if self.fleet.has_place(decode, -(-want.prompt_tokens // block_tokens), self.book)
        ]
        found = [pair for pair in pairs if isinstance(pair, Pair)]
        return sorted(found, key=lambda pair: self.book.reserved[pair.decode.worker])


def _ticket(
    asked: Begin, id: TicketId, pair: Pair, labels: tuple[str, ...], now_s: float
) -> Ticket:
    assert pair.prefill.transfer is not None
    return Ticket(
        id=id,
        request=asked.request,
        model=asked.model,
        owner=asked.owner,
        order=pair.prefill.transfer.order,
        prefill=end(pair.prefill),
        decode=end(pair.decode),
        created_s=now_s,
        changed_s=now_s,
        lease_s=pair.prefill.transfer.lease_s,
        prompt_tokens=asked.prompt_tokens,
        blocks=pair.blocks,
        kv_bytes=pair.kv_bytes,
        link=pair.link,
        topology=labels,
    )


def _again(ticket: Ticket, said: Report) -> Want:
    return Want(ticket.model, ticket.prompt_tokens, {}, said.exclude, ticket.topology)


def _heard_before(ticket: Ticket, said: Report) -> bool:
    """The answer to this very report was lost on its way."""
    if said.step in (Step.FAIL, Step.CANCEL):
        return ticket.state in TERMINAL or (ticket.cancelling and said.step is Step.CANCEL)
    if said.step in (Step.OTHER_PREFILL, Step.OTHER_DECODE) and said.fence == ticket.fence - 1:
        replaced = ticket.prefill if said.step is Step.OTHER_PREFILL else ticket.decode
        return ticket.state not in TERMINAL and replaced.worker not in said.exclude
    if said.fence != ticket.fence:
        return False
    if said.step is Step.LAND:
        return ticket.state in (State.LANDED, State.RELEASED)
    return said.step is Step.TRANSFER and ticket.state is State.TRANSFERRING
