"""The prefix index: which workers hold which KV blocks, as one flat dictionary.

A name (see `proto.hashing`) stands for a block and all before it, so no tree is needed: `name ->
bitmask of workers`. One index serves every model, adapter, tenant and block size, because all of
that is inside the name. A block costs one dictionary entry however many workers hold it.

A worker that leaves, or empties its cache, costs O(1): its bit is retired and a sweep takes it out
of the entries in slices; the bit is given out again only after that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from proto.ids import WorkerId


class PrefixIndex:
    """Blocks by name. Pure: no clock, no I/O; every answer is exact at the time it is given."""

    def __init__(self) -> None:
        self._holders: dict[int, int] = {}
        self._bits: dict[WorkerId, int] = {}
        self._owners: dict[int, WorkerId] = {}
        self._counts: dict[WorkerId, int] = {}
        self._digests: dict[WorkerId, int] = {}
        self._live = 0
        """Every bit that belongs to a worker; retired bits are not in it."""
        self._free: list[int] = []
        self._next_bit = 1
        self._retired = 0
        self._sweeping: tuple[int, Iterator[list[int]]] | None = None

    def __len__(self) -> int:
        """How many different blocks are held by anybody (or wait to be swept)."""
        return len(self._holders)

    def __contains__(self, worker: WorkerId) -> bool:
        return worker in self._bits

    @property
    def workers(self) -> Sequence[WorkerId]:
        return tuple(self._bits)

    def count(self, worker: WorkerId) -> int:
        """How many blocks the worker holds."""
        return self._counts.get(worker, 0)

    def digest(self, worker: WorkerId) -> int:
        """Exclusive or of the names the worker holds."""
        return self._digests.get(worker, 0)

    def join(self, worker: WorkerId) -> None:
        """Know a worker; it holds nothing yet. Joining twice is fine."""
        if worker not in self._bits:
            bit = self._free.pop() if self._free else self._new_bit()
            self._bits[worker] = bit
            self._owners[bit] = worker
            self._counts[worker] = self._digests[worker] = 0
            self._live |= bit

    def leave(self, worker: WorkerId) -> None:
        """Forget a worker and everything it held."""
        bit = self._bits.pop(worker, 0)
        if bit:
            del self._owners[bit], self._counts[worker], self._digests[worker]
            self._live &= ~bit
            self._retired |= bit

    def clear(self, worker: WorkerId) -> None:
        """The worker holds nothing any more."""
        if self._counts.get(worker):
            self.leave(worker)
            self.join(worker)

    def store(self, worker: WorkerId, names: Sequence[int]) -> None:
        """The worker holds these, too."""
        bit, holders = self._bits[worker], self._holders
        count = digest = 0
        for name in names:
            held_by = holders.get(name, 0)
            if not held_by & bit:
                holders[name] = held_by | bit
                count += 1
                digest ^= name
        self._counts[worker] += count
        self._digests[worker] ^= digest

    def remove(self, worker: WorkerId, names: Sequence[int]) -> None:
        """The worker no longer holds these; what it did not hold is ignored."""
        bit, holders = self._bits[worker], self._holders
        count = digest = 0
        for name in names:
            held_by = holders.get(name, 0)
            if held_by & bit:
                count += 1
                digest ^= name
                if held_by == bit:
                    del holders[name]
                else:
                    holders[name] = held_by ^ bit
        self._counts[worker] -= count
        self._digests[worker] ^= digest

    def match(self, names: Sequence[int]) -> dict[WorkerId, int]:
        """How many leading blocks of a prompt each worker holds; workers with none are absent.

        Walks the prompt once and stops where nobody goes on; a worker that evicted a block in the
        middle counts up to the hole.
        """
        get, holding, depth = self._holders.get, self._live, 0
        depths: dict[WorkerId, int] = {}
        for name in names:
            still = get(name, 0) & holding
            if still != holding:
                if depth:
                    self._note(depths, holding & ~still, depth)
                if not still:
                    return depths
                holding = still
            depth += 1
        if depth:
            self._note(depths, holding, depth)
        return depths

    def sweep(self, entries_max: int) -> bool:
        """Take retired bits out of at most `entries_max` entries; True if more is to be done."""
        if self._sweeping is None:
            if not self._retired:
                return False
            self._sweeping = self._retired, _slices(list(self._holders), entries_max)
        retired, slices = self._sweeping
        part = next(slices, None)
        if part is None:
            self._sweeping = None
            self._retired &= ~retired
            self._free += _bits_of(retired)
            return bool(self._retired)
        self._clean(part, ~retired)
        return True

    def _clean(self, names: list[int], keep: int) -> None:
        holders = self._holders
        for name in names:
            held_by = holders.get(name)
            if held_by is None:
                continue
            if kept := held_by & keep:
                holders[name] = kept
            else:
                del holders[name]

    def _note(self, depths: dict[WorkerId, int], bits: int, depth: int) -> None:
        for bit in _bits_of(bits):
            depths[self._owners[bit]] = depth

    def _new_bit(self) -> int:
        bit = self._next_bit
        self._next_bit <<= 1
        return bit


def _bits_of(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest
        mask ^= lowest


def _slices(names: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]
