"""The shapes of /v1/responses as vLLM gives them: one message, as a whole or as named events."""

from __future__ import annotations

import msgspec

from workers.sim.generation import Generation
from workers.sim.shapes import Style

_encoder = msgspec.json.Encoder()


class ResponseStream:
    """The events of one answer, numbered in order."""

    def __init__(self, style: Style, generation: Generation) -> None:
        self._style = style
        self._generation = generation
        self._sequence = 0
        self._text = ""

    def open(self) -> bytes:
        """What comes before the first token."""
        beginning = response(self._style, self._generation, "", "in_progress")
        return b"".join(
            (
                self._event("response.created", response=beginning),
                self._event("response.in_progress", response=beginning),
                self._event("response.output_item.added", item=_message(self._style, "", False)),
                self._event("response.content_part.added", **_place(self._style), part=_part("")),
            )
        )

    def delta(self, text: str) -> bytes:
        """A piece of the answer."""
        self._text += text
        place = _place(self._style)
        return self._event("response.output_text.delta", **place, delta=text, logprobs=[])

    def close(self) -> bytes:
        """What comes after the last token."""
        style, text, place = self._style, self._text, _place(self._style)
        status = _status(self._generation)
        return b"".join(
            (
                self._event("response.output_text.done", **place, text=text, logprobs=[]),
                self._event("response.content_part.done", **place, part=_part(text)),
                self._event("response.output_item.done", item=_message(style, text, True)),
                self._event(
                    f"response.{status}",
                    response=response(style, self._generation, text, status),
                ),
            )
        )

    def _event(self, kind: str, **fields: object) -> bytes:
        body = {"type": kind, "sequence_number": self._sequence, "output_index": 0, **fields}
        self._sequence += 1
        return f"event: {kind}\ndata: ".encode() + _encoder.encode(body) + b"\n\n"


def whole(style: Style, generation: Generation) -> dict[str, object]:
    """The answer to a call that does not stream; the generation has finished."""
    return response(style, generation, generation.take().text, _status(generation))


def response(style: Style, generation: Generation, text: str, status: str) -> dict[str, object]:
    """The response object at some moment of its life."""
    over = status != "in_progress"
    body: dict[str, object] = {
        "id": style.id,
        "object": "response",
        "created_at": style.created_s,
        "status": status,
        "model": style.model,
        "output": [_message(style, text, True)] if over else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "temperature": 1.0,
        "top_p": 1.0,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": None,
        "metadata": None,
    }
    return body | {"usage": _usage(generation) if over else None}


def _status(generation: Generation) -> str:
    return "incomplete" if generation.ending.finish_reason == "length" else "completed"


def _usage(generation: Generation) -> dict[str, object]:
    prompt, output = generation.prompt_tokens, generation.produced_tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": generation.cached_tokens},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + output,
    }


def _message(style: Style, text: str, done: bool) -> dict[str, object]:
    return {
        "id": f"msg_{style.id}",
        "type": "message",
        "role": "assistant",
        "status": "completed" if done else "in_progress",
        "content": [_part(text)] if done else [],
    }


def _part(text: str) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _place(style: Style) -> dict[str, object]:
    return {"item_id": f"msg_{style.id}", "content_index": 0}
