"""What prompts consist of that is not tokenised here, and about how many tokens that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CHARS_A_TOKEN = 4
"""Of English, some."""
MEDIA_TOKENS = 1_000
"""An image takes some hundreds to some thousands, by its size and the model."""
TEXT_PARTS = frozenset({"input_text", "output_text", "text"})
"""What parts of a message's content are called that are text, by chats and by responses."""


def beside_text(content: object) -> str:
    """What else than text a message's content has, as `image_url`; "" if there is nothing."""
    if isinstance(content, list):
        for part in content:
            kind = _kind_of(part)
            if kind not in TEXT_PARTS:
                return kind
    return ""


def tokens_unread(messages: Sequence[Mapping[str, Any]]) -> int:
    """Guessed, of all from the first message on that has more than text: where in the prompt an
    engine puts the rest is its own affair."""
    for number, message in enumerate(messages):
        if beside_text(message.get("content")):
            return tokens_of(messages[number:])
    return 0


def tokens_of(messages: Sequence[Mapping[str, Any]]) -> int:
    """Guessed."""
    return sum(_guessed_of_content(message.get("content")) for message in messages)


def guessed_tokens(prompt: object) -> int:
    """Of a prompt that is not tokenised here, by its text or its token ids."""
    if isinstance(prompt, str):
        return len(prompt) // CHARS_A_TOKEN
    return len(prompt) if isinstance(prompt, list) else 0


def _guessed_of_content(content: object) -> int:
    if not isinstance(content, list):
        return guessed_tokens(content)
    return sum(
        guessed_tokens(part.get("text") if isinstance(part, dict) else part)
        if _kind_of(part) in TEXT_PARTS
        else MEDIA_TOKENS
        for part in content
    )


def _kind_of(part: object) -> str:
    if isinstance(part, str):
        return "text"
    kind = part.get("type") if isinstance(part, dict) else None
    return kind if isinstance(kind, str) and kind else "a part of no known type"
