"""The end of a stream whose engine broke off when only that was missing.

An engine that has said why its answer ends has said all of it. If it dies then, before the count
of tokens or `[DONE]`, nothing is to be said by another one: we end the stream in its place.
"""

from __future__ import annotations

import re

import msgspec

from controlplane.gateway.flight import Flight
from controlplane.gateway.openai import Api, Ask
from controlplane.gateway.sse import DONE, SseScanner
from controlplane.gateway.transcript import Transcript

_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')
_OBJECTS = {Api.COMPLETIONS: "text_completion", Api.CHAT: "chat.completion.chunk"}
_END = DONE + b"\n\n"


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Wishes(msgspec.Struct):
    """What the client wants that says how its stream ends."""

    stream_options: _StreamOptions | None = None


def missing_end(flight: Flight, scanner: SseScanner) -> bytes | None:
    """What is still to be sent of an answer that broke off; None if it is more than its end, or
    nobody knows what the engine would have counted."""
    ask = flight.ask
    if ask.answers > 1:
        return None  # the others may have had more to say
    if ask.api not in _OBJECTS or scanner.given_up or not _FINISHED.search(scanner.last):
        return None
    try:
        wishes = msgspec.json.decode(ask.body, type=_Wishes)
    except msgspec.ValidationError:
        return None  # its engine knows what that is to mean
    if scanner.counted or not (wishes.stream_options and wishes.stream_options.include_usage):
        return _END
    said = flight.transcript
    if said is None or not said.whole:
        return None
    return _count(ask, flight.prompt_tokens, said) + _END


def _count(ask: Ask, prompt: int, said: Transcript) -> bytes:
    """The event that engines send last, with the tokens that we have seen."""
    completion = len(said.tokens)
    return b"data: %b\n\n" % msgspec.json.encode({
        "id": said.head.id,
        "object": _OBJECTS[ask.api],
        "created": said.head.created,
        "model": said.head.model,
        "choices": [],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
    })  # fmt: skip
