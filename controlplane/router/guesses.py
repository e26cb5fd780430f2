"""What workers will hold, guessed from our own decisions.

A worker that was given a prompt holds its blocks soon: before its agent can say so, and also where
an engine tells nothing of its cache at all. So twenty requests with one fresh prefix that come
within milliseconds go together, and an engine without KV events is routed by memory (KR14).

A guess lasts `kept_s` after the last prompt that made it, and at most `tokens_max` are guessed of,
the oldest going first. Guesses never mix with what is known: they have an index of their own, with
one block of a prompt for every `STRIDE_TOKENS` and its last one, so that a decision adds a dozen
names and not hundreds. A match is right to `STRIDE_TOKENS`, and never too long.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from controlplane.router.index import Depths, PrefixIndex
from proto.hashing import HASH_BYTES, Words, pack
from proto.ids import WorkerId

STRIDE_TOKENS = 512
SWEEP_ENTRIES = 1_024


class Guesses:
    """Blocks that workers probably hold. Pure."""

    def __init__(self, kept_s: float, tokens_max: int) -> None:
        self._kept_s = kept_s
        self._names_max = max(1, tokens_max // STRIDE_TOKENS)
        self._index = PrefixIndex()
        self._until_s: OrderedDict[tuple[WorkerId, int], float] = OrderedDict()
        """When each name is given up; the end of a chain goes before its beginning."""

    def __len__(self) -> int:
        """How many tokens are guessed of, about."""
        return len(self._until_s) * STRIDE_TOKENS

    def expect(self, worker: WorkerId, names: Words, block_tokens: int, now_s: float) -> None:
        """The worker was given a prompt with these blocks."""
        self.expire(now_s)
        self.join(worker)
        sampled = _sampled(names, _stride(block_tokens))
        self._index.apply(worker, stored=pack(sampled))
        for name in reversed(sampled.tolist()):
            key = worker, name
            self._until_s[key] = now_s + self._kept_s
            self._until_s.move_to_end(key)
        while len(self._until_s) > self._names_max:
            self._give_up(*self._until_s.popitem(last=False)[0])
        self._index.sweep(SWEEP_ENTRIES)

    def match(self, names: Words, block_tokens: int) -> Depths:
        """How many leading blocks of a prompt each worker is thought to hold, by seat."""
        stride = _stride(block_tokens)
        return np.minimum(self._index.match(_sampled(names, stride)) * stride, len(names))

    @property
    def seatings(self) -> int:
        """Rises whenever a worker takes or leaves a seat."""
        return self._index.seatings

    def join(self, worker: WorkerId) -> None:
        """Give the worker a seat, if it has none."""
        self._index.join(worker)

    def seat(self, worker: WorkerId) -> int:
        """Where the worker is in what `match` gives."""
        return self._index.seat(worker)

    def by_worker(self, depths: Depths) -> dict[WorkerId, int]:
        """An answer of `match` in words."""
        return self._index.by_worker(depths)

    def expire(self, now_s: float) -> None:
        """Give up what is too old."""
        while self._until_s:
            key, until_s = next(iter(self._until_s.items()))
            if until_s > now_s:
                return
            del self._until_s[key]
            self._give_up(*key)

    def forget(self, worker: WorkerId) -> None:
        """The worker is gone, or its cache is empty."""
        if worker in self._index:
            for key in [key for key in self._until_s if key[0] == worker]:
                del self._until_s[key]
            self._index.leave(worker)
            while self._index.sweep(SWEEP_ENTRIES):
                pass

    def _give_up(self, worker: WorkerId, name: int) -> None:
        self._index.apply(worker, removed=name.to_bytes(HASH_BYTES, "little"))


def _stride(block_tokens: int) -> int:
    return max(1, STRIDE_TOKENS // block_tokens)


def _sampled(names: Words, stride: int) -> Words:
    """Every so-manieth name, and the last if it is not one of them."""
    sampled = names[stride - 1 :: stride]
    return sampled if len(names) % stride == 0 else np.append(sampled, names[-1:])
