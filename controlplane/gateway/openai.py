"""OpenAI's shapes, as much of them as routing must know, and the errors in their form.

The client's own bytes go to the engine; what is read here decides only where they go.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from controlplane.gateway.content import CHARS_A_TOKEN, guessed_tokens, tokens_of, tokens_unread
from controlplane.gateway.kinds import Format, Kind, Shaped, TextOptions

EXPECTED_OUTPUT_TOKENS = 256


class Api(StrEnum):
    """The endpoints that a request can come in by; the value is the path."""

    COMPLETIONS = "/v1/completions"
    CHAT = "/v1/chat/completions"
    RESPONSES = "/v1/responses"
    EMBEDDINGS = "/v1/embeddings"


class ClientError(Exception):
    """What the client is told instead of an answer, in OpenAI's form.

    `kind` is OpenAI's `type` (`invalid_request_error`, `server_error`, ...), `code` the machine's
    word for the reason.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def kind(self) -> str:
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> bytes:
        """The JSON body."""
        error = {
            "message": str(self),
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return msgspec.json.encode({"error": error})

    def event(self, api: Api) -> bytes:
        """The event that ends a stream in place of its proper end."""
        if api is not Api.RESPONSES:
            return b"data: " + self.body() + b"\n\n"
        error = {"type": "error", "message": str(self), "param": self.param, "code": self.code}
        return b"event: error\ndata: " + msgspec.json.encode(error) + b"\n\n"


class Ask(msgspec.Struct, frozen=True):
    """One request, as far as we read it. At most one of `text`, `tokens` and `messages` is set;
    none where a prompt is of a kind that only the engine can make tokens of."""

    api: Api
    body: bytes
    model: str
    stream: bool
    max_tokens: int | None
    text: str | None = None
    tokens: array[int] | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    prompts: int = 1
    """More than one are a batch: one engine answers each by itself, and its events are mixed.
    `text` and `tokens` are those of the first."""
    n: int = 1
    """Answers to each prompt."""
    unread_tokens: int = 0
    """Guessed: what the prompt has beside `text` and `tokens`, and of `messages` from the first on
    that has more than text."""
    cache_salt: str = ""
    kind: Kind = Kind.COMPLETION
    sampled: bool = True
    """Tokens are drawn by chance; else the likeliest are taken."""

    @property
    def answers(self) -> int:
        """How many it asks for, of which any may end before the others."""
        return self.prompts * self.n

    @property
    def guessed_prompt_tokens(self) -> int:
        """For prompts that cannot be tokenised here."""
        if self.messages and self.unread_tokens:  # an image's bytes say nothing of its tokens
            return max(1, tokens_of(self.messages))
        return max(1, len(self.body) // CHARS_A_TOKEN)

    @property
    def expected_output_tokens(self) -> int:
        """Of each answer as much as it asks for; else a guess, which both planning and budgets
        correct later."""
        return self.max_tokens or EXPECTED_OUTPUT_TOKENS


LIMIT_MAX = (1 << 31) - 1
"""What engines take a number of tokens or of answers for, at the most."""
Limit = Annotated[
    int | float,
    Meta(extra_json_schema={"type": "integer", "minimum": 1, "maximum": LIMIT_MAX}),
]
"""What a schema can say; `_limit` says it in better words. In JSON 3.0 is an integer, too."""
Messages = Annotated[list[dict[str, Any]], Meta(extra_json_schema={"minItems": 1})]
_NOT_EMPTY = Meta(extra_json_schema={"minItems": 1, "minLength": 1})
_TOKEN_ID = {"type": "integer", "minimum": 0, "maximum": (1 << 32) - 1}
_TOKEN_IDS = {"type": "array", "minItems": 1, "items": _TOKEN_ID}
_TEXT = {"type": "string", "minLength": 1}
_PROMPT = {
    "anyOf": [
        _TEXT,
        _TOKEN_IDS,
        {"type": "array", "minItems": 1, "items": {"anyOf": [_TEXT, _TOKEN_IDS]}},
    ]
}


class CompletionBody(Shaped):
    """As much as is read of a completion's body."""

    model: str
    prompt: Annotated[msgspec.Raw, Meta(extra_json_schema=_PROMPT)]
    stream: bool | None = None
    n: Limit | None = None
    max_tokens: Limit | None = None
    cache_salt: str | None = None


class ChatBody(Shaped):
    """As much as is read of a chat completion's."""

    model: str
    messages: Messages
    stream: bool | None = None
    n: Limit | None = None
    max_tokens: Limit | None = None
    max_completion_tokens: Limit | None = None
    tools: list[dict[str, Any]] | None = None
    cache_salt: str | None = None


class ResponseBody(Shaped):
    """As much as is read of a response's."""

    model: str
    input: Annotated[str | list[dict[str, Any]], _NOT_EMPTY]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Limit | None = None
    tools: list[dict[str, Any]] | None = None
    cache_salt: str | None = None
    previous_response_id: Annotated[str | None, Meta(extra_json_schema={"type": "null"})] = None
    text: TextOptions | None = None

    @property
    def shape(self) -> Format | None:
        """Said elsewhere than in the other two."""
        return self.text.format if self.text else None


class EmbeddingBody(msgspec.Struct):
    """As much as is read of an embedding's."""

    model: str
    input: Annotated[str | list[str | int | float | list[int | float]], _NOT_EMPTY]


_COMPLETION = msgspec.json.Decoder(CompletionBody)
_CHAT = msgspec.json.Decoder(ChatBody)
_RESPONSE = msgspec.json.Decoder(ResponseBody)
_EMBEDDING = msgspec.json.Decoder(EmbeddingBody)
_TEXT_OR_TOKENS = msgspec.json.Decoder(str | list[int])
_BATCH = msgspec.json.Decoder(list[str | int | float | list[int | float]])


def read(api: Api, body: bytes) -> Ask:
    """Raises `ClientError` (400) with what is wrong and where."""
    try:
        return _READERS[api](body)
    except msgspec.ValidationError as error:
        where = str(error).partition(" - at `$.")[2]
        raise ClientError(
            400, str(error), code="invalid_value", param=where.rstrip("`") or None
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ClientError(
            400, f"the body is not valid JSON: {error}", code="invalid_json"
        ) from error


def salted(ask: Ask, salt: str) -> Ask:
    """The same request, whose KV blocks nobody shares who has another salt."""
    fields = msgspec.json.decode(ask.body, type=dict[str, msgspec.Raw])
    both = f"{salt}.{ask.cache_salt}" if ask.cache_salt else salt
    fields["cache_salt"] = msgspec.Raw(msgspec.json.encode(both))
    return msgspec.structs.replace(ask, body=msgspec.json.encode(fields), cache_salt=both)


def _read_completion(body: bytes) -> Ask:
    asked = _COMPLETION.decode(body)
    prompt, others = _prompts(asked.prompt)
    return Ask(
        Api.COMPLETIONS,
        body,
        asked.model,
        bool(asked.stream),
        _limit(asked.max_tokens, "max_tokens"),
        text=prompt if isinstance(prompt, str) else None,
        tokens=_token_ids(prompt) if isinstance(prompt, list) else None,
        prompts=1 + len(others),
        n=_limit(asked.n, "n") or 1,
        unread_tokens=sum(map(guessed_tokens, others)),
        cache_salt=asked.cache_salt or "",
        kind=asked.kind(Kind.COMPLETION),
        sampled=asked.sampled,
    )


def _read_chat(body: bytes) -> Ask:
    asked = _CHAT.decode(body)
    if not asked.messages:
        raise ClientError(400, "messages is empty", code="empty_prompt", param="messages")
    limit = asked.max_completion_tokens
    name = "max_tokens" if limit is None else "max_completion_tokens"
    return Ask(
        Api.CHAT,
        body,
        asked.model,
        bool(asked.stream),
        _limit(asked.max_tokens if limit is None else limit, name),
        messages=asked.messages,
        tools=asked.tools,
        unread_tokens=tokens_unread(asked.messages),
        n=_limit(asked.n, "n") or 1,
        cache_salt=asked.cache_salt or "",
        kind=asked.kind(Kind.CHAT, asked.tools),
        sampled=asked.sampled,
    )


def _read_response(body: bytes) -> Ask:
    asked = _RESPONSE.decode(body)
    if asked.previous_response_id:
        raise ClientError(
            400,
            "answers are not kept here: send the conversation so far as `input`",
            code="unsupported_value",
            param="previous_response_id",
        )
    if not asked.input:
        raise ClientError(400, "input is empty", code="empty_prompt", param="input")
    messages = _conversation(asked)
    return Ask(
        Api.RESPONSES,
        body,
        asked.model,
        bool(asked.stream),
        _limit(asked.max_output_tokens, "max_output_tokens"),
        messages=messages,
        tools=asked.tools,
        unread_tokens=tokens_unread(messages or ()),
        cache_salt=asked.cache_salt or "",
        kind=asked.kind(Kind.CHAT, asked.tools),
        sampled=asked.sampled,
    )


def _conversation(asked: ResponseBody) -> list[dict[str, Any]] | None:
    """The messages that an engine makes of it, None where items are not plain messages."""
    items = asked.input
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    if not all("role" in item and item.get("type", "message") == "message" for item in items):
        return None
    head = [{"role": "system", "content": asked.instructions}] if asked.instructions else []
    return [*head, *items]


def _read_embedding(body: bytes) -> Ask:
    asked = _EMBEDDING.decode(body)
    if not asked.input:
        raise ClientError(400, "input is empty", code="empty_prompt", param="input")
    return Ask(Api.EMBEDDINGS, body, asked.model, stream=False, max_tokens=1)


_READERS: dict[Api, Callable[[bytes], Ask]] = {
    Api.COMPLETIONS: _read_completion,
    Api.CHAT: _read_chat,
    Api.RESPONSES: _read_response,
    Api.EMBEDDINGS: _read_embedding,
}


def _prompts(raw: msgspec.Raw) -> tuple[str | list[int], Sequence[object]]:
    """The prompt, and those that a batch has beside it; one engine answers them all."""
    prompt: str | list[int]
    others: Sequence[object] = ()
    try:
        prompt = _TEXT_OR_TOKENS.decode(raw)
    except msgspec.ValidationError:
        prompt, others = _batch(raw)
    if not prompt:
        raise ClientError(400, "prompt is empty", code="empty_prompt", param="prompt")
    return prompt, others


def _batch(raw: msgspec.Raw) -> tuple[str | list[int], Sequence[object]]:
    """As `_prompts`; token ids may be written as 3.0, too, which in JSON are integers."""
    try:
        batch = _BATCH.decode(raw)
        first = batch[0] if batch else batch
        if isinstance(first, str):
            return first, batch[1:]
        ids, others = (first, batch[1:]) if isinstance(first, list) else (batch, ())
        return msgspec.convert(ids, list[int], strict=False), others
    except msgspec.ValidationError as error:
        raise ClientError(
            400,
            "prompt must be a string, a list of token ids, or a list of those",
            code="invalid_value",
            param="prompt",
        ) from error


def _token_ids(tokens: list[int]) -> array[int]:
    try:
        return array("I", tokens)
    except OverflowError as error:
        raise ClientError(
            400, "token ids are whole numbers from 0", code="invalid_value", param="prompt"
        ) from error


def _limit(value: int | float | None, name: str) -> int | None:
    if value is None:
        return None
    if not 1 <= value <= LIMIT_MAX or value != int(value):
        raise ClientError(
            400,
            f"{name} must be a whole number from 1 to {LIMIT_MAX}, not {value}",
            code="invalid_value",
            param=name,
        )
    return int(value)


def model_list(models: Mapping[str, int], created_s: int) -> bytes:
    """The answer of `/v1/models`: names and context lengths."""
    data = [
        {
            "id": name,
            "object": "model",
            "created": created_s,
            "owned_by": "tokenplane",
            "max_model_len": context_tokens,
        }
        for name, context_tokens in sorted(models.items())
    ]
    return msgspec.json.encode({"object": "list", "data": data})
