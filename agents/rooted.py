"""Blocks whose whole prefix is live: the only ones worth telling of.

An engine looks a prompt up block by block and stops at the first that is missing, so what lies
behind a hole is of no use until the hole is filled. Readers rely on it: a set in which each block
comes with all before it can be searched by halving.

Engines evict the ends of chains first, so a block rarely leaves with others behind it. A block
alone costs one entry here; only blocks that more than one follows have a set of followers.
"""

from __future__ import annotations

from agents.adapters.protocol import EngineHash


class Rooted:
    """Live blocks and who follows whom. Each block keeps its parent for as long as it is live."""

    def __init__(self) -> None:
        self._rooted: set[EngineHash] = set()
        self._follower: dict[EngineHash, EngineHash] = {}
        """A live block that follows this one, which itself need not be live."""
        self._others: dict[EngineHash, set[EngineHash]] = {}
        """The rest of them, if there are several."""

    def __contains__(self, block: EngineHash) -> bool:
        """Whether the block and all before it are live."""
        return block in self._rooted

    def add(self, block: EngineHash, parent: EngineHash | None) -> list[EngineHash]:
        """The block is live; to say so twice is fine. Returns what has become rooted by it, each
        block before those that follow it."""
        if parent is not None:
            if self._follower.setdefault(parent, block) != block:
                self._others.setdefault(parent, set()).add(block)
            if parent not in self._rooted:
                return []
        if block in self._rooted:
            return []
        blocks = self._with_followers(block)
        self._rooted.update(blocks)
        return blocks

    def discard(self, block: EngineHash, parent: EngineHash | None) -> list[EngineHash]:
        """The block, which was added with this parent, is not live any more. Returns what is no
        longer rooted, each block after those that follow it."""
        if parent is not None:
            self._unlink(block, parent)
        if block not in self._rooted:
            return []
        blocks = self._with_followers(block)
        self._rooted.difference_update(blocks)
        blocks.reverse()
        return blocks

    def clear(self) -> None:
        """Nothing is live."""
        self._rooted.clear()
        self._follower.clear()
        self._others.clear()

    def _unlink(self, block: EngineHash, parent: EngineHash) -> None:
        others = self._others.get(parent)
        if self._follower[parent] != block:
            assert others is not None
            others.remove(block)
        elif others:
            self._follower[parent] = others.pop()
        else:
            del self._follower[parent]
        if others is not None and not others:
            del self._others[parent]

    def _with_followers(self, block: EngineHash) -> list[EngineHash]:
        """The block and every live one that it leads to. As each has one parent, what begins at a
        rooted block is a tree."""
        blocks = [block]
        for each in blocks:
            if each in self._follower:
                blocks.append(self._follower[each])
                blocks += self._others.get(each, ())
        return blocks
