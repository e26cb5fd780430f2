"""A trace through a live cluster over HTTP: arrivals on time, everything measured at the client.

Times count from the moment a request was due, not from when it was sent: a client that falls
behind must not make the cluster look quick (coordinated omission).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio
import msgspec

from controlplane.replay.report import Outcome, Run, Status
from controlplane.replay.tokens import expand
from controlplane.replay.trace import TraceRequest
from proto.wire.errors import WireError
from proto.wire.ports import Http, HttpResponse, HttpTimeouts

POLICY_HEADER = "x-tokenplane-policy"

_REJECTED = frozenset({429, 503})
_BODY_BYTES_MAX = 1 << 20
_DETAIL_BYTES = 200


class NotServing(Exception):
    """The cluster cannot be asked, or does not serve the model; says what to do."""


class LiveTarget(msgspec.Struct, frozen=True):
    """Where the trace goes and how fast. `salt` makes the tokens of one run unlike another's, so
    that no policy profits from what the one before left in the caches."""

    url: str
    model: str
    policy: str
    block_tokens: int
    speed: float = 1.0
    concurrency: int = 1024
    timeout_s: float = 300.0
    salt: int = 0


async def run_live(
    http: Http,
    target: LiveTarget,
    requests: Sequence[TraceRequest],
    on_ended: Callable[[int], None],
) -> Run:
    """Replay all of it; a request that goes wrong is an outcome, never an exception.

    At most `concurrency` requests are open at once; what is due above that waits, and its wait
    counts. `on_ended` is told how many have ended so far.
    """
    outcomes: dict[int, Outcome] = {}
    gaps: list[tuple[float, int]] = []
    slots = anyio.Semaphore(target.concurrency)
    start_s = anyio.current_time() - (requests[0].arrival_s / target.speed if requests else 0.0)

    async def one(index: int, due_s: float) -> None:
        try:
            outcomes[index] = await _serve(http, target, requests[index], due_s, gaps)
        finally:
            slots.release()
        on_ended(len(outcomes))

    async with anyio.create_task_group() as tasks:
        for index, request in enumerate(requests):
            due_s = start_s + request.arrival_s / target.speed
            await anyio.sleep_until(due_s)
            await slots.acquire()
            tasks.start_soon(one, index, due_s)
    return Run(target.policy, [outcomes[i] for i in range(len(requests))], busy=None, gaps=gaps)


async def served_model(http: Http, url: str, model: str | None) -> str:
    """`model` if the cluster serves it, or the only one it serves. Raises `NotServing`."""
    try:
        async with http.exchange("GET", f"{url.rstrip('/')}/v1/models") as response:
            body = await response.read(limit_bytes=_BODY_BYTES_MAX)
            if response.status != 200:
                raise NotServing(f"{url} answered HTTP {response.status} when asked for its models")
        names = [card.id for card in msgspec.json.decode(body, type=_Models).data]
    except WireError as error:
        raise NotServing(f"no cluster at {url}: {error}; is `tokenplane up` running?") from error
    except msgspec.DecodeError as error:
        raise NotServing(f"{url} does not list models as OpenAI does: {error}") from error
    if model is None and len(names) == 1:
        return names[0]
    if model not in names:
        asked = "say --model" if model is None else f"not {model!r}"
        raise NotServing(f"{url} serves {', '.join(names) or 'no model'}; {asked}")
    return model


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class _PromptTokensDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int
    prompt_tokens_details: _PromptTokensDetails | None = None


class _Error(msgspec.Struct):
    message: str = "no message"


class _Event(msgspec.Struct):
    """What is read of a completion chunk; the rest is ignored."""

    choices: list[msgspec.Raw] = []
    usage: _Usage | None = None
    error: _Error | None = None


class _BadStream(Exception):
    """The answer is not a whole completion stream; says why."""


class _Answer:
    """Reads one stream of server-sent events and sums it up as it comes."""

    def __init__(self) -> None:
        self._decoder = msgspec.json.Decoder(_Event)
        self._pending = b""
        self._first_s: float | None = None
        self._last_s = 0.0
        self.gaps: list[tuple[float, int]] = []
        """Between events with news, in milliseconds, each counted once."""
        self._usage: _Usage | None = None
        self._done = False

    def feed(self, chunk: bytes, now_s: float) -> None:
        """Take the next bytes; raises `_BadStream`."""
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        if len(self._pending) > _BODY_BYTES_MAX:
            raise _BadStream(f"an event of more than {_BODY_BYTES_MAX} bytes")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                self._done = True
            elif data and line.startswith(b"data:"):
                self._take(data, now_s)

    def outcome(self, target: LiveTarget, request: TraceRequest, due_s: float) -> Outcome:
        """What the stream came to; raises `_BadStream` if it is not whole."""
        if not self._done:
            raise _BadStream("the stream broke off before [DONE]")
        if self._first_s is None or self._usage is None:
            raise _BadStream("the stream ended without a token, or without its usage")
        after_first = self._usage.completion_tokens - 1
        decode_ms = (self._last_s - self._first_s) * 1000
        details = self._usage.prompt_tokens_details
        cached_tokens = (details.cached_tokens or 0) if details else 0
        return Outcome(
            Status.COMPLETED,
            ttft_ms=(self._first_s - due_s) * 1000,
            tpot_ms=decode_ms / after_first if after_first > 0 else None,
            prompt_blocks=request.input_tokens // target.block_tokens,
            cached_blocks=cached_tokens // target.block_tokens,
        )

    def _take(self, data: bytes, now_s: float) -> None:
        try:
            event = self._decoder.decode(data)
        except msgspec.DecodeError as error:
            raise _BadStream(f"not a completion chunk: {error}") from error
        if event.error is not None:
            raise _BadStream(f"the stream ended in an error: {event.error.message}")
        if event.choices:
            if self._first_s is None:
                self._first_s = now_s
            else:
                self.gaps.append(((now_s - self._last_s) * 1000, 1))
            self._last_s = now_s
        self._usage = event.usage or self._usage


async def _serve(
    http: Http,
    target: LiveTarget,
    request: TraceRequest,
    due_s: float,
    gaps: list[tuple[float, int]],
) -> Outcome:
    timeouts = HttpTimeouts(first_byte_s=target.timeout_s, idle_s=target.timeout_s)
    exchange = http.exchange(
        "POST",
        f"{target.url.rstrip('/')}/v1/completions",
        body=_body(target, request),
        headers={"content-type": "application/json", POLICY_HEADER: target.policy},
        timeouts=timeouts,
    )
    try:
        async with exchange as response:
            if response.status != 200:
                return await _refused(response)
            answer = _Answer()
            async for chunk in response.chunks():
                answer.feed(chunk, anyio.current_time())
            gaps += answer.gaps
            return answer.outcome(target, request, due_s)
    except (WireError, _BadStream) as error:
        return Outcome(Status.FAILED, detail=str(error))


async def _refused(response: HttpResponse) -> Outcome:
    body = await response.read(limit_bytes=_BODY_BYTES_MAX)
    status = Status.REJECTED if response.status in _REJECTED else Status.FAILED
    why = body[:_DETAIL_BYTES].decode(errors="replace")
    return Outcome(status, detail=f"HTTP {response.status}: {why}")


def _body(target: LiveTarget, request: TraceRequest) -> bytes:
    return msgspec.json.encode(
        {
            "model": target.model,
            "prompt": expand(request, target.salt).tolist(),
            "max_tokens": request.output_tokens,
            # The trace says how long the answer was; the engine must not stop before.
            "ignore_eos": True,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
