"""What clients are told, in the shapes that vLLM 0.32 gives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from workers.sim.generation import Delta, Generation
from workers.sim.likelihood import Likelihood

DONE = b"data: [DONE]\n\n"
VERSION = "0.32.0+sim"
FINGERPRINT = f"vllm-{VERSION}"

_encoder = msgspec.json.Encoder()


@dataclass(frozen=True)
class Style:
    """What stays the same through all that is said to one call."""

    id: str
    created_s: int
    model: str
    chat: bool
    return_token_ids: bool
    n: int
    """Answers to each prompt; choices come prompt by prompt."""
    likelihood: Likelihood | None = None
    """Tells the probabilities of tokens, where they are asked for."""


def event(body: object) -> bytes:
    """One server-sent event."""
    return b"data: " + _encoder.encode(body) + b"\n\n"


def plain(body: object) -> bytes:
    """The body of an answer that is not a stream."""
    return _encoder.encode(body)


def whole(style: Style, generations: Sequence[Generation]) -> dict[str, object]:
    """The answer to a call that does not stream; all generations have finished."""
    body = _head(style, "chat.completion" if style.chat else "text_completion")
    body["choices"] = [
        _whole_choice(style, index, generation) for index, generation in enumerate(generations)
    ]
    body |= {
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": usage(style, generations),
    }
    if style.chat:
        body["prompt_logprobs"] = None
        body["prompt_token_ids"] = _prompt_ids(style, generations[0])
        body["prompt_text"] = None
    staged = generations[0].staged
    return body | {"kv_transfer_params": staged, "ec_transfer_params": None, "metrics": None}


def opening_chunk(style: Style, index: int, generation: Generation) -> dict[str, object]:
    """A chat's first chunk for one choice: who speaks."""
    choice = {
        "index": index,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": None,
    }
    return _chunk(style, [choice]) | {"prompt_token_ids": _prompt_ids(style, generation)}


def chunk(
    style: Style, index: int, generation: Generation, delta: Delta, *, first: bool
) -> dict[str, object]:
    """What one choice has gained, and how it ended if it did."""
    choice: dict[str, object] = {"index": index}
    if style.chat:
        choice["delta"] = {"content": delta.text}
    else:
        choice["text"] = delta.text
    choice |= _ending(generation, finished=delta.finished)
    choice["logprobs"] = _logprobs(style, delta)
    choice["token_ids"] = delta.token_ids if style.return_token_ids else None
    if not style.chat:
        choice["prompt_token_ids"] = _prompt_ids(style, generation) if first else None
    return _chunk(style, [choice])


def usage_chunk(style: Style, generations: Sequence[Generation]) -> dict[str, object]:
    """The chunk after the last one, for who asked for usage."""
    return _chunk(style, []) | {"usage": usage(style, generations)}


def usage(style: Style, generations: Sequence[Generation]) -> dict[str, object]:
    """Token counts; several answers to one prompt count it once, as in vLLM."""
    prompt_tokens = sum(generation.prompt_tokens for generation in generations[:: style.n])
    cached_tokens = sum(generation.cached_tokens for generation in generations[:: style.n])
    completion_tokens = sum(generation.produced_tokens for generation in generations)
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
        "completion_tokens_details": _of_drafts(generations),
    }


def _of_drafts(generations: Sequence[Generation]) -> dict[str, int] | None:
    """OpenAI's words for predicted outputs. vLLM tells nothing of a single request."""
    drafted = sum(generation.drafted_tokens for generation in generations)
    if not drafted:
        return None
    accepted = sum(generation.accepted_tokens for generation in generations)
    return {
        "accepted_prediction_tokens": accepted,
        "rejected_prediction_tokens": drafted - accepted,
    }


def models(model: str, root: str, created_s: int, context_tokens: int) -> dict[str, object]:
    """GET /v1/models."""
    card = {
        "id": model,
        "object": "model",
        "created": created_s,
        "owned_by": "vllm",
        "root": root,
        "parent": None,
        "max_model_len": context_tokens,
    }
    return {"object": "list", "data": [card]}


def _whole_choice(style: Style, index: int, generation: Generation) -> dict[str, object]:
    delta = generation.take()
    choice: dict[str, object] = {"index": index}
    if style.chat:
        choice["message"] = {
            "role": "assistant",
            "content": delta.text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        }
    else:
        choice["text"] = delta.text
    choice |= _ending(generation, finished=True)
    choice["logprobs"] = _logprobs(style, delta)
    choice["token_ids"] = delta.token_ids if style.return_token_ids else None
    if not style.chat:
        choice["prompt_logprobs"] = None
        choice["prompt_token_ids"] = _prompt_ids(style, generation)
    return choice | {"routed_experts": None}


def _head(style: Style, kind: str) -> dict[str, object]:
    return {
        "id": style.id,
        "object": kind,
        "created": style.created_s,
        "model": style.model,
    }


def _chunk(style: Style, choices: list[dict[str, object]]) -> dict[str, object]:
    kind = "chat.completion.chunk" if style.chat else "text_completion"
    return _head(style, kind) | {"choices": choices}


def _ending(generation: Generation, *, finished: bool) -> dict[str, object]:
    ending = generation.ending
    return {
        "finish_reason": ending.finish_reason if finished else None,
        "stop_reason": ending.stop_reason if finished else None,
    }


def _logprobs(style: Style, delta: Delta) -> dict[str, object] | None:
    if style.likelihood is None:
        return None
    if style.chat:
        return style.likelihood.of_chat(delta.token_ids)
    return style.likelihood.of_completion(delta.token_ids)


def _prompt_ids(style: Style, generation: Generation) -> list[int] | None:
    if not style.return_token_ids:
        return None
    return generation.tokens[: generation.prompt_tokens].tolist()
