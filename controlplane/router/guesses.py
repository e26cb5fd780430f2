"""What workers will hold, guessed from our own decisions.

A worker that was given a prompt holds its blocks soon: before its agent can say so, and also where
an engine tells nothing of its cache at all. So twenty requests with one fresh prefix that come
within milliseconds go together, and an engine without KV events is routed by memory (KR14).

A guess lasts `kept_s` after the last prompt that made it, and at most `tokens_max` are guessed of,
the oldest going first. A request that ends before its first token takes its guess back: what other
prompts made of the same blocks stays, for as long as it would have. Guesses never mix with what is
known: they are kept apart, one block of a prompt for every `STRIDE_TOKENS` and its last one, so
that a decision adds a dozen names and not hundreds. A match is right to `STRIDE_TOKENS`, and never
too long.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from proto.hashing import Words
from proto.ids import RequestId, WorkerId
from proto.progress import Booking, Progress

STRIDE_TOKENS = 512

_Prompt = tuple[WorkerId, RequestId, int]
"""Where it was sent, and the request and attempt that it belongs to."""

Depths = NDArray[np.int64]
"""Leading blocks, by seat."""


@dataclass(eq=False, slots=True)
class _Guess:
    """What one prompt makes of its names."""

    until_s: float
    before: dict[int, _Guess | None] = field(default_factory=dict)
    """The last guess at each name before this one; nothing once it will not be taken back."""
    in_vain: bool = False
    """It was taken back."""

    def still(self, name: int) -> _Guess | None:
        """The last guess at the name before this one that was not taken back."""
        earlier = self.before.get(name)
        while earlier is not None and earlier.in_vain:
            earlier = earlier.before.get(name)
        return earlier


class Guesses:
    """Blocks that workers probably hold. Pure."""

    def __init__(self, kept_s: float, tokens_max: int) -> None:
        self._kept_s = kept_s
        self._names_max = max(1, tokens_max // STRIDE_TOKENS)
        self._last: OrderedDict[tuple[WorkerId, int], _Guess] = OrderedDict()
        """The last guess at each name, with which it is given up; the end of a chain goes before
        its beginning."""
        self._again: list[tuple[float, tuple[WorkerId, int]]] = []
        """When names are given up whose last guess was taken back, so that they are not in that
        order any more; a heap."""
        self._coming: dict[_Prompt, _Guess] = {}
        """Prompts that are yet to be computed, in the order in which their guesses are given up."""
        self._holders: dict[int, int] = {}
        """Name to a mask of seats."""
        self._seats: dict[WorkerId, int] = {}
        self._free_seats: list[int] = []
        self._seats_made = 0
        self.seatings = 0
        """Rises whenever a worker takes or leaves a seat."""

    def __len__(self) -> int:
        """How many tokens are guessed of, about."""
        return len(self._last) * STRIDE_TOKENS

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

    def expect(self, prompt: Booking, names: Words, block_tokens: int, now_s: float) -> None:
        """A worker was given a prompt with these blocks."""
        self.expire(now_s)
        worker = prompt.worker
        self.join(worker)
        bit, guess = 1 << self._seats[worker], _Guess(now_s + self._kept_s)
        self.computed(prompt)  # should it be the same one again
        self._coming[_key(prompt)] = guess
        for name in reversed(_sampled(names, _stride(block_tokens))):
            key = worker, name
            guess.before[name] = self._last.pop(key, None)
            self._last[key] = guess
            self._holders[name] = self._holders.get(name, 0) | bit
        while len(self._last) > self._names_max:
            self._give_up(*self._last.popitem(last=False)[0])
        while len(self._coming) > self._names_max:
            self._settle(next(iter(self._coming)))

    def computed(self, prompt: Booking | Progress) -> None:
        """The worker has done with the prompt: it will not be taken back."""
        self._settle(_key(prompt))

    def take_back(self, prompt: Booking | Progress, now_s: float) -> None:
        """The request has ended: if its prompt was not computed before, it never will be."""
        guess = self._coming.pop(_key(prompt), None)
        if guess is None:
            return
        guess.in_vain = True
        for name in guess.before:
            earlier = guess.before[name] = guess.still(name)
            key = prompt.worker, name
            if self._last.get(key) is not guess:
                continue
            if earlier and earlier.until_s > now_s and len(self._again) < self._names_max:
                self._last[key] = earlier
                heappush(self._again, (earlier.until_s, key))
            else:
                del self._last[key]
                self._give_up(*key)

    def match(self, names: Words, block_tokens: int) -> Depths:
        """How many leading blocks of a prompt each worker is thought to hold, by seat."""
        depths: Depths = np.zeros(self._seats_made, dtype=np.int64)
        stride = _stride(block_tokens)
        sampled = _sampled(names, stride)
        holding, depth = self._holders.get(sampled[0], 0) if sampled else 0, 0
        for name in sampled:
            still = self._holders.get(name, 0) & holding
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
        while self._coming:
            prompt, guess = next(iter(self._coming.items()))
            if guess.until_s > now_s:
                break
            self._settle(prompt)
        while self._last:
            key, guess = next(iter(self._last.items()))
            if guess.until_s > now_s:
                break
            del self._last[key]
            self._give_up(*key)
        while self._again and self._again[0][0] <= now_s:
            _, key = heappop(self._again)
            if key in self._last and self._last[key].until_s <= now_s:
                del self._last[key]
                self._give_up(*key)

    def forget(self, worker: WorkerId) -> None:
        """The worker holds nothing any more."""
        if worker in self._seats:
            for key in [key for key in self._last if key[0] == worker]:
                del self._last[key]
                self._give_up(*key)

    def _settle(self, prompt: _Prompt) -> None:
        """It will not be taken back."""
        if guess := self._coming.pop(prompt, None):
            guess.before.clear()

    def _give_up(self, worker: WorkerId, name: int) -> None:
        left = self._holders[name] & ~(1 << self._seats[worker])
        if left:
            self._holders[name] = left
        else:
            del self._holders[name]


def _key(prompt: Booking | Progress) -> _Prompt:
    return prompt.worker, prompt.request, prompt.attempt


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
