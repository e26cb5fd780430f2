"""Sets of workers as bitmasks, each different one kept once and known by a small number.

Blocks of one chain mostly have the same holders, so a fleet has far fewer different sets than
blocks: a block costs a number, however many workers hold it, and a worker is taken out of all its
blocks by rewriting sets.

A set is kept twice: as an int, to be changed and compared, and as a row of words, so that depths
are counted for all workers at once. With 512 workers that is about 300 bytes a set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from controlplane.router.cuckoo import Moved

Rows = NDArray[np.uint64]
"""A row of words for each set; bit i of a row, its lowest byte first, is bit i of the mask."""

FIRST_SETS = 64
WORD_BYTES = 8


class HolderSets:
    """Sets by number. The number 0 is the empty set; others are given back when unused."""

    def __init__(self) -> None:
        self.masks = [0]
        """By number. Read only; not more than one sweep behind on workers that have left."""
        self.rows: Rows = np.zeros((FIRST_SETS, 1), dtype=np.uint64)
        """The same, and some to spare."""
        self._numbers = {0: 0}
        self._uses = [0]
        self._free: list[int] = []

    def __len__(self) -> int:
        """How many different sets are in use, the empty one not counted."""
        return len(self.masks) - 1 - len(self._free)

    def reserve_bits(self, bits: int) -> None:
        """Make rows wide enough for masks of so many bits."""
        width = self.rows.shape[1]
        if bits > width * WORD_BYTES * 8:
            self.rows = np.pad(self.rows, ((0, 0), (0, width)))
            self.reserve_bits(bits)

    def row(self, mask: int) -> Rows:
        """A mask as one row."""
        width_bytes = self.rows.shape[1] * WORD_BYTES
        return np.frombuffer(mask.to_bytes(width_bytes, "little"), dtype=np.uint64)

    def after(self, number: int, bit: int, stored: bool, live: int) -> int:
        """The number of the same set with `bit`, or without it; of others only `live` bits stay."""
        mask = self.masks[number]
        if bool(mask & bit) is stored:
            return number
        return self._number(mask & live | bit if stored else mask & live & ~bit)

    def burying(self, number: int) -> int:
        """The successor of a set whose last member has left is the empty set."""
        return number if self.masks[number] else 0

    def move(self, moves: Iterable[Moved]) -> None:
        """Count blocks that have gone from one set to another; what is unused is given back."""
        uses = self._uses
        for move in moves:
            uses[move.new] += move.names
        for move in moves:
            uses[move.old] -= move.names
            if not uses[move.old] and move.old:
                self._give_back(move.old)

    def strip(self, bits: int, slice_sets: int) -> Iterator[None]:
        """Take `bits` out of every set, `slice_sets` at a time. Sets made meanwhile must not have
        them; two sets may come to be equal, which only costs a number."""
        for start in range(0, len(self.masks), slice_sets):
            end = min(start + slice_sets, len(self.masks))
            for number in range(start, end):
                if self.masks[number] & bits:
                    self._rename(number, self.masks[number] & ~bits)
            self.rows[start:end] &= ~self.row(bits)
            yield

    def dead(self) -> list[int]:
        """Numbers of sets that are empty and yet in use."""
        return [n for n, mask in enumerate(self.masks) if not mask and self._uses[n] > 0 and n]

    def _number(self, mask: int) -> int:
        number = self._numbers.get(mask)
        if number is None:
            if self._free:
                number = self._free.pop()
            else:
                number = len(self.masks)
                self.masks.append(0)
                self._uses.append(0)
                if number == len(self.rows):
                    self.rows = np.pad(self.rows, ((0, number), (0, 0)))
            self._numbers[mask] = number
            self.masks[number] = mask
            self.rows[number] = self.row(mask)
        return number

    def _rename(self, number: int, mask: int) -> None:
        if self._numbers.get(self.masks[number]) == number:
            del self._numbers[self.masks[number]]
        self.masks[number] = mask
        self._numbers.setdefault(mask, number)

    def _give_back(self, number: int) -> None:
        if self._numbers.get(self.masks[number]) == number:
            del self._numbers[self.masks[number]]
        self.masks[number] = 0
        self._free.append(number)
