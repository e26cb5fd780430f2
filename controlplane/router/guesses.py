"""What workers will hold, guessed from our own decisions.

A worker that was given a prompt holds its blocks soon: before its agent can say so, and also where
an engine tells nothing of its cache at all. So twenty requests with one fresh prefix that come
within milliseconds go together, and an engine without KV events is routed by memory (KR14).

A guess lasts `kept_s` after the last prompt that made it, and at most `tokens_max` are guessed of,
the oldest going first. Guesses never mix with what is known: they are kept apart, one block of a
prompt for every `STRIDE_TOKENS` and its last one, so that a decision adds a dozen names and not
hundreds. A match is right to `STRIDE_TOKENS`, and never too long.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from proto.hashing import Words
from proto.ids import WorkerId

STRIDE_TOKENS = 512

Depths = NDArray[np.int64]
"""Leading blocks, by seat."""


class Guesses:
    """Blocks that workers probably hold. Pure."""

    def __init__(self, kept_s: float, tokens_max: int) -> None:
        self._kept_s = kept_s
        self._names_max = max(1, tokens_max // STRIDE_TOKENS)
        self._until_s: OrderedDict[tuple[WorkerId, int], float] = OrderedDict()
        """When each name is given up; the end of a chain goes before its beginning, so what a
        worker is thought to hold is prefix-closed."""
        self._holders: dict[int, int] = {}
        """Name to a mask of seats."""
        self._seats: dict[WorkerId, int] = {}
        self._free_seats: list[int] = []
        self._seats_made = 0
        self.seatings = 0
        """Rises whenever a worker takes or leaves a seat."""

    def __len__(self) -> int:
        """How many tokens are guessed of, about."""
        return len(self._until_s) * STRIDE_TOKENS

    def join(self, worker: WorkerId) -> None:
        """Give the worker a seat, if it has none."""
        if worker not in self._seats:
            if not self._free_seats:
                self._free_seats.append(self._seats_made)
                self._seats_made += 1
            self._seats[worker] = self._free_seats.pop()
            self.seatings += 1

    def leave(self, worker: WorkerId) -> None:
        """The worker is gone."""
        self.forget(worker)
        if worker in self._seats:
            self._free_seats.append(self._seats.pop(worker))
            self.seatings += 1

    def seat(self, worker: WorkerId) -> int:
        """Where the worker is in what `match` gives."""
        return self._seats[worker]

    def expect(self, worker: WorkerId, names: Words, block_tokens: int, now_s: float) -> None:
        """The worker was given a prompt with these blocks."""
        self.expire(now_s)
        self.join(worker)
        bit, until_s = 1 << self._seats[worker], now_s + self._kept_s
        for name in reversed(_sampled(names, _stride(block_tokens))):
            key = worker, name
            self._until_s[key] = until_s
            self._until_s.move_to_end(key)
            self._holders[name] = self._holders.get(name, 0) | bit
        while len(self._until_s) > self._names_max:
            self._give_up(*self._until_s.popitem(last=False)[0])

    def match(self, names: Words, block_tokens: int) -> Depths:
        """How many leading blocks of a prompt each worker is thought to hold, by seat."""
        depths: Depths = np.zeros(self._seats_made, dtype=np.int64)
        stride = _stride(block_tokens)
        holding, depth = 0, 0
        for name in _sampled(names, stride):
            still = self._holders.get(name, 0)
            if still != holding:
                _note(depths, holding & ~still, depth)
                holding = still
            if not holding:
                return depths
            depth += stride
        _note(depths, holding, min(depth, len(names)))
        return depths

    def by_worker(self, depths: Depths) -> dict[WorkerId, int]:
        """An answer of `match` in words; workers with nothing are left out."""
        named = {worker: int(depths[seat]) for worker, seat in self._seats.items()}
        return {worker: depth for worker, depth in named.items() if depth}

    def expire(self, now_s: float) -> None:
        """Give up what is too old."""
        while self._until_s:
            key, until_s = next(iter(self._until_s.items()))
            if until_s > now_s:
                return
            del self._until_s[key]
            self._give_up(*key)

    def forget(self, worker: WorkerId) -> None:
        """The worker holds nothing any more."""
        if worker in self._seats:
            for key in [key for key in self._until_s if key[0] == worker]:
                del self._until_s[key]
                self._give_up(*key)

    def _give_up(self, worker: WorkerId, name: int) -> None:
        left = self._holders[name] & ~(1 << self._seats[worker])
        if left:
            self._holders[name] = left
        else:
            del self._holders[name]


def _stride(block_tokens: int) -> int:
    return max(1, STRIDE_TOKENS // block_tokens)


def _sampled(names: Words, stride: int) -> list[int]:
    """Every so-manieth name, and the last if it is not one of them."""
    sampled: list[int] = names[stride - 1 :: stride].tolist()
    if len(names) % stride:
        sampled.append(names.item(-1))
    return sampled


def _note(depths: Depths, seats: int, depth: int) -> None:
    """All these seats, a mask, have got so far and no further."""
    while seats:
        lowest = seats & -seats
        depths[lowest.bit_length() - 1] = depth
        seats ^= lowest
