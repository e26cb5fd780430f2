"""Which blocks of one tier are live, from announcements that say more than they mean.

vLLM announces one `Stored` and later one `Removed` for every *physical* copy of a block, so a
block is live until as many copies were removed as were stored. But it may also announce a block
again when a request merely finds it (`kv_cache_report_mode=full`), and nothing on the wire tells
the two apart. Counting such an announcement leaves a reference that no removal will ever take
back. Not counting it would drop a live block whenever it was a copy after all.

The rule:

1. Every announcement counts one, every removal takes one back; at zero the block is gone.
2. A block whose last event was a removal, but which has references left, is *doubtful*. It stays
   live: it may have copies. The next announcement proves it live again.
3. The engine holds at most `capacity` blocks. When more are live by our count, some doubtful one
   must be gone: the one doubtful for longest goes, as the engine too evicts the oldest first.

Without re-announcements the count is exact, live blocks never outnumber physical ones, and rule 3
never speaks: no live block is dropped. With them, wrong entries are bounded by `capacity`, and
they heal in just the state in which they arise, as an engine evicts only when its cache is full.
"""

from __future__ import annotations

from agents.adapters.protocol import EngineHash


class References:
    """Copies of each block in one tier; `capacity` None where the engine tells no size."""

    def __init__(self, capacity: int | None = None) -> None:
        self._capacity = capacity
        self._copies: dict[EngineHash, int] = {}
        self._doubtful: dict[EngineHash, None] = {}  # in the order in which they became so

    def __contains__(self, block: EngineHash) -> bool:
        return block in self._copies

    def add(self, block: EngineHash) -> EngineHash | None:
        """A copy was announced. Returns a block that must be gone for it, if there is one."""
        self._copies[block] = self._copies.get(block, 0) + 1
        self._doubtful.pop(block, None)
        if self._capacity is None or len(self._copies) <= self._capacity or not self._doubtful:
            return None
        gone = next(iter(self._doubtful))
        self._forget(gone)
        return gone

    def confirm(self, block: EngineHash) -> EngineHash | None:
        """The block is live, as the engine said so without storing a copy. Returns as `add`."""
        if block not in self._copies:
            return self.add(block)
        self._doubtful.pop(block, None)
        return None

    def remove(self, block: EngineHash) -> bool:
        """A copy was removed; True if the block is gone. An unknown block is not there anyway."""
        copies = self._copies.get(block)
        if copies is None:
            return False
        if copies == 1:
            self._forget(block)
            return True
        self._copies[block] = copies - 1
        self._doubtful.pop(block, None)
        self._doubtful[block] = None
        return False

    def clear(self) -> None:
        self._copies.clear()
        self._doubtful.clear()

    def _forget(self, block: EngineHash) -> None:
        del self._copies[block]
        self._doubtful.pop(block, None)
