"""What an engine has said so far in one stream: its tokens, and the text the client has of them."""

from __future__ import annotations

from array import array
from typing import Annotated

import msgspec
from msgspec import Meta

from controlplane.gateway.sse import NOT_AS_EXPECTED

TokenId = Annotated[int, Meta(ge=0, lt=1 << 32)]


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    token_ids: list[TokenId] | None = None
    finish_reason: str | None = None


class Head(msgspec.Struct):
    """What all events of one stream have in common."""

    id: str = ""
    created: int = 0
    model: str = ""


class _Event(Head):
    choices: list[_Choice] = []


_EVENT = msgspec.json.Decoder(_Event)
_DATA = b"data:"

UNREAD_BYTES_MAX = 16 << 10
"""Of events that are kept as they came, to be read together: some fifty tokens. Most answers break
off nowhere, and many are shorter."""


class Transcript:
    """Filled from the events that pass by; 4 bytes a token and the text.

    It stops being `whole`, and then says nothing any more, if the engine does not tell the tokens
    of what it says, or if it says more than `tokens_max`.
    """

    def __init__(self, tokens_max: int) -> None:
        self._tokens_max = tokens_max
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._tokens = array("I")
        self._pieces: list[str] = []
        self._head = Head()
        self._finished = False
        self._parsed = False
        self._whole = True

    @property
    def tokens(self) -> array[int]:
        """All that was said, by ids."""
        self._read()
        return self._tokens

    @property
    def text(self) -> str:
        """All that was said."""
        self._read()
        return "".join(self._pieces)

    @property
    def head(self) -> Head:
        """Of the first event that says an id."""
        self._read()
        return self._head

    @property
    def finished(self) -> bool:
        """The last token has come; only the end of the stream may be missing."""
        self._read()
        return self._finished

    @property
    def parsed(self) -> bool:
        """Some of it is no text to the client: a parser has made thoughts or calls of tools of it,
        and another engine's would begin in their middle."""
        self._read()
        return self._parsed

    @property
    def whole(self) -> bool:
        """What it says is all that was said."""
        self._read()
        return self._whole

    def see(self, events: bytes) -> None:
        """Take in whole events."""
        self._unread.append(events)
        self._unread_bytes += len(events)
        if self._unread_bytes > UNREAD_BYTES_MAX:
            self._read()

    def cut(self, tokens: int) -> None:
        """Forget all but the first `tokens`; the text stays, as the client has it."""
        del self.tokens[tokens:]

    def _read(self) -> None:
        if not self._unread:
            return
        unread = b"".join(self._unread)
        self._unread, self._unread_bytes = [], 0
        for event in unread.split(b"\n\n"):
            if self._whole and event.startswith(_DATA) and b'"choices"' in event:
                self._read_event(event[len(_DATA) :])

    def _read_event(self, data: bytes) -> None:
        try:
            event = _EVENT.decode(data)
        except NOT_AS_EXPECTED:
            self._whole = False
            return
        self._head = self._head if self._head.id else Head(event.id, event.created, event.model)
        for choice in event.choices:
            text, delta, parsed = choice.text, choice.delta, False
            if delta is not None:
                text = delta.content
                if delta.reasoning or delta.reasoning_content or delta.tool_calls:
                    parsed = self._parsed = True
            if (text or parsed) and choice.token_ids is None:
                self._whole = False
                return
            self._tokens.extend(choice.token_ids or ())
            self._pieces.append(text or "")
            self._finished = self._finished or choice.finish_reason is not None
        self._whole = len(self._tokens) <= self._tokens_max
