"""What clients ask, checked and turned into token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from workers.sim.bodies import (
    Body,
    ChatBody,
    CompletionBody,
    ContentPart,
    DetokenizeBody,
    EmbeddingBody,
    InputItem,
    Message,
    ResponseBody,
    TokenizeBody,
    decode,
)
from workers.sim.errors import ApiError, bad_request
from workers.sim.generation import Sampling
from workers.sim.kvparams import KvParams
from workers.sim.tokens import BadChat, ChatTokenizer

SEQUENCES_MAX = 256
"""Prompts of a batch, times `n`."""
LOGPROBS_MAX = 20

TEXT_PARTS = frozenset({"text", "input_text", "output_text"})

_VARIANT_SEED = 0x9E3779B9


@dataclass(frozen=True)
class Ask:
    """A call that can be answered: at least one prompt, `n` answers to each."""

    prompts: list[list[int]]
    samplings: list[Sampling]
    """One for each of the `n` answers; they differ in their seed."""
    chat: bool
    stream: bool
    include_usage: bool
    return_token_ids: bool
    logprobs: int | None = None
    """How many likely tokens to name at each place, beside the one that was said; None: no
    probabilities at all."""
    transfer: KvParams | None = None


class Reader:
    """Reads bodies for one model; raises `ApiError` for what cannot be answered."""

    def __init__(self, model: str, tokenizer: ChatTokenizer, context_tokens: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._context_tokens = context_tokens

    def completion(self, data: bytes) -> Ask:
        body = decode(data, CompletionBody)
        for name in ("echo", "suffix"):
            if getattr(body, name):
                raise bad_request(f"{name} is not supported by the simulated engine.", name)
        _refuse_prompt_logprobs(body.prompt_logprobs)
        prompts = self._prompts(body.prompt)
        ask = self._ask(body, prompts, body.max_tokens, chat=False)
        return replace(ask, logprobs=_logprobs(body.logprobs, "logprobs"))

    def chat(self, data: bytes) -> Ask:
        body = decode(data, ChatBody)
        _refuse_prompt_logprobs(body.prompt_logprobs)
        max_tokens = body.max_completion_tokens
        max_tokens = body.max_tokens if max_tokens is None else max_tokens
        prompt = self._chat_prompt(
            body.messages, body.add_generation_prompt, body.continue_final_message
        )
        ask = self._ask(body, [prompt], max_tokens, chat=True)
        top = (body.top_logprobs or 0) if body.logprobs else None
        return replace(ask, logprobs=_logprobs(top, "top_logprobs"))

    def response(self, data: bytes) -> Ask:
        body = decode(data, ResponseBody)
        items = body.input
        if isinstance(items, str):
            items = [InputItem("user", items)]
        if strange := next((item.type for item in items if item.type != "message"), None):
            raise bad_request(f"Items of type {strange!r} are not supported, only text.", "input")
        messages = [Message("system", body.instructions)] if body.instructions else []
        messages += [Message(item.role, item.content) for item in items]
        prompt = self._chat_prompt(messages, add_generation_prompt=True)
        return self._ask(body, [prompt], body.max_output_tokens, chat=True)

    def embedding(self, data: bytes) -> tuple[list[list[int]], bool]:
        """Prompts, and whether the vectors are wanted in base64."""
        body = decode(data, EmbeddingBody)
        self._check_model(body.model)
        prompts = self._prompts(body.input)
        for prompt in prompts:
            self._check_prompt(prompt, 0)
        return prompts, body.encoding_format == "base64"

    def tokenize(self, data: bytes) -> list[int]:
        body = decode(data, TokenizeBody)
        self._check_model(body.model)
        if body.messages is not None:
            return self._chat_prompt(body.messages, body.add_generation_prompt)
        if body.prompt is None:
            raise bad_request("Either prompt or messages must be given.", "prompt")
        return self._tokenizer.encode(body.prompt, special_tokens=body.add_special_tokens)

    def detokenize(self, data: bytes) -> str:
        body = decode(data, DetokenizeBody)
        self._check_model(body.model)
        self._check_ids(body.tokens, "tokens")
        return self._tokenizer.decode(body.tokens)

    def _ask(
        self, body: Body, prompts: list[list[int]], max_tokens: int | None, *, chat: bool
    ) -> Ask:
        self._check_model(body.model)
        n = 1 if body.n is None else body.n
        if n < 1:
            raise bad_request(f"n must be at least 1, got {n}.", "n")
        if n * len(prompts) > SEQUENCES_MAX:
            raise bad_request(f"At most {SEQUENCES_MAX} sequences can be asked at once.", "n")
        if max_tokens is not None and max_tokens < 1:
            raise bad_request(f"max_tokens must be at least 1, got {max_tokens}.", "max_tokens")
        if body.temperature is not None and body.temperature < 0:
            raise bad_request("temperature must be non-negative.", "temperature")
        for prompt in prompts:
            self._check_prompt(prompt, max_tokens)
        stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
        if "" in stop:
            raise bad_request("stop cannot contain an empty string.", "stop")
        samplings = [
            Sampling(
                max_tokens=max_tokens,
                stop=tuple(stop),
                stop_token_ids=frozenset(body.stop_token_ids or ()),
                ignore_eos=body.ignore_eos,
                seed=(body.seed or 0) + variant * _VARIANT_SEED,
                cache_salt=body.cache_salt,
                kind=body.kind("chat" if chat else "completion"),
            )
            for variant in range(n)
        ]
        transfer = body.kv_transfer_params
        if transfer is not None and (transfer.do_remote_decode or transfer.do_remote_prefill):
            if n * len(prompts) != 1:
                raise bad_request("KV blocks are handed over for one sequence at a time.", "n")
            if transfer.do_remote_prefill and transfer.address is None:
                raise bad_request("kv_transfer_params do not say where the blocks are.")
        else:
            transfer = None
        options = body.stream_options
        return Ask(
            prompts,
            samplings,
            chat=chat,
            stream=bool(body.stream),
            include_usage=options is not None and options.include_usage,
            return_token_ids=bool(body.return_token_ids),
            transfer=transfer,
        )

    def _prompts(self, prompt: object) -> list[list[int]]:
        """A string, a list of ids, or a list of either."""
        items = prompt if isinstance(prompt, list) and not _is_ids(prompt) else [prompt]
        prompts = [self._prompt(item) for item in items]
        if not prompts:
            raise bad_request("prompt must not be empty.", "prompt")
        return prompts

    def _prompt(self, item: object) -> list[int]:
        if isinstance(item, str):
            return self._tokenizer.encode(item)
        if isinstance(item, list) and _is_ids(item):
            self._check_ids(item, "prompt")
            return item
        raise bad_request(
            "prompt must be a string, a list of token ids, or a list of either.", "prompt"
        )

    def _chat_prompt(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        continue_final_message: bool = False,
    ) -> list[int]:
        if not messages:
            raise bad_request("messages must not be empty.", "messages")
        if continue_final_message and add_generation_prompt:
            raise bad_request(
                "continue_final_message excludes add_generation_prompt.", "continue_final_message"
            )
        try:
            prompt = self._tokenizer.render(
                [{"role": m.role, "content": _text(m.content)} for m in messages],
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
        except BadChat as error:
            raise bad_request(str(error), "messages") from error
        return self._tokenizer.encode(prompt, special_tokens=False)

    def _check_model(self, model: str | None) -> None:
        if model is not None and model != self._model:
            raise ApiError(
                404, f"The model `{model}` does not exist.", "NotFoundError", param="model"
            )

    def _check_prompt(self, prompt: Sequence[int], max_tokens: int | None) -> None:
        if not prompt:
            raise bad_request("The prompt cannot be empty.", "prompt")
        wanted = 1 if max_tokens is None else max_tokens
        total = len(prompt) + wanted
        if total > self._context_tokens:
            raise bad_request(
                f"This model's maximum context length is {self._context_tokens} tokens. However, "
                f"you requested {wanted} output tokens and your prompt contains {len(prompt)} "
                f"input tokens, for a total of {total} tokens. Please reduce the length of the "
                "input prompt or the number of requested output tokens.",
                "input_tokens",
            )

    def _check_ids(self, ids: Sequence[int], param: str) -> None:
        limit = self._tokenizer.vocabulary_tokens
        if ids and not (min(ids) >= 0 and max(ids) < limit):
            bad = next(id for id in ids if not 0 <= id < limit)
            raise bad_request(f"Token id {bad} is out of vocabulary.", param)


def _refuse_prompt_logprobs(prompt_logprobs: int | None) -> None:
    if prompt_logprobs is not None:
        raise bad_request(
            "prompt_logprobs are not supported by the simulated engine.", "prompt_logprobs"
        )


def _logprobs(top: int | None, param: str) -> int | None:
    if top is not None and not 0 <= top <= LOGPROBS_MAX:
        raise bad_request(f"{param} must be between 0 and {LOGPROBS_MAX}, got {top}.", param)
    return top


def _is_ids(items: list[object]) -> bool:
    # bool is an int to Python and no token id to anybody.
    return bool(items) and all(type(item) is int for item in items)


def _text(content: str | list[ContentPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.type not in TEXT_PARTS:
            raise bad_request(
                f"Content parts of type {part.type!r} are not supported, only text.", "messages"
            )
    return "\n".join(part.text for part in content)
