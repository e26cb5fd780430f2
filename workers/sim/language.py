"""What the engine says: a language model of a few hundred words, and no weights.

The next token is a pure function of all tokens before it (and of a seed): it is read off the
SHA-256 of them. So an answer cut off anywhere and continued from its tokens, here or on another
engine, goes on word for word, which is what moving a request between engines relies on.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

ANSWER_TOKENS = 128
"""Mean length of an answer that may end by itself: the chance of an end is the same after every
word, since it, too, can only depend on the tokens before."""


class LanguageModel:
    """`words` maps token ids to their text; `end_id` ends an answer."""

    def __init__(self, words: Mapping[int, str], end_id: int) -> None:
        assert words and end_id not in words
        self.end_id = end_id
        self._texts = dict(words)
        self._words = [(id, _bytes([id])) for id in words]

    @property
    def words(self) -> int:
        """How many words it knows, each as likely as the others."""
        return len(self._words)

    def some_texts(self, count: int) -> Sequence[str]:
        """Texts of its first words."""
        return list(islice(self._texts.values(), count))

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens that this model said; its end has none."""
        return "".join([self._texts.get(token, "") for token in tokens])

    def say(self, tokens: Sequence[int], seed: int, *, may_end: bool) -> Iterator[int]:
        """The tokens that follow `tokens`, without end, or with `may_end` up to and including
        `end_id`. An answer never ends before its first word."""
        state = hashlib.sha256(f"{seed};".encode())
        state.update(_bytes(tokens))
        words = self._words
        spoken = len(tokens) > 0 and tokens[-1] in self._texts
        while True:
            drawn = int.from_bytes(state.digest()[:8], "big")
            if may_end and spoken and (drawn >> 32) % ANSWER_TOKENS == 0:
                yield self.end_id
                return
            token, token_bytes = words[(drawn & 0xFFFFFFFF) % len(words)]
            state.update(token_bytes)
            spoken = True
            yield token


def _bytes(tokens: Sequence[int]) -> bytes:
    return array("I", tokens).tobytes()
