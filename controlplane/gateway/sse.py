"""What passes by in a stream of server-sent events, read without touching it.

The engine's bytes are forwarded as they are, event by event; the scanner only looks for the ends
of events, the first with content, usage, an error, and the final `[DONE]`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import msgspec

EVENT_BYTES_MAX = 4 << 20
MESSAGE_BYTES_MAX = 1_000
DONE = b"data: [DONE]"
RESPONSE_ENDS = frozenset({b"response.completed", b"response.incomplete", b"response.failed"})


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _OfDrafts(msgspec.Struct):
    accepted_prediction_tokens: int | None = None
    rejected_prediction_tokens: int | None = None


class Usage(msgspec.Struct):
    """An engine's own count, in the words of completions or of responses."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _OfDrafts | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: _Details | None = None

    @property
    def prompt(self) -> int:
        return self.prompt_tokens or self.input_tokens

    @property
    def completion(self) -> int:
        return self.completion_tokens or self.output_tokens

    @property
    def accepted_drafts(self) -> int | None:
        """Tokens that speculation brought; None: the engine did not speculate, or does not say."""
        details = self.completion_tokens_details
        return details.accepted_prediction_tokens if details else None

    @property
    def rejected_drafts(self) -> int:
        details = self.completion_tokens_details
        return (details.rejected_prediction_tokens or 0) if details else 0

    @property
    def cached_tokens(self) -> int | None:
        details = self.prompt_tokens_details or self.input_tokens_details
        return details.cached_tokens if details else None


class _HasUsage(msgspec.Struct):
    usage: Usage | None = None
    response: _HasUsage | None = None


class EngineError(msgspec.Struct):
    """What an engine says of a request that it does not serve, in OpenAI's words."""

    message: str = "no reason given"
    code: int | str | None = None
    param: str | None = None


class _HasError(msgspec.Struct):
    error: EngineError


NOT_AS_EXPECTED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What reading an engine's JSON may raise: no JSON, another shape, or nested too deep."""
_USAGE = msgspec.json.Decoder(_HasUsage)
_ERROR = msgspec.json.Decoder(_HasError)
_GIVEN_UP = re.compile(rb'"finish_reason"\s*:\s*"(abort|cancelled|error)"')
"""What engines write over an answer that they did not finish."""
_SUSPECT = re.compile(rb'"(?:error|abort|cancelled)"')
"""In every event that says so."""
_NO_USAGE = re.compile(rb'"usage"\s*:\s*null')
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
"""The event that tells the usage and nothing else."""


class MalformedStream(Exception):
    """The engine sent an event that is too long to be one, or cannot be read where it has to be."""


class GivenUp(NamedTuple):
    """The engine's own word that it will not finish an answer. `status` is as of HTTP: 400, and
    the request is to blame, or 500."""

    status: int
    message: str


class SseScanner:
    """Feed it every chunk, in order, and forward what it returns.

    `reshape` is given whole events and returns those that the client is to have instead.
    """

    def __init__(self, reshape: Callable[[bytes], bytes] | None = None) -> None:
        self._reshape = reshape
        self.events = 0
        """Events with content so far; engines send one a token or a few."""
        self.done = False
        self.given_up: GivenUp | None = None
        """The engine ended the stream with an error, which is ours to tell: neither that event nor
        anything after it is forwarded."""
        self.usage: Usage | None = None
        self.counted = False
        """The event that tells the usage and nothing else has come."""
        self._passed = b"", b""
        self._tail = bytearray()

    @property
    def last(self) -> bytes:
        """The events that came last, in at least two pieces: with how an answer ends, and with
        what it counts to."""
        return b"".join(self._passed)

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes; returns the whole events among them and what was kept before.

        Half an event waits for its other half, so that a stream that breaks never leaves the
        client with a torn one. Raises `MalformedStream`.
        """
        if self.given_up:
            return b""
        whole = self._whole_events(chunk)
        if _SUSPECT.search(whole):
            whole = self._before_it_gave_up(whole)
        if not whole:
            return b""
        if self._reshape is not None:
            whole = self._reshape(whole)
        for event in whole.split(b"\n\n"):
            if event:
                self._see(event.strip(b"\r\n"))
        self._passed = self._passed[1], whole
        return whole

    def _whole_events(self, chunk: bytes) -> bytes:
        tail = self._tail
        if not tail and chunk.endswith(b"\n\n"):
            return chunk  # as engines write them: an event a token
        searched = max(0, len(tail) - 1)
        tail += chunk
        end = tail.rfind(b"\n\n", searched) + 2
        if end < 2:
            if len(tail) > EVENT_BYTES_MAX:
                raise MalformedStream(f"an event of more than {EVENT_BYTES_MAX} bytes")
            return b""
        whole = bytes(tail[:end])
        del tail[:end]
        return whole

    def _before_it_gave_up(self, whole: bytes) -> bytes:
        """The events before the one, if there is one, that says that no more will come."""
        kept: list[bytes] = []
        for event in whole.split(b"\n\n"):
            self.given_up = _given_up(event.strip(b"\r\n"))
            if self.given_up:
                return b"".join(each + b"\n\n" for each in kept)
            kept.append(event)
        return whole

    def _see(self, event: bytes) -> None:
        if event.startswith(b"data:"):
            if event == DONE:
                self.done = True
            else:
                self.events += 1
                if b'"usage"' in event and _NO_USAGE.search(event) is None:
                    self.usage = usage_of(event.removeprefix(b"data:")) or self.usage
                    if _NO_CHOICES.search(event):
                        self.events -= 1
                        self.counted = True
        elif event.startswith(b"event:"):
            self._see_named(*event.split(b"\n", 1))

    def _see_named(self, name: bytes, data: bytes = b"") -> None:
        """An event of the responses API, which says its kind on a line of its own."""
        kind = name.removeprefix(b"event:").strip()
        if kind in RESPONSE_ENDS:
            self.done = True
            self.usage = usage_of(data.removeprefix(b"data:")) or self.usage
        elif kind.endswith(b".delta"):
            self.events += 1


def _given_up(event: bytes) -> GivenUp | None:
    """Whether an event says that its engine will not finish."""
    name, _, data = event.partition(b"data:")
    if name.strip() == b"event: error" or data.lstrip().startswith(b'{"error"'):
        return _error_in(data)
    return given_up_in(data) if name == b"" else None


def given_up_in(body: bytes) -> GivenUp | None:
    """Whether a body, or the data of an event, is an answer that its engine did not finish."""
    found = _GIVEN_UP.search(body)
    return GivenUp(500, f"it ended the answer with {found[1].decode()!r}") if found else None


def refusal_in(body: bytes) -> EngineError:
    """The engine's own words in the body of a refusal; the beginning of it if there are none."""
    try:
        return _ERROR.decode(body).error
    except NOT_AS_EXPECTED:
        return EngineError(body[:MESSAGE_BYTES_MAX].decode(errors="replace"))


def _error_in(data: bytes) -> GivenUp:
    """vLLM and SGLang put HTTP's status into `code`; without it the engine is to blame."""
    try:
        error = _ERROR.decode(data).error
    except NOT_AS_EXPECTED:
        return GivenUp(500, "it sent an error that cannot be read")
    blamed = isinstance(error.code, int) and 400 <= error.code < 500
    return GivenUp(400 if blamed else 500, error.message)


def usage_of(body: bytes) -> Usage | None:
    """The usage in a JSON body, if there is one."""
    try:
        found = _USAGE.decode(body)
        return found.usage or (found.response.usage if found.response else None)
    except NOT_AS_EXPECTED:
        return None
