"""What tickets hold of workers and links at this moment: places, bytes, paths. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from controlplane.transfer.ticket import over
from proto.ids import RequestId, WorkerId
from proto.transfers import TERMINAL, Purpose, State, Ticket, TicketId

_BEFORE_DECODE = frozenset({State.RESERVED, State.PREFILLING, State.STAGED, State.TRANSFERRING})
_HOLDS_STAGED = frozenset({State.STAGED, State.TRANSFERRING})


Held = Counter[tuple[str, str]]
"""By what it is, and whose."""


class Book:
    """Tickets by their revision, and sums over them that are kept up to date.

    Replicas each have one, fed by the same bucket. One that is a moment behind may admit a
    movement too many; it never acts on one twice.
    """

    def __init__(self) -> None:
        self._tickets: dict[TicketId, tuple[Ticket, int]] = {}
        self.reserved: Counter[WorkerId] = Counter()
        """Decode places that are kept for requests not yet there."""
        self.reserved_blocks: Counter[WorkerId] = Counter()
        self.transfers: Counter[WorkerId] = Counter()
        """Under way, by either end."""
        self.staged_bytes: Counter[WorkerId] = Counter()
        """Held for somebody who has not collected them yet."""
        self.link_bytes: Counter[str] = Counter()
        self.states: Counter[State] = Counter()
        self.given: Counter[WorkerId] = Counter()
        """By who prefills, those that ended lately too."""
        self._live: dict[RequestId, set[TicketId]] = {}
        """Those that have not ended."""
        self._expected: list[Ticket] = []

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return iter([ticket for ticket, _ in self._tickets.values()])

    def get(self, id: TicketId) -> tuple[Ticket, int] | None:
        """A ticket, and the revision that it was read at."""
        return self._tickets.get(id)

    def put(self, ticket: Ticket, revision: int) -> bool:
        """It was read or written; False if something later is known already."""
        known = self._tickets.get(ticket.id)
        if known is not None:
            if known[1] >= revision:
                return False
            self._count(known[0], -1)
        self._tickets[ticket.id] = ticket, revision
        self._count(ticket, 1)
        if ticket.state in TERMINAL:
            self._end(ticket)
        else:
            self._live.setdefault(ticket.request, set()).add(ticket.id)
        return True

    @contextmanager
    def expected(self, ticket: Ticket) -> Iterator[None]:
        """While it is written: nobody else is let in to what it is about to hold. What it lets go
        of is free when that has been written."""
        known = self._tickets.get(ticket.id)
        more = _held(ticket)
        if known is not None:
            more -= _held(known[0])  # what it holds already is no more
        self._expected.append(ticket)
        self._hold(more, 1)
        try:
            yield
        finally:
            self._hold(more, -1)
            self._expected.remove(ticket)

    def copies(self) -> Iterator[Ticket]:
        """Movements for their own sake that have not ended, also those that are being written."""
        for ticket in (*self, *self._expected):
            if ticket.purpose is not Purpose.HANDOFF and ticket.state not in TERMINAL:
                yield ticket

    def drop(self, id: TicketId) -> Ticket | None:
        """It is no longer in the bucket."""
        known = self._tickets.pop(id, None)
        if known is None:
            return None
        self._count(known[0], -1)
        self._end(known[0])
        return known[0]

    def of_request(self, request: RequestId) -> list[Ticket]:
        """Tickets of one request that have not ended."""
        return [self._tickets[id][0] for id in sorted(self._live.get(request, ()))]

    @property
    def unsettled(self) -> int:
        """Tickets that are not over."""
        return sum(not over(ticket) for ticket in self)

    @property
    def quarantined(self) -> int:
        return sum(ticket.quarantined for ticket in self)

    def sums(self) -> Mapping[str, int]:
        """What is held altogether; all zero when nothing is under way."""
        return {
            "reserved": self.reserved.total(),
            "transfers": self.transfers.total(),
            "staged_bytes": self.staged_bytes.total(),
        }

    def _end(self, ticket: Ticket) -> None:
        live = self._live.get(ticket.request, set())
        live.discard(ticket.id)
        if not live:
            self._live.pop(ticket.request, None)

    def _count(self, ticket: Ticket, by: int) -> None:
        self.states[ticket.state] += by
        _add(self.given, ticket.prefill.worker, by)
        self._hold(_held(ticket), by)

    def _hold(self, held: Held, by: int) -> None:
        sums: Mapping[str, Counter[Any]] = {
            "reserved": self.reserved,
            "reserved_blocks": self.reserved_blocks,
            "transfers": self.transfers,
            "staged_bytes": self.staged_bytes,
            "link_bytes": self.link_bytes,
        }
        for (what, whose), amount in held.items():
            _add(sums[what], whose, by * amount)


def _held(ticket: Ticket) -> Held:
    """What a ticket holds of either end, and of the link between them."""
    held: Held = Counter()
    prefill, decode = ticket.prefill.worker, ticket.decode.worker
    if ticket.state in _BEFORE_DECODE and not ticket.cancelling:
        held["reserved", decode] = int(ticket.purpose is Purpose.HANDOFF)
        held["reserved_blocks", decode] = ticket.blocks
    if ticket.state is State.TRANSFERRING:
        held["transfers", prefill] = held["transfers", decode] = 1
        held["link_bytes", ticket.link] = ticket.kv_bytes
    if ticket.state in _HOLDS_STAGED:
        held["staged_bytes", prefill] = ticket.kv_bytes
    return held


K = TypeVar("K", bound=str)


def _add(held: Counter[K], key: K, by: int) -> None:
    held[key] += by
    if not held[key]:
        del held[key]
