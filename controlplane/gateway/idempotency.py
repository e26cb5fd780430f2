"""One request, asked twice with one key, is generated once: the second joins the first (GW7).

The work runs in a task of its own and writes into a record; whoever asked reads from that record at
his own pace, from the beginning. So a client whose connection broke may ask again and gets the
same answer, also while it is still being made. When nobody reads any more the work is cancelled,
as always. Answers that came to a good end are kept for a while; failures are not.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

from controlplane.gateway.flight import Sink
from controlplane.gateway.openai import ClientError
from proto.progress import COMPLETED

KEY_CHARS_MAX = 255
ANSWER_BYTES_MAX = 16 << 20
ANSWERS_MAX = 65_536
"""Kept at once, however short they are."""

Run = Callable[[Sink], Awaitable[str]]
"""Serves the request into a sink and returns its outcome; raises `ClientError`."""


def fingerprint(path: str, body: bytes) -> bytes:
    """What tells requests apart that come under one key."""
    digest = hashlib.sha256(path.encode() + b"\n")
    digest.update(body)
    return digest.digest()


class Answers:
    """Answers by tenant and key, at most `bytes_max` of them, each for `kept_s` after its end."""

    def __init__(self, kept_s: float, bytes_max: int) -> None:
        self._kept_s = kept_s
        self._bytes_max = bytes_max
        self._answers: dict[tuple[str, str], _Answer] = {}
        self._kept: OrderedDict[tuple[str, str], _Answer] = OrderedDict()
        """Those of them that have ended, in the order in which they did."""
        self._kept_bytes = 0
        self._tasks: TaskGroup | None = None

    async def run(self) -> None:
        """Work on requests until cancelled; `serve` needs it."""
        async with anyio.create_task_group() as self._tasks:
            await anyio.sleep_forever()

    async def serve(self, tenant: str, key: str, asked: bytes, run: Run, sink: Sink) -> None:
        """Give `sink` the answer that `key` stands for; `asked` is the request's `fingerprint`.
        Raises `ClientError`, as does `run`."""
        if len(key) > KEY_CHARS_MAX:
            raise ClientError(
                400,
                f"the idempotency key is longer than {KEY_CHARS_MAX} characters",
                code="invalid_value",
                param="idempotency-key",
            )
        self._forget_old(anyio.current_time())
        name = tenant, key
        answer = self._answers.get(name)
        if answer is None:
            assert self._tasks is not None, "not running"
            answer = self._answers[name] = _Answer(asked)
            self._tasks.start_soon(self._work, name, answer, run)
        elif answer.asked != asked:
            raise ClientError(
                422,
                "this idempotency key was used for another request",
                code="idempotency_key_reused",
                param="idempotency-key",
            )
        try:
            await answer.read(sink)
        finally:
            if not answer.readers and not answer.whole:
                answer.work.cancel()
                self._drop(name, answer)

    async def _work(self, name: tuple[str, str], answer: _Answer, run: Run) -> None:
        good = False
        with answer.work:
            try:
                good = await run(answer) == COMPLETED
            except Exception as error:  # noqa: BLE001 raised again where the answer is read
                answer.failure = error
        now_s = anyio.current_time()
        answer.end(now_s)
        if good and self._answers.get(name) is answer:
            self._kept[name] = answer
            self._kept_bytes += answer.size_bytes
            self._forget_old(now_s)
        else:
            self._drop(name, answer)

    def _drop(self, name: tuple[str, str], answer: _Answer) -> None:
        """Its readers go on with it; nobody else may join."""
        if self._answers.get(name) is answer:
            del self._answers[name]

    def _forget_old(self, now_s: float) -> None:
        old_s = now_s - self._kept_s
        while self._kept and (
            next(iter(self._kept.values())).ended_s < old_s
            or self._kept_bytes > self._bytes_max
            or len(self._kept) > ANSWERS_MAX
        ):
            name, answer = self._kept.popitem(last=False)
            self._kept_bytes -= answer.size_bytes
            self._drop(name, answer)


@dataclass
class _Answer(Sink):
    """A `Sink` that keeps all it is given, and lets any number of readers follow."""

    asked: bytes
    work: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    head: tuple[int, Mapping[str, str], int | None] | None = None
    pieces: list[bytes] = field(default_factory=list)
    size_bytes: int = 0
    failure: Exception | None = None
    """Instead of an answer, or of the rest of one."""
    ended_s: float = 0.0
    ended: bool = False
    whole: bool = False
    """All that readers get is there, though its work may have something left to do."""
    readers: int = 0
    _news: anyio.Event = field(default_factory=anyio.Event)

    def start(self, status: int, headers: Mapping[str, str], length: int | None = None) -> None:
        if length is not None and length > ANSWER_BYTES_MAX:
            raise _too_long()
        self.head = status, headers, length
        self._tell()

    def put(self, data: bytes) -> bool:
        too_long = self.size_bytes > ANSWER_BYTES_MAX
        self.size_bytes += len(data)
        if not too_long and self.size_bytes > ANSWER_BYTES_MAX:
            # Said once: what follows is the event that tells the client.
            raise _too_long()
        if not self.whole:  # as what is put behind a whole answer is not sent
            self.pieces.append(data)
            self._tell()
        return True

    async def writable(self) -> None:
        """Readers come later, each at his own pace."""

    def finish(self) -> None:
        self.whole = True
        self._tell()

    def end(self, now_s: float) -> None:
        """Nothing more will come."""
        self.ended, self.ended_s, self.whole = True, now_s, True
        self._tell()

    async def read(self, sink: Sink) -> None:
        """Give it all to another sink, as it comes. Raises what went wrong, at the end."""
        finished = False
        self.readers += 1
        try:
            while self.head is None and not self.ended:
                await self._news.wait()
            if self.head is not None:
                sink.start(*self.head)
            told = 0
            while told < len(self.pieces) or not self.ended:
                if told == len(self.pieces):
                    if self.whole and not finished:
                        sink.finish()
                        finished = True
                    await self._news.wait()
                    continue
                await sink.write(self.pieces[told])
                told += 1
            if self.failure is not None:
                raise self.failure
        finally:
            self.readers -= 1

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()


def _too_long() -> ClientError:
    return ClientError(507, "the answer is too long to be kept under a key", code="answer_too_long")
