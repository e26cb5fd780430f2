"""Token ids of a text, word by word, without tokenising again the words that are known.

A tokenizer takes a text apart before it merges anything, and most of them begin a new part at a
space behind anything that is none. What stands between two such places becomes the same ids
wherever it comes, so it is remembered; looking a word up costs a tenth of tokenising it. Whether a
tokenizer begins a new part there is tried, not believed. One that does not gets every text whole.
"""

from __future__ import annotations

from array import array
from itertools import product

from tokenizers import Tokenizer

WORDS_MAX = 32_768
"""Some 8 MiB. What fills up is forgotten, and soon learned again."""
WORD_CHARS_MAX = 48
"""Longer ones do not come again."""
NEW_WORDS_MAX = 256
"""Of one text: a word by itself costs more than twice what it does within a text."""
TEXT_CHARS_MAX = 1 << 20
"""Longer ones are not taken apart: a list of their words would be many times their size."""

_LETTERS = ("a", "中", "1", ".", "'", "_", "\u0301", "😀")
"""One of each kind that tokenizers tell apart; `'` also begins the suffixes that some split off."""
_SPACES = (" ", "\n", "\t")


class WordEncoder:
    """One tokenizer with a memory. Threads may share it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, bytes] = {}
        """Ids of a word with a space before it, as 32-bit words."""
        around = _around(tokenizer)
        self.by_words = around is not None and _parts_at_spaces(tokenizer)
        self._before, self._after = around or (b"", b"")

    def encode(self, text: str, *, special: bool = False) -> array[int]:
        """Exactly the ids of the whole text, with or without what the tokenizer adds around it."""
        if not self.by_words or len(text) > TEXT_CHARS_MAX:
            return token_ids(self._tokenizer, text, special=special)
        words = text.split(" ")
        first = next((at for at, word in enumerate(words) if _ends(word)), len(words) - 1)
        beginning = token_ids(self._tokenizer, " ".join(words[: first + 1]), special=False)
        ids = b"".join([beginning.tobytes(), *self._of_words(words[first + 1 :])])
        return array("I", self._before + ids + self._after if special else ids)

    def _of_words(self, words: list[str]) -> list[bytes]:
        known, new, since = self._known, 0, -1
        ids: list[bytes] = []
        for at, word in enumerate(words):
            if since >= 0:
                if not _ends(word):
                    continue
                word, since = " ".join(words[since : at + 1]), -1
            found = known.get(word)
            if found is None:
                if not _ends(word):
                    since = at  # a word that begins with several spaces, or with a line
                    continue
                new += 1
                if new > NEW_WORDS_MAX:
                    return [*ids, self._encode(" ".join([word, *words[at + 1 :]]))]
                found = self._learn(word)
            ids.append(found)
        return ids if since < 0 else [*ids, self._encode(" ".join(words[since:]))]

    def _learn(self, word: str) -> bytes:
        ids = self._encode(word)
        if len(word) <= WORD_CHARS_MAX:
            if len(self._known) >= WORDS_MAX:
                self._known.clear()
            self._known[word] = ids
        return ids

    def _encode(self, words: str) -> bytes:
        return token_ids(self._tokenizer, " " + words, special=False).tobytes()


def token_ids(tokenizer: Tokenizer, text: str, *, special: bool) -> array[int]:
    """Token ids of one text, with or without what a tokenizer adds around it. Only a batch may do
    without the places of tokens in the text, which are a third of the work."""
    [encoding] = tokenizer.encode_batch_fast([text], add_special_tokens=special)
    return array("I", encoding.ids)


def _ends(word: str) -> bool:
    """What follows a space behind it is another word."""
    return bool(word) and not word[-1].isspace()


def _parts_at_spaces(tokenizer: Tokenizer) -> bool:
    """Whether it begins a new part at every space behind anything but space, and never minds what
    is further away: tried with whatever two characters may stand on either side."""
    added = tokenizer.get_added_tokens_decoder().values()
    if any(t.rstrip or t.single_word or any(map(str.isspace, t.content)) for t in added):
        return False
    if tokenizer.pre_tokenizer is None:
        return False
    before = [*_LETTERS, *map("".join, product(_LETTERS + _SPACES, _LETTERS))]
    after = ["", *_LETTERS, *_SPACES, *map("".join, product(_LETTERS + _SPACES, repeat=2))]
    parts = {text: _parts(tokenizer, text) for text in [*before, *(" " + text for text in after)]}
    return all(
        _parts(tokenizer, f"{left} {right}") == parts[left] + parts[f" {right}"]
        for left, right in product(before, after)
    )


def _around(tokenizer: Tokenizer) -> tuple[bytes, bytes] | None:
    """What it adds before a text and behind it, as 32-bit words; None if that does not show."""
    plain, whole = (token_ids(tokenizer, "a", special=special) for special in (False, True))
    size = len(plain)
    for at in range(len(whole)):
        if size and whole[at : at + size] == plain:
            return whole[:at].tobytes(), whole[at + size :].tobytes()
    return None


def _parts(tokenizer: Tokenizer, text: str) -> list[str]:
    normalised = text if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str(text)
    return [part for part, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalised)]
