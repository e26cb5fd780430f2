"""What clients may send, in the words of OpenAI and vLLM.

Fields that change nothing here (temperature, penalties, tools, ...) are taken and ignored.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import msgspec

from workers.sim.errors import bad_request
from workers.sim.kvparams import KvParams
from workers.sim.speculation import SAMPLED

COMPLETION_MAX_TOKENS = 16
"""What /v1/completions gives when nothing is said, as OpenAI's and vLLM's do."""

_T = TypeVar("_T")


class StreamOptions(msgspec.Struct):
    """What a stream may say besides its tokens."""

    include_usage: bool = False


class ResponseFormat(msgspec.Struct):
    """What shape an answer should have; taken, and ignored but for `Body.kind`."""

    type: str = "text"


class Body(msgspec.Struct, kw_only=True):
    """Fields that both ways of generating share."""

    model: str | None = None
    n: int | None = 1
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    seed: int | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = False
    cache_salt: str | None = None
    temperature: float | None = None
    response_format: ResponseFormat | None = None
    tools: list[object] | None = None

    def kind(self, otherwise: str) -> str:
        """Of text, and whether it is drawn at random: what the acceptance of drafts depends on."""
        shape = self.response_format
        kind = "structured" if shape and shape.type != "text" else otherwise
        kind = "tools" if self.tools else kind
        return kind if self.temperature == 0 else f"{kind}/{SAMPLED}"

    kv_transfer_params: KvParams | None = None


class CompletionBody(Body, kw_only=True):
    """POST /v1/completions."""

    prompt: object = None
    max_tokens: int | None = COMPLETION_MAX_TOKENS
    echo: bool | None = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    suffix: str | None = None


class ContentPart(msgspec.Struct):
    """A piece of a message; only text is understood."""

    type: str
    text: str = ""


class Message(msgspec.Struct):
    """One turn of a chat."""

    role: str
    content: str | list[ContentPart] | None = None


class ChatBody(Body, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[Message]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None


class SpeculationBody(msgspec.Struct):
    """POST /speculation, which is this engine's own: use drafts, or do not."""

    enabled: bool


class InputItem(msgspec.Struct):
    """A turn of the conversation, as /v1/responses takes it."""

    role: str = ""
    content: str | list[ContentPart] | None = None
    type: str = "message"


class ResponseBody(Body, kw_only=True):
    """POST /v1/responses."""

    input: str | list[InputItem]
    instructions: str | None = None
    max_output_tokens: int | None = None


class AbortBody(msgspec.Struct):
    """POST /abort_requests."""

    request_ids: list[str]


class EmbeddingBody(msgspec.Struct, kw_only=True):
    """POST /v1/embeddings."""

    input: object
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"


class TokenizeBody(msgspec.Struct, kw_only=True):
    """POST /tokenize: a prompt, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True


class DetokenizeBody(msgspec.Struct, kw_only=True):
    """POST /detokenize."""

    tokens: list[int]
    model: str | None = None


def decode(data: bytes, type: type[_T]) -> _T:
    """Read JSON, as leniently as vLLM does: 3.0 is a whole number. Raises `ApiError` that says what
    is wrong."""
    try:
        return msgspec.json.decode(data, type=type, strict=False)
    except msgspec.ValidationError as error:
        raise bad_request(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(f"JSON decode error: {error}") from error
