"""Where requests are answered: what every carrier's `serve` does behind its subscriptions.

A refusal travels as the two headers of the NATS services protocol (ADR-32), in every carrier.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Protocol

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from proto.wire.errors import BusUnavailable, RequestRefused
from proto.wire.ports import Endpoint, Headers, Message, ServiceInfo

log = logging.getLogger(__name__)

ERROR_HEADER = "Nats-Service-Error"
ERROR_CODE_HEADER = "Nats-Service-Error-Code"

Answer = bytes | RequestRefused


class Way(Protocol):
    """Back to whoever asked. Sending raises `BusUnavailable`, or ValueError for what is too
    large."""

    def is_free(self) -> bool:
        """Whether `send` would not have to wait."""

    def post(self, answer: Answer) -> None:
        """Send, for who cannot wait and has seen that the way is free."""

    async def send(self, answer: Answer) -> None: ...


UNSENT = (BusUnavailable, TypeError, ValueError)
UNSENDABLE = RequestRefused(500, "the answer cannot be sent")

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_VERSION = re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")


def refusal_headers(refusal: RequestRefused) -> Headers:
    """How a refusal is told."""
    return {ERROR_HEADER: refusal.description, ERROR_CODE_HEADER: str(refusal.code)}


def raise_if_refused(answer: Message) -> None:
    """Raise `RequestRefused` if that is what the answer says."""
    if not answer.headers or ERROR_CODE_HEADER not in answer.headers:
        return
    code = answer.headers[ERROR_CODE_HEADER]
    raise RequestRefused(
        int(code) if code.isdecimal() else 500, answer.headers.get(ERROR_HEADER, "")
    )


@dataclass
class Tally:
    """What an endpoint has done so far; times in nanoseconds, as the services protocol has it."""

    requests: int = 0
    errors: int = 0
    last_error: str = ""
    processing_ns: int = 0

    def count(self, answer: Answer, processing_ns: int = 0) -> None:
        self.requests += 1
        self.processing_ns += processing_ns
        if isinstance(answer, RequestRefused):
            self.errors += 1
            self.last_error = str(answer)


_Work = tuple[Message, Way]


class _Bell:
    """Calls one idle clerk, who is then no longer idle."""

    def __init__(self) -> None:
        self._rung = anyio.Event()
        self._work: _Work | None = None

    def ring(self, work: _Work | None) -> None:
        self._work = work
        self._rung.set()

    async def rung(self) -> _Work | None:
        await self._rung.wait()
        return self._work


class Desk:
    """One endpoint at work, within the bounds that the endpoint sets.

    A clerk is a task. One that has nothing to do waits for more: to start a task for each request
    costs more than many a request does.
    """

    def __init__(self, endpoint: Endpoint, tasks: TaskGroup) -> None:
        self.endpoint = endpoint
        self.tally = Tally()
        self._tasks = tasks
        self._context = copy_context()
        """A clerk's own: who happens to ask first may be in the middle of a trace."""
        self._clerks = 0
        self._idle: list[_Bell] = []
        self._waiting: deque[_Work] = deque()
        self._closed = False

    def take(self, message: Message, way: Way) -> None:
        """Answer at once, or soon, or refuse if too many wait already."""
        if self.endpoint.at_once is not None and way.is_free() and self._at_once(message, way):
            return
        if self._idle:
            self._idle.pop().ring((message, way))
        elif self._clerks < self.endpoint.concurrency:
            self._clerks += 1
            self._context.run(self._tasks.start_soon, self._work, message, way)
        elif len(self._waiting) < self.endpoint.queue_messages:
            self._waiting.append((message, way))
        else:
            refusal = RequestRefused(503, f"{self.endpoint.name}: too many requests wait")
            self.tally.count(refusal)
            self._posted(refusal, way)

    def close(self) -> None:
        """Nothing will be taken any more; what was is still answered."""
        self._closed = True
        while self._idle:
            self._idle.pop().ring(None)

    def _at_once(self, message: Message, way: Way) -> bool:
        """True if that could be answered without a clerk."""
        assert self.endpoint.at_once is not None
        began_ns = perf_counter_ns()
        answer: Answer | None
        try:
            answer = self.endpoint.at_once(message)
        except Exception as error:  # noqa: BLE001
            answer = self._refusal(error)
        if answer is None:
            return False
        self.tally.count(answer, perf_counter_ns() - began_ns)
        if not self._posted(answer, way):
            self._posted(UNSENDABLE, way)
        return True

    async def _work(self, message: Message, way: Way) -> None:
        """One clerk, until the desk is closed."""
        work: _Work | None = (message, way)
        while work is not None:
            await self._serve(*work)
            work = await self._next()

    async def _next(self) -> _Work | None:
        """What to do now, or soon; None: go home."""
        if self._waiting:
            await checkpoint()  # many short requests must not keep the loop to their clerks
        if self._waiting:
            return self._waiting.popleft()
        if self._closed:
            return None
        bell = _Bell()
        self._idle.append(bell)
        return await bell.rung()

    async def _serve(self, message: Message, way: Way) -> None:
        began_ns = perf_counter_ns()  # uvloop's clock stands still within a turn
        answer = await self._answer(message)
        self.tally.count(answer, perf_counter_ns() - began_ns)
        if not await self._sent(answer, way):
            await self._sent(UNSENDABLE, way)

    async def _sent(self, answer: Answer, way: Way) -> bool:
        """False if this is nothing that can be sent, by a fault of the handler."""
        try:
            await way.send(answer)
        except UNSENT as error:
            return self._excused(error)
        return True

    def _posted(self, answer: Answer, way: Way) -> bool:
        """The same, at once."""
        try:
            way.post(answer)
        except UNSENT as error:
            return self._excused(error)
        return True

    def _excused(self, error: Exception) -> bool:
        if isinstance(error, BusUnavailable):
            log.warning("%s: an answer was not sent: %s", self.endpoint.name, error)
            return True
        log.error("%s: the answer cannot be sent", self.endpoint.name, exc_info=error)
        return False

    async def _answer(self, message: Message) -> Answer:
        try:
            return await self.endpoint.handle(message)
        except Exception as error:  # noqa: BLE001
            return self._refusal(error)

    def _refusal(self, error: Exception) -> RequestRefused:
        """What a handler has raised, in words; its bug must not end the service."""
        if isinstance(error, RequestRefused):
            return error
        log.error("%s: the handler failed", self.endpoint.name, exc_info=error)
        return RequestRefused(500, "internal error")


@asynccontextmanager
async def open_desks(
    service: ServiceInfo, endpoints: Sequence[Endpoint]
) -> AsyncIterator[list[Desk]]:
    """A desk for each endpoint. Leaving finishes all that was taken; leaving by an error or a
    cancellation ends it at once."""
    _check(service, endpoints)
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        desks = [Desk(endpoint, tasks) for endpoint in endpoints]
        try:
            yield desks
        except Exception as error:  # noqa: BLE001 raised below, as itself and not in a group
            failure = error
            tasks.cancel_scope.cancel()
        for desk in desks:
            desk.close()
    if failure is not None:
        raise failure


def _check(service: ServiceInfo, endpoints: Sequence[Endpoint]) -> None:
    for name in (service.name, *(endpoint.name for endpoint in endpoints)):
        if not _NAME.fullmatch(name):
            raise ValueError(f"a name of A-Z a-z 0-9 - _ is needed, not {name!r}")
    if not _VERSION.fullmatch(service.version):
        raise ValueError(f"{service.name}: a version is 1.2.3, not {service.version!r}")
