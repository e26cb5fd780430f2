"""Going on elsewhere: an engine dies in the middle of an answer, another one says the rest.

The next token is drawn from a distribution that depends on the tokens before it and on nothing
else, so any engine of the model can go on from the prompt and the tokens already said: it gets
both as one prompt, by token ids, and what it says is put into the shape of the first stream.

That is only true for what a list of *safe* parameters colours. A grammar keeps a state, penalties
count the tokens of the answer alone, parsers of tools and thoughts begin in the middle: such
requests end in a typed error instead (GW12).
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from controlplane.gateway.content import beside_text
from controlplane.gateway.openai import Api, Ask
from controlplane.gateway.sse import NOT_AS_EXPECTED, MalformedStream
from controlplane.gateway.transcript import Head, Transcript

SAMPLING = frozenset({
    "cache_salt", "ignore_eos", "logit_bias", "min_p", "priority", "repetition_penalty", "seed",
    "skip_special_tokens", "stop_token_ids", "stream_options", "temperature", "top_k", "top_p",
    "user",
})  # fmt: skip
"""Parameters that mean the same for the rest of an answer as for the whole."""
HANDLED = frozenset({
    "max_completion_tokens", "max_tokens", "messages", "model", "n", "prompt", "return_token_ids",
    "stop", "stream",
})  # fmt: skip
"""Parameters that `continuation` gives a new value, or that `obstacle` looks at."""
COMPLETION_MAX_TOKENS = 16
"""What OpenAI and vLLM take for a completion that says nothing."""
TELL_TOKENS = frozenset({"sim", "vllm"})
"""Engines that can tell token ids. The others are not asked: TensorRT-LLM refuses a request with a
field that it does not know."""
HELD_BACK_TOKENS_MAX = 16
"""Tokens whose text an engine may still hold back: half a character, the start of a stop word."""

_PROMPT_IDS = re.compile(rb'"prompt_token_ids":\s*\[[\d,\s]*\]')

Fields = dict[str, msgspec.Raw]
Detokenise = Callable[[Sequence[int]], str]


class CannotContinue(Exception):
    """The rest of the answer cannot come from elsewhere; says why."""


@dataclass(frozen=True)
class Leg:
    """One exchange with one engine on a request's way."""

    path: str
    body: bytes
    reshape: Callable[[bytes], bytes] | None = None
    """Puts whole events into the form that the client is used to; None: they have it."""


def traced(leg: Leg, engine: str) -> Leg:
    """The leg for that engine (`vllm/0.11.2`): it is asked to tell token ids as well, if it can;
    the prompt's, which may be long, are hidden from the client."""
    if engine.partition("/")[0] not in TELL_TOKENS:
        return leg
    fields = msgspec.json.decode(leg.body, type=Fields)
    fields["return_token_ids"] = _raw(True)
    return Leg(leg.path, msgspec.json.encode(fields), leg.reshape or _without_prompt_ids)


def obstacle(ask: Ask) -> str:
    """Why the request could not go on elsewhere, "" if it could."""
    if not ask.stream:
        return "nothing is sent before the whole answer is there"
    if ask.api not in (Api.COMPLETIONS, Api.CHAT):
        return "its events have a form of their own"
    for message in ask.messages or ():
        if other := beside_text(message.get("content")):
            return f"it has {other} beside text"
    fields = msgspec.json.decode(ask.body, type=Fields)
    given = {name for name, value in fields.items() if bytes(value) not in (b"null", b"[]")}
    if unsafe := given - SAMPLING - HANDLED:
        return f"it asks for {', '.join(sorted(unsafe))}"
    if ask.answers > 1:
        return "it asks for several answers"
    if _is_true(fields.get("return_token_ids")):
        return "it asks for token ids"
    return ""


def settle(said: Transcript, prompt: Sequence[int], detokenise: Detokenise | None) -> None:
    """Cut from the transcript the tokens whose text the client has not got: an engine holds back
    half a character, and what may become a stop word. Raises `CannotContinue`."""
    if detokenise is None:
        raise CannotContinue("without the model's tokenizer its text and tokens cannot be compared")
    context = list(prompt[-HELD_BACK_TOKENS_MAX:])
    before = len(detokenise(context))
    for held_back in range(min(len(said.tokens), HELD_BACK_TOKENS_MAX) + 1):
        kept = len(said.tokens) - held_back
        if detokenise([*context, *said.tokens[:kept]])[before:] == said.text:
            said.cut(kept)
            return
    raise CannotContinue("the engine's tokens and its text do not agree")


def continuation(ask: Ask, prompt: Sequence[int], said: Transcript, context_tokens: int) -> Leg:
    """The rest of the answer. Raises `CannotContinue`."""
    if not said.whole:
        raise CannotContinue("the engine did not tell its tokens, or told too many to be kept")
    if said.parsed:
        raise CannotContinue("some of it was thoughts or calls of tools")
    if said.finished:
        raise CannotContinue("all of it was said, and only the end was missing")
    fields = msgspec.json.decode(ask.body, type=Fields)
    limit = ask.max_tokens or (
        COMPLETION_MAX_TOKENS if ask.api is Api.COMPLETIONS else context_tokens - len(prompt)
    )
    if limit <= len(said.tokens):
        raise CannotContinue("all of its tokens were said, and only the end was missing")
    body = {name: value for name, value in fields.items() if name in SAMPLING | {"model", "stop"}}
    body |= {
        "prompt": _raw([*prompt, *said.tokens]),
        "max_tokens": _raw(limit - len(said.tokens)),
        "stream": _raw(True),
    }
    reshape = _Reshape(ask.api, said.head, len(prompt), array("I", said.tokens))
    return Leg(Api.COMPLETIONS.value, msgspec.json.encode(body), reshape)


class _Reshape:
    """Events of a completion that goes on, as events of the stream that broke off."""

    def __init__(self, api: Api, head: Head, prompt_tokens: int, said: array[int]) -> None:
        self._api = api
        self._head = head
        self._prompt_tokens = prompt_tokens
        self._said = len(said)

    def __call__(self, events: bytes) -> bytes:
        return b"".join(self._event(event) for event in events.split(b"\n\n") if event)

    def _event(self, event: bytes) -> bytes:
        data = event.removeprefix(b"data:").strip()
        if data.startswith(b'{"error"') or not data.startswith(b"{"):
            return event + b"\n\n"
        try:
            body = msgspec.json.decode(data, type=dict[str, object])
            choices = msgspec.convert(body.get("choices", []), list[dict[str, object]])
        except NOT_AS_EXPECTED as error:
            raise MalformedStream(f"an event that cannot be read: {error}") from error
        body |= {"id": self._head.id, "created": self._head.created, "model": self._head.model}
        for choice in choices:
            choice.pop("prompt_token_ids", None)
            if self._api is Api.CHAT:
                choice["delta"] = {"content": choice.pop("text", "")}
        body["choices"] = choices
        if self._api is Api.CHAT:
            body["object"] = "chat.completion.chunk"
        if isinstance(body.get("usage"), dict):
            body["usage"] = self._usage(msgspec.convert(body["usage"], dict[str, object]))
        return b"data: " + msgspec.json.encode(body) + b"\n\n"

    def _usage(self, usage: dict[str, object]) -> dict[str, object]:
        """As if one engine had said it all."""
        rest = usage.get("completion_tokens")
        completion = self._said + (rest if isinstance(rest, int) else 0)
        return usage | {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self._prompt_tokens + completion,
        }


def _without_prompt_ids(events: bytes) -> bytes:
    if b"prompt_token_ids" not in events:  # all but the first
        return events
    return _PROMPT_IDS.sub(b'"prompt_token_ids":null', events)


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def _is_true(value: msgspec.Raw | None) -> bool:
    return value is not None and bytes(value) == b"true"
