"""The waiting room: a request that finds all workers busy waits here until one is free.

Whoever comes while others wait for the same model waits behind them, so that nobody overtakes. When
something has changed that may have freed a worker, the usher calls those who wait, one after the
other in the line's order, and each decides for itself. Nobody looks again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from enum import Enum
from itertools import count

import anyio

from controlplane.router.core import RouterCore
from controlplane.router.waiting import Line, Place
from proto.progress import Withdrawn
from proto.route import ALL_BUSY, Chosen, Queued, Rejected, RouteReply, RouteRequest, Verdict

Decide = Callable[[float], Verdict]

HOPELESS = 2.0
"""A wait that is likely to last so many times what is left of the deadline is not begun."""


class _Parting(Enum):
    """Why a guest leaves without having been served."""

    ASK_AGAIN = "the caller wants to hear something"
    TOO_LATE = "none became free in time"
    HOPELESS = "none is likely to become free in time"
    NO_ROOM = "there is no room to wait: others go first"
    CLOSING = "this router is leaving"
    WITHDRAWN = "the caller wants it no more"


class _Guest:
    """One who waits, and what the usher wants of it."""

    def __init__(self, request: RouteRequest, line: Line, place: Place) -> None:
        self.request = request
        self.line = line
        self.place = place
        self.sent: _Parting | None = None
        """Why it must leave, if it must."""
        self._called = anyio.Event()
        self._done = anyio.Event()

    async def call(self) -> None:
        """Let it decide now; returns when it has, or has left."""
        self._done = anyio.Event()
        self._called.set()
        await self._done.wait()

    def send(self, why: _Parting) -> None:
        """Make it leave."""
        self.sent = why
        self._called.set()

    async def may_decide(self) -> bool:
        """Wait to be called; False: it must leave."""
        await self._called.wait()
        self._called = anyio.Event()
        return self.sent is None

    def done(self) -> None:
        """It has decided, or has left."""
        self._done.set()


class WaitingRoom:
    """Those who wait in this router, for any model, at most `waiting_max`."""

    def __init__(self, core: RouterCore, waiting_max: int) -> None:
        self._core = core
        self._waiting_max = waiting_max
        self._lines: dict[str, Line] = {}
        self._guests: dict[Place, _Guest] = {}
        self._numbers = count()
        self._stirred = anyio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._guests)

    def stir(self) -> None:
        """Something has changed; a worker may be free."""
        if self._guests:
            self._stirred.set()

    def close(self) -> None:
        """Nobody waits here any more; who does is told to go on waiting elsewhere."""
        self._closed = True
        for guest in self._guests.values():
            guest.send(_Parting.CLOSING)

    def withdraw(self, withdrawn: Withdrawn) -> None:
        """Whoever waits for this is wanted no more."""
        for guest in self._guests.values():
            asked = guest.request
            if (asked.request, asked.attempt) == (withdrawn.request, withdrawn.attempt):
                guest.send(_Parting.WITHDRAWN)

    async def usher(self) -> None:
        """Call those who wait when their turn may have come; until cancelled."""
        while True:
            await self._stirred.wait()
            self._stirred = anyio.Event()
            for model in list(self._lines):
                await self._call(model)

    def at_once(self, request: RouteRequest, now_s: float, decide: Decide) -> Verdict | None:
        """A decision if somebody is free, and nobody would be overtaken by it; else None."""
        if self._lines and not self._closed and self._would_overtake(request.model, now_s):
            return None
        verdict = decide(now_s)
        return None if _is_busy(verdict) else verdict

    async def answer(self, request: RouteRequest, now_s: float, decide: Decide) -> RouteReply:
        """A decision, `at_once` if that can be; `Queued` to who wants to hear that it waits.

        `decide` is told the time; it says `ALL_BUSY` while nobody is free, and is asked again when
        somebody may be.
        """
        verdict = self.at_once(request, now_s, decide)
        if verdict is not None:
            return verdict
        if self._closed:
            return self._farewell(request, _Parting.CLOSING, 0)
        guest = self._enter(request, now_s)
        served = False
        try:
            reply = await self._wait(guest, decide)
            served = isinstance(reply, Chosen)
            return reply
        finally:
            self._remove(guest, served=served)

    def _would_overtake(self, model: str, now_s: float) -> bool:
        """While all are busy nobody can."""
        return model in self._lines and self._core.anyone_free(model, now_s)

    def _enter(self, request: RouteRequest, now_s: float) -> _Guest:
        """A place in the line. Who has to leave for it, maybe this very one, is told so."""
        place = Place(
            deadline_s=now_s + request.deadline_s,
            number=next(self._numbers),
            priority=request.priority,
            tenant=request.tenant,
            cost_tokens=request.prompt_tokens + request.expected_output_tokens,
        )
        line = self._lines.setdefault(request.model, Line())
        line.join(place)
        guest = self._guests[place] = _Guest(request, line, place)
        wait_s = self._core.wait_s(request.model, line.ahead(place), now_s)
        if wait_s is not None and wait_s > HOPELESS * request.deadline_s:
            guest.send(_Parting.HOPELESS)
        elif len(self) > self._waiting_max:
            last = self._guests[max(self._lines.values(), key=len).last()]
            last.send(_Parting.NO_ROOM)
            self._remove(last, served=False)
        self.stir()
        return guest

    async def _wait(self, guest: _Guest, decide: Decide) -> RouteReply:
        request = guest.request
        patience_s = min(request.answer_s or request.deadline_s, request.deadline_s)
        with anyio.move_on_after(patience_s):
            while await guest.may_decide():
                verdict = decide(anyio.current_time())
                if not _is_busy(verdict):
                    return verdict
                guest.done()
        late = _Parting.ASK_AGAIN if patience_s < request.deadline_s else _Parting.TOO_LATE
        in_line = guest.place in self._guests
        ahead = guest.line.ahead(guest.place) if in_line else len(guest.line)
        return self._farewell(request, guest.sent or late, ahead)

    def _farewell(self, request: RouteRequest, why: _Parting, ahead: int) -> RouteReply:
        if why is _Parting.ASK_AGAIN or (why is _Parting.CLOSING and request.answer_s):
            return Queued(ahead)
        return self._core.too_busy(request.model, ahead, anyio.current_time(), why.value)

    def _remove(self, guest: _Guest, *, served: bool) -> None:
        """It is in nobody's way any more. May be called twice."""
        if self._guests.pop(guest.place, None) is not None:
            guest.line.leave(guest.place, served=served)
        self._lines = {model: line for model, line in self._lines.items() if line}
        guest.done()

    async def _call(self, model: str) -> None:
        """Let each decide in its turn for as long as somebody is free. Where one has found nobody,
        others of its kind need not look."""
        in_vain: set[Hashable] = set()
        while self._would_overtake(model, anyio.current_time()):
            guests = (self._guests[place] for place in self._lines[model])
            guest = next(
                (each for each in guests if self._core.kind(each.request) not in in_vain), None
            )
            if guest is None:
                return  # who is free is no help to any of them
            await guest.call()
            if guest.place in self._guests:
                in_vain.add(self._core.kind(guest.request))


def _is_busy(verdict: Verdict) -> bool:
    return isinstance(verdict, Rejected) and verdict.reason == ALL_BUSY
