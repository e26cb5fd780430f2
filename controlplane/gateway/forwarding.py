"""A streamed answer on its way through: the engine's events go to the client as they are read.

This is what every token costs, so it is a plain function that is called where the bytes come in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from controlplane.gateway.ending import missing_end
from controlplane.gateway.flight import EngineFailed, Sink
from controlplane.gateway.health import STUCK, Stream
from controlplane.gateway.openai import ClientError
from controlplane.gateway.sse import GivenUp, SseScanner
from proto.wire.errors import HttpError
from proto.wire.ports import HttpResponse

log = logging.getLogger(__name__)

STUCK_DETAIL = "none of its streams moved, and it did not answer a probe"


class Forwarding:
    """One leg of a streamed answer. `begin` is called before anything is sent to a client who has
    got nothing yet, `first` when the first token of this leg is there."""

    def __init__(
        self,
        stream: Stream,
        scanner: SseScanner,
        sink: Sink,
        *,
        begin: Callable[[], None],
        first: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._flight = stream.flight
        self._scanner = scanner
        self._sink = sink
        self._begin = begin
        self._first = first
        self._said_before = stream.flight.output_tokens
        self._seen = 0
        self._seen_s = 0.0

    async def run(self, response: HttpResponse) -> None:
        """Until the answer is whole. Raises `EngineFailed`, `ClientError`, `MalformedStream`,
        `ClientStalled` and `HttpError`."""
        flight, scanner = self._flight, self._scanner
        try:
            with self._stream.scope:
                while not await response.pour(self._take):
                    self._stream.held = True
                    await self._sink.writable()
                    self._stream.held = False
        except HttpError as error:
            if not self._ends(str(error)):
                raise
        if self._stream.scope.cancelled_caught and not self._ends(STUCK_DETAIL):
            raise EngineFailed(STUCK, STUCK_DETAIL)
        if scanner.given_up:
            raise gave_up(scanner.given_up)
        flight.saw_usage(scanner.usage)
        if self._seen:
            flight.timed(self._seen_s)
        why = "the engine ended the stream before its end"
        if not self._ends(why):
            raise EngineFailed("engine_lost", why)

    def _ends(self, why: str) -> bool:
        """Whether the answer has its end; we put it to one that broke off when all was said."""
        if self._scanner.done:
            return True
        missing = missing_end(self._flight, self._scanner)
        if missing is None:
            return False
        log.warning("request %s: ended in its engine's place: %s", self._flight.request, why)
        self._sink.put(missing)
        self._sink.finish()
        self._scanner.done = True
        return True

    def _take(self, piece: bytes, now_s: float) -> bool:
        scanner, flight = self._scanner, self._flight
        events = scanner.feed(piece)
        if not events:
            return True
        flight.saw(events, self._said_before + scanner.events)
        if not flight.started:
            flight.started = True
            self._begin()
        if scanner.events > self._seen:
            flight.emitted(now_s)
            if not self._seen:
                flight.timed(now_s)
                self._first()
            self._seen, self._seen_s = scanner.events, now_s
        free = self._sink.put(events)
        if scanner.done:
            self._sink.finish()
        return free


def gave_up(said: GivenUp) -> EngineFailed | ClientError:
    """What an engine's own error comes to: another engine may do better, unless the request is to
    blame."""
    if said.status < 500:
        return ClientError(said.status, said.message, code="engine_rejected")
    return EngineFailed("engine_gave_up", said.message)
