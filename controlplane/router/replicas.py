"""What routers tell each other: bookings as they are made, and all of them to a new replica.

Bookings are gathered for a moment: a busy router then sends, and hears, one message for a dozen.

A new replica hears of what happens from its start on; what was given out before, it asks one of
the others for, before it serves. It asks in parts, each after the last booking of the one before,
so any replica can give any part and one that dies over it costs a question. What is told twice, or
has ended in the meantime, the ledger counts as it should.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from itertools import islice

import anyio

from controlplane.router.core import RouterCore
from proto.codec import Producer, Reader, Unreadable
from proto.ids import ServiceId
from proto.progress import Booking, Bookings, BookingsRequest
from proto.subjects import Subjects
from proto.wire.errors import BusError, BusTimeout, NoResponder, RequestRefused
from proto.wire.ports import Bus, Endpoint, Message

log = logging.getLogger(__name__)

GATHER_S = 0.002
NEWS_MAX = 4_096
"""Bookings that wait to be told, at most; the oldest are left out."""
PART_BOOKINGS = 1_000
"""In one message: some 100 kB, 300 kB at most, and a few milliseconds of work for who gives it."""
PART_S = 1.0
ALL_S = 5.0
"""How long a start waits for the others; bookings that are missed show in load reports."""


class Replicas:
    """One router's side of it."""

    def __init__(self, bus: Bus, subjects: Subjects, core: RouterCore, producer: Producer) -> None:
        self._bus = bus
        self._subjects = subjects
        self._core = core
        self._producer = producer
        self._news: deque[Booking] = deque(maxlen=NEWS_MAX)
        self._noted = anyio.Event()
        self._questions = Reader[BookingsRequest](BookingsRequest)
        self._answers = Reader[Bookings](Bookings)

    @property
    def endpoint(self) -> Endpoint:
        """Where a new replica asks; to be served once we know everything ourselves."""
        return Endpoint("bookings", self._subjects.bookings, self._tell_all, concurrency=1)

    def note(self, booking: Booking) -> None:
        """We have given a worker a request; the others are told soon. At most once: what is lost,
        or too much, shows in load reports."""
        self._news.append(booking)
        self._noted.set()

    async def tell(self) -> None:
        """Tell what was noted, until cancelled."""
        subject = self._subjects.ledger(ServiceId(self._core.name))
        while True:
            await self._noted.wait()
            await anyio.sleep(GATHER_S)
            self._noted = anyio.Event()
            news = deque(filter(self._core.ledger.wants, self._news))
            self._news.clear()
            while news:
                part = [news.popleft() for _ in range(min(PART_BOOKINGS, len(news)))]
                sealed = self._producer.seal(Bookings(tuple(part), last=not news))
                try:
                    await self._bus.publish(subject, sealed)
                except (BusError, ValueError) as error:
                    log.debug("the other routers were not told of bookings: %s", error)

    async def learn(self) -> None:
        """Take over the bookings of the others, if there are any."""
        known = 0
        with anyio.move_on_after(ALL_S) as asking:
            try:
                async for part in self._parts():
                    for booking in part:
                        self._core.booked_elsewhere(booking, anyio.current_time())
                    known += len(part)
            except NoResponder:
                log.info("no other router serves")
            except (BusError, Unreadable) as error:
                log.warning("not all bookings of the other routers are known: %s", error)
        if asking.cancelled_caught:
            log.warning("the other routers did not tell all their bookings within %g s", ALL_S)
        log.info("%d bookings were made by other routers", known)

    async def _parts(self) -> AsyncGenerator[Sequence[Booking]]:
        """Raises `BusError`, `Unreadable`."""
        question = BookingsRequest()
        while True:
            sealed = self._producer.seal(question)
            try:
                answer = await self._bus.request(self._subjects.bookings, sealed, timeout_s=PART_S)
            except BusTimeout:
                continue  # who was asked may have died: the next question goes to another
            part = self._answers.open(answer.data).body
            yield part.bookings
            if part.last or not part.bookings:
                return
            question = BookingsRequest(part.bookings[-1].worker, part.bookings[-1].request)

    async def _tell_all(self, message: Message) -> bytes:
        try:
            after = self._questions.open(message.data).body
        except Unreadable as error:
            raise RequestRefused(400, str(error)) from error
        every = self._core.ledger.bookings((after.worker, after.request))
        part = tuple(islice(every, PART_BOOKINGS))
        return self._producer.seal(Bookings(part, last=len(part) < PART_BOOKINGS))
