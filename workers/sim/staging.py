"""Blocks that are kept for another engine to read: which pages, under whose name, and until when.

A page has a number, and is used again as soon as it is free, the last freed first: whoever reads by
an old number meets somebody else's block, and must notice. A lease is never longer than its last
word: silence frees the pages. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from workers.sim.library import Chain


class NotStaged(Exception):
    """These pages are not kept for that request: their lease is over, or they were released."""


@dataclass
class _Kept:
    pages: list[int]
    owned: frozenset[int]
    until_s: float
    reads: int = 0
    made_from: Chain | None = None


class Staging:
    """Pages by number, and the requests that they are kept for."""

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        self._names: dict[int, int] = {}
        self._free: list[int] = []
        self._kept: dict[str, _Kept] = {}
        self._pages = 0
        self.expiries = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def pages(self) -> int:
        """In use."""
        return len(self._names)

    def stage(
        self, id: str, names: Sequence[int], now_s: float, made_from: Chain | None = None
    ) -> list[int]:
        """Keep blocks for a request; returns the numbers of their pages. `made_from` is for readers
        who do not know what they ask for."""
        assert id not in self._kept
        pages = [self._take(name) for name in names]
        self._kept[id] = _Kept(pages, frozenset(pages), now_s + self.lease_s, made_from=made_from)
        return pages

    def made_from(self, id: str, now_s: float) -> Chain | None:
        """What was said of these blocks. Raises `NotStaged`."""
        return self._live(id, now_s).made_from

    def pages_of(self, id: str, now_s: float) -> list[int]:
        """Raises `NotStaged`."""
        return self._live(id, now_s).pages

    def read(self, id: str, pages: Sequence[int], now_s: float) -> list[int]:
        """What is in these pages, by name. Raises `NotStaged`."""
        kept = self._live(id, now_s)
        if not kept.owned.issuperset(pages):
            raise NotStaged(f"{id} was not given these pages")
        return [self._names[page] for page in pages]

    def begin_read(self, id: str, now_s: float) -> None:
        """From now on its lease does not run out. Raises `NotStaged`."""
        self._live(id, now_s).reads += 1

    def end_read(self, id: str, now_s: float) -> None:
        """The lease runs again, from now."""
        if kept := self._kept.get(id):
            kept.reads -= 1
            kept.until_s = now_s + self.lease_s

    def extend(self, id: str, now_s: float) -> bool:
        """Its reader is alive, and waits. False if it waits in vain."""
        try:
            self._live(id, now_s).until_s = now_s + self.lease_s
        except NotStaged:
            return False
        return True

    def release(self, id: str) -> bool:
        """Free its pages; False if it has none."""
        kept = self._kept.pop(id, None)
        if kept is None:
            return False
        for page in kept.pages:
            del self._names[page]
            self._free.append(page)
        return True

    def expired(self, now_s: float) -> list[str]:
        """Whose lease is over; to be released."""
        return [id for id, kept in self._kept.items() if not kept.reads and kept.until_s <= now_s]

    def next_expiry_s(self) -> float:
        """When the first lease is over, as things are."""
        return min((k.until_s for k in self._kept.values() if not k.reads), default=math.inf)

    def _live(self, id: str, now_s: float) -> _Kept:
        kept = self._kept.get(id)
        if kept is None or (not kept.reads and kept.until_s <= now_s):
            raise NotStaged(f"nothing is kept for {id}, or not any more")
        return kept

    def _take(self, name: int) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page, self._pages = self._pages, self._pages + 1
        self._names[page] = name
        return page
