"""One request under way: what is known of it so far, and the record it leaves."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from controlplane.gateway.allowance import Reservation
from controlplane.gateway.openai import Ask
from controlplane.gateway.routing import Hints
from controlplane.gateway.sse import Usage
from controlplane.gateway.transcript import Transcript
from controlplane.runtime.version import VERSION
from proto.ids import RequestId, WorkerId
from proto.progress import COMPLETED
from proto.records import RequestRecord


class Sink(Protocol):
    """Where the answer goes: a head, and pieces of a body."""

    def start(self, status: int, headers: Mapping[str, str], length: int | None = None) -> None: ...

    def put(self, data: bytes) -> bool:
        """False: the client is slow, and should be `writable` before the next piece."""

    async def writable(self) -> None:
        """Waits for a slow client. Raises `ClientStalled`."""

    async def write(self, data: bytes) -> None:
        """A piece for which a slow client is waited. Raises `ClientStalled`."""
        if not self.put(data):
            await self.writable()

    def finish(self) -> None:
        """The client has all of it: it may go, and cancels nothing."""


class ClientStalled(Exception):
    """The client has not read for too long."""


class EngineFailed(Exception):
    """This worker cannot finish the request; `reason` is a short word for metrics and errors."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass
class Flight:
    """Mutable on purpose: filled in on the way by whoever learns something."""

    request: RequestId
    ask: Ask
    hints: Hints
    arrived_s: float
    """Seconds since the epoch."""
    began_s: float
    """`anyio.current_time()` at arrival."""
    prompt_tokens: int = 0
    tokens: array[int] | None = None
    """Of the prompt, to name its blocks by."""
    attempts: int = 0
    base_model: str = ""
    """Whose workers serve it; the model asked for may be an adapter of it."""
    worker: WorkerId | None = None
    policy: str = ""
    router: str = ""
    engine: str = ""
    """Name and version, as `vllm/0.11.2`."""
    predicted_cached_tokens: int = 0
    started: bool = False
    """Bytes have gone to the client: from here on there is no second try."""
    first_token_s: float | None = None
    last_token_s: float | None = None
    last_tokens: int = 0
    """`output_tokens` at `last_token_s`; of a stream under way that is looked up now and then."""
    emitted_s: float | None = None
    gaps_s: array[float] = field(default_factory=lambda: array("d"))
    """Between what the stream has brought and what it brought next, each of one or more tokens."""
    pieces: int = 0
    """Of the answer, each of one or more tokens."""
    counted_tokens: int | None = None
    """As its engine has counted, at its end."""
    cached_tokens: int | None = None
    prefill_usage: Usage | None = None
    """By the engine that prefilled for the one that answers; only it knows what it had cached."""
    accepted_drafts: int | None = None
    """Of its tokens, brought by speculative decoding; None where nobody says."""
    rejected_drafts: int = 0
    outcome: str = COMPLETED
    failed: list[WorkerId] = field(default_factory=list)
    migrations: int = 0
    transcript: Transcript | None = None
    """What was said so far, of a request that may go on elsewhere."""
    reservation: Reservation | None = None
    """What was set aside for it of its tenant's tokens."""

    def saw(self, events: bytes, pieces: int) -> None:
        """The stream has brought `events`, which make `pieces` of the answer so far."""
        self.pieces = pieces
        if self.transcript is not None:
            self.transcript.see(events)

    def timed(self, now_s: float) -> None:
        """What has been seen of the answer was seen by now, and the last of it just now."""
        if self.first_token_s is None:
            self.first_token_s = now_s
        self.last_token_s, self.last_tokens = now_s, self.output_tokens

    def emitted(self, now_s: float) -> None:
        """The stream has just brought something of the answer."""
        if self.emitted_s is not None:
            self.gaps_s.append(now_s - self.emitted_s)
        self.emitted_s = now_s

    def saw_usage(self, usage: Usage | None) -> None:
        """The engine's own count is better than ours."""
        if told := self.prefill_usage or usage:
            self.cached_tokens = told.cached_tokens
        if usage is not None:
            self.prompt_tokens = usage.prompt or self.prompt_tokens
            self.counted_tokens = usage.completion
            self.accepted_drafts = usage.accepted_drafts
            self.rejected_drafts = usage.rejected_drafts

    @property
    def output_tokens(self) -> int:
        """By the engine's count, or as far as we have seen."""
        if self.counted_tokens is not None:
            return self.counted_tokens
        # A piece may bring several tokens; a transcript knows them one by one.
        told = 0 if self.transcript is None else len(self.transcript.tokens)
        return max(self.pieces, told)

    @property
    def expected_tokens(self) -> int:
        """What it may take, prompts and answers."""
        return self.prompt_tokens + self.ask.answers * self.ask.expected_output_tokens

    @property
    def used_tokens(self) -> int:
        """What it has taken; a prompt that no engine saw costs nothing."""
        return self.prompt_tokens + self.output_tokens if self.attempts else 0

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token_s is None else self.first_token_s - self.began_s

    @property
    def tpot_s(self) -> float | None:
        if self.first_token_s is None or self.last_token_s is None or self.last_tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (self.last_tokens - 1)

    def record(self, now_s: float, trace_id: str) -> RequestRecord:
        """What is kept of it; no content."""
        return RequestRecord(
            request=self.request,
            model=self.ask.model,
            tenant=self.hints.tenant.name,
            slo_class=self.hints.tenant.slo_class,
            arrived_s=self.arrived_s,
            outcome=self.outcome,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            cached_tokens=self.cached_tokens,
            predicted_cached_tokens=self.predicted_cached_tokens,
            ttft_ms=None if self.ttft_s is None else self.ttft_s * 1000,
            tpot_ms=None if self.tpot_s is None else self.tpot_s * 1000,
            duration_ms=(now_s - self.began_s) * 1000,
            attempts=self.attempts,
            accepted_drafts=self.accepted_drafts,
            rejected_drafts=self.rejected_drafts,
            kind=self.ask.kind.value,
            sampled=self.ask.sampled,
            worker=self.worker,
            policy=self.policy,
            trace_id=trace_id,
            router=self.router,
            engine=self.engine,
            version=VERSION,
            base_model=self.base_model,
        )
