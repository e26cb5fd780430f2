"""What an engine has said so far in one stream: its tokens, and the text the client has of them."""

from __future__ import annotations

from array import array

import msgspec


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    token_ids: list[int] | None = None
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


class Transcript:
    """Filled from the events that pass by; 4 bytes a token and the text.

    It stops being `whole`, and then says nothing any more, if the engine does not tell the tokens
    of what it says, or if it says more than `tokens_max`.
    """

    def __init__(self, tokens_max: int) -> None:
        self._tokens_max = tokens_max
        self.tokens = array("I")
        self._pieces: list[str] = []
        self.head = Head()
        self.finished = False
        """The last token has come; only the end of the stream may be missing."""
        self.whole = True

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def see(self, events: bytes) -> None:
        """Take in whole events."""
        for event in events.split(b"\n\n"):
            if self.whole and event.startswith(_DATA) and b'"choices"' in event:
                self._see(event[len(_DATA) :])

    def cut(self, tokens: int) -> None:
        """Forget all but the first `tokens`; the text stays, as the client has it."""
        del self.tokens[tokens:]

    def _see(self, data: bytes) -> None:
        try:
            event = _EVENT.decode(data)
        except msgspec.DecodeError:
            self.whole = False
            return
        self.head = self.head if self.head.id else Head(event.id, event.created, event.model)
        for choice in event.choices:
            text = choice.text if choice.delta is None else choice.delta.content
            if text and choice.token_ids is None:
                self.whole = False
                return
            self.tokens.extend(choice.token_ids or ())
            self._pieces.append(text or "")
            self.finished = self.finished or choice.finish_reason is not None
        self.whole = len(self.tokens) <= self._tokens_max
