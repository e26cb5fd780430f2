"""Token ids of a chat, without tokenising again what earlier chats began with.

A tokenizer takes a text apart at its special tokens before it does anything else, so what stands
between two of them becomes the same ids wherever it comes. A rendered chat is such pieces: one or
two a message. Each is encoded with the special token before it and the one after it, which may eat
the spaces next to them, and remembered by that text; the ids are exactly those of the whole.
"""

from __future__ import annotations

import re
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from threading import Lock

from tokenizers import Tokenizer

from controlplane.gateway.words import WordEncoder

BYTES_MAX = 32 << 20
"""Of texts and ids remembered, for each model; those not used for longest go first."""
OVERHEAD_BYTES = 256
"""Of a piece: the objects that hold it."""


class PieceEncoder:
    """One tokenizer with a memory. Threads may share it."""

    def __init__(
        self, tokenizer: Tokenizer, words: WordEncoder, bytes_max: int = BYTES_MAX
    ) -> None:
        self._words = words
        self._specials = _specials(tokenizer)
        self._bytes_max = bytes_max
        self._bytes = 0
        self._known: OrderedDict[str, array[int]] = OrderedDict()
        self._lock = Lock()
        self.encoded_chars = 0
        """How much was not known, since the start."""

    def encode(self, text: str) -> array[int]:
        """Token ids of a text that has its special tokens in it."""
        tokens = array("I")
        for piece, is_last in self._pieces(text):
            # The special token after a piece is the first of the next one.
            ids = self._ids(piece)
            tokens += ids if is_last else ids[:-1]
        return tokens

    def unknown_chars(self, text: str) -> int:
        """How much of a text is not known yet."""
        with self._lock:
            return sum(len(piece) for piece, _ in self._pieces(text) if piece not in self._known)

    def _pieces(self, text: str) -> Iterator[tuple[str, bool]]:
        start = 0
        for found in self._specials.finditer(text) if self._specials else ():
            if found.start() > 0:
                yield text[start : found.end()], False
            start = found.start()
        yield text[start:], True

    def _ids(self, piece: str) -> array[int]:
        with self._lock:
            known = self._known.get(piece)
            if known is not None:
                self._known.move_to_end(piece)
                return known
        ids = self._words.encode(piece)
        with self._lock:
            self.encoded_chars += len(piece)
            self._remember(piece, ids)
        return ids

    def _remember(self, piece: str, ids: array[int]) -> None:
        if piece in self._known:
            return
        self._known[piece] = ids
        self._bytes += _bytes(piece, ids)
        while self._bytes > self._bytes_max:
            self._bytes -= _bytes(*self._known.popitem(last=False))


def _specials(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """What a text is taken apart at before anything else; None if there is nothing of the kind, or
    if neighbours decide whether it is."""
    added = [each for each in tokenizer.get_added_tokens_decoder().values() if not each.normalized]
    if not added or any(each.single_word for each in added):
        return None
    # Where two begin at the same place the longer one counts.
    longest_first = sorted((each.content for each in added), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


def _bytes(piece: str, ids: array[int]) -> int:
    return 4 * len(piece) + 4 * len(ids) + OVERHEAD_BYTES
