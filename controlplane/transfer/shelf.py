"""Tickets in their bucket: every change is guarded by what was read, so that of several replicas
one makes it, and a coordinator that starts anew finds all of them. While a ticket is written the
book knows what it is about to hold: who is let in is decided before that, and others ask meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from controlplane.transfer.book import Book
from controlplane.transfer.coordinator import Walk
from controlplane.transfer.metrics import TransferMetrics
from controlplane.transfer.ticket import Refused
from proto.subjects import Subjects
from proto.transfers import Ticket, TicketId
from proto.wire.errors import BusTimeout
from proto.wire.ports import Bucket, BucketSpec, Bus, Cell

log = logging.getLogger(__name__)

MAX_AGE_S = 3600.0
MAX_BYTES = 256 << 20
TRIES = 8
"""Against other replicas that change the same ticket."""

Make = Callable[[Ticket], Walk]


class Unknown(Refused):
    """There is no such ticket; it may have been over for long."""

    reason = "unknown"


class Taken(Refused):
    """Another ticket is called so."""

    reason = "taken"


class Contended(Refused):
    """Others changed the ticket at every try; whoever asks may ask again."""

    reason = "contended"


class Shelf:
    """Writes tickets and keeps the book of them true."""

    def __init__(self, bus: Bus, subjects: Subjects, book: Book, metrics: TransferMetrics) -> None:
        self._bus = bus
        self._spec = BucketSpec(subjects.tickets_bucket, MAX_AGE_S, MAX_BYTES)
        self._book = book
        self._metrics = metrics
        self._bucket: Bucket | None = None
        self._decoder = msgspec.msgpack.Decoder(Ticket)
        self._encoder = msgspec.msgpack.Encoder()

    async def open(self) -> int:
        """Make the bucket or find it, and read what is in it; returns how many tickets that is.
        Raises `BusError`."""
        self._bucket = await self._bus.bucket(self._spec)
        cells = await self._bucket.list()
        for cell in cells:
            self._take(cell)
        return len(cells)

    async def follow(self, changed: Callable[[], None]) -> None:
        """Hear what other replicas write, for ever; `changed` is called at each."""
        async with self._opened.watch() as cells:
            async for cell in cells:
                if self._take(cell):
                    changed()

    async def add(self, walk: Walk) -> None:
        """Store a new ticket. Raises `Taken`, `BusError`."""
        key, value = walk.ticket.id, self._encoder.encode(walk.ticket)
        with self._book.expected(walk.ticket):
            try:
                revision = await self._opened.create(key, value)
            except BusTimeout:
                if not await self._is_stored(walk.ticket):
                    raise
                return
            if revision is None:
                raise Taken(f"there is, or was, a ticket {key} already")
            self._book.put(walk.ticket, revision)

    async def change(self, id: TicketId, make: Make) -> Walk:
        """Store what `make` makes of the ticket as it is. `make` may be asked several times; the
        last answer counts. Raises what it raises, `Unknown`, `Contended`, `BusError`."""
        for _ in range(TRIES):
            known = self._book.get(id) or await self._read(id)
            if known is None:
                raise Unknown(f"there is no ticket {id}")
            ticket, revision = known
            try:
                walk = make(ticket)
            except Refused:
                # Another replica may have gone on, and the book not have heard of it yet.
                if await self._read(id) in (known, None):
                    raise
                continue
            if walk.ticket == ticket:
                return walk
            with self._book.expected(walk.ticket):
                written = await self._write(walk.ticket, revision)
            if written:
                return walk
            self._metrics.conflicts.inc()
            await self._read(id)
        raise Contended(f"ticket {id} is changed by others all the time")

    async def remove(self, ticket: Ticket) -> None:
        """Forget a ticket that is over. Raises `BusError`."""
        known = self._book.get(ticket.id)
        if known is not None:
            await self._opened.delete(ticket.id, revision=known[1])
            self._book.drop(ticket.id)

    @property
    def _opened(self) -> Bucket:
        assert self._bucket is not None, "open it first"
        return self._bucket

    async def _write(self, ticket: Ticket, revision: int) -> bool:
        """False if somebody else was first, and the book is behind."""
        try:
            written = await self._opened.update(
                ticket.id, self._encoder.encode(ticket), revision=revision
            )
        except BusTimeout:
            return await self._is_stored(ticket)
        if written is not None:
            self._book.put(ticket, written)
        return written is not None

    async def _is_stored(self, ticket: Ticket) -> bool:
        """Whether a write without an answer has happened."""
        known = await self._read(ticket.id)
        return known is not None and known[0] == ticket

    async def _read(self, id: TicketId) -> tuple[Ticket, int] | None:
        cell = await self._opened.get(id)
        if cell is None:
            self._book.drop(id)
            return None
        self._take(cell)
        return self._book.get(id)

    def _take(self, cell: Cell) -> bool:
        """True if this is news."""
        if cell.value is None:
            return self._book.drop(TicketId(cell.key)) is not None
        try:
            ticket = self._decoder.decode(cell.value)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            # One of a newer build, perhaps: that one sees to it, and what we knew is out of date.
            self._metrics.unreadable.inc()
            log.warning("ticket %s cannot be read: %s", cell.key, error)
            return self._book.drop(TicketId(cell.key)) is not None
        return self._book.put(ticket, cell.revision)
