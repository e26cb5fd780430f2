"""Engine events to canonical names: which blocks are live, in words that the fleet shares.

An engine says "this run of tokens follows that block", in hashes of its own. To name a run its
place in the chain must be known, so every block is remembered with its `ChainPoint` and scope,
for a while even after it has gone: an engine may bring it back from a slower tier, or prove it
live by storing something behind it. A run behind a block that was never heard of (the agent came
late, or events were lost) is an orphan until that block is announced.

What is live is counted in `references`; `rooted` leaves out what lies behind a hole; the rest gets
its name here and enters the `LiveSet`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import msgspec

from agents.adapters.protocol import (
    Cleared,
    EngineEvent,
    EngineHash,
    EngineUnfit,
    LossReason,
    Lost,
    Removed,
    Stored,
)
from agents.live import LiveSet
from agents.orphans import Orphans
from agents.references import References
from agents.rooted import Rooted
from proto.hashing import CHAIN_START, BlockHasher, ChainPoint, Scope
from proto.kv import Tier
from proto.transfers import Chain

GHOSTS_MAX = 65_536
"""Names remembered of blocks that are not live."""
ORPHANS_MAX = 8_192
"""Blocks that wait, with their tokens, for a parent."""
SCOPES_MAX = 1_024
"""Tenants and adapters whose hashers are kept at hand."""


class BlockSizeMismatch(EngineUnfit):
    """An engine cuts prompts into other blocks than it said: nothing it caches can be matched."""

    def __init__(self, said_tokens: int, seen_tokens: int) -> None:
        super().__init__(
            f"the engine said that its blocks hold {said_tokens} tokens, and announces blocks of "
            f"{seen_tokens}: no prefix could ever be matched"
        )


class _Known(msgspec.Struct, frozen=True):
    """A block that can be named, live or not."""

    name: int
    point: ChainPoint
    scope: Scope
    parent: EngineHash | None


class Translator:
    """One engine's events, applied to a `LiveSet`.

    `total_blocks` is the capacity of the engine's GPU tier, None if it is not known.
    """

    def __init__(
        self,
        live: LiveSet,
        secret: bytes,
        model: str,
        block_tokens: int,
        total_blocks: int | None = None,
    ) -> None:
        self._live = live
        self._model = model
        self._block_tokens = block_tokens
        self._references = {
            tier: References(total_blocks if tier is Tier.GPU else None) for tier in Tier
        }
        self._rooted = Rooted()
        self._hasher = lru_cache(SCOPES_MAX)(lambda scope: BlockHasher(secret, scope, block_tokens))
        self._known: dict[EngineHash, _Known] = {}
        self._by_name: dict[int, EngineHash] | None = None
        """Kept once somebody has asked."""
        self._ghosts: dict[EngineHash, None] = {}
        """Known but not live; the first of them is forgotten first."""
        self._orphans = Orphans(ORPHANS_MAX)

    def block_of(self, name: int) -> EngineHash | None:
        """A live block of this name, in the engine's words."""
        if self._by_name is None:  # most agents are never asked
            self._by_name = {known.name: block for block, known in self._known.items()}
        block = self._by_name.get(name)
        return block if block is not None and block in self._rooted else None

    def chains_of(self, blocks: Iterable[EngineHash]) -> list[Chain]:
        """The prefixes that end in these blocks, in the fleet's words; what is not live is left
        out."""
        told: set[EngineHash] = set()
        return [self._chain(block, told) for block in blocks if block in self._rooted]

    def _chain(self, tail: EngineHash, told: set[EngineHash]) -> Chain:
        length = new = 0
        root = self._known[tail].name
        block: EngineHash | None = tail
        while block is not None:
            known = self._known[block]
            new += block not in told
            told.add(block)
            root, block = known.name, known.parent
            length += 1
        return Chain(self._known[tail].name, length, new, root)

    @property
    def orphans(self) -> int:
        """Blocks that cannot be named before their parent is announced."""
        return len(self._orphans)

    def apply(self, event: EngineEvent) -> None:
        """Raises `BlockSizeMismatch`, and then has changed nothing."""
        match event:
            case Stored():
                self._store(event)
            case Removed():
                for block in event.hashes:
                    if self._references[event.tier].remove(block):
                        self._gone(block, event.tier)
            case Cleared() | Lost(reason=LossReason.RESTART):
                self._forget_live()
                self._orphans.clear()
                self._known.clear()
                self._by_name = None
                self._ghosts.clear()
            case Lost():
                self._forget_live()
                # Of those that may still be there, the beginnings of chains are worth most.
                self._ghosts |= dict.fromkeys(reversed(self._known))
        self._forget_old_ghosts()

    # --- what is live

    def _store(self, event: Stored) -> None:
        if event.block_tokens != self._block_tokens:
            if event.tier is Tier.GPU:
                raise BlockSizeMismatch(self._block_tokens, event.block_tokens)
            return  # slower tiers may keep several blocks as one, which a name cannot say
        if event.tokens and not all(block in self._known for block in event.hashes):
            self._learn(event)
        for block in event.hashes:
            self._enter(block, event.tier, copy=not event.reused)
        if event.tier is Tier.GPU:
            self._confirm_ancestors(event.parent)

    def _enter(self, block: EngineHash, tier: Tier, *, copy: bool) -> None:
        """The block is live; `copy` if there is one more of it."""
        references = self._references[tier]
        was_here = block in references
        displaced = references.add(block) if copy else references.confirm(block)
        known = None if was_here else self._known.get(block)
        if known and block in self._rooted:
            self._live.add(known.name, tier)
        if displaced is not None:
            self._gone(displaced, tier)  # before others are rooted, as it may follow them
        if known:
            self._ghosts.pop(block, None)
            self._root(block, known)

    def _confirm_ancestors(self, block: EngineHash | None) -> None:
        """An engine stores a block only while it holds all that comes before it in the chain.

        So those blocks are live, should a loss have made us think otherwise.
        """
        references = self._references[Tier.GPU]
        while block is not None and block not in references and (known := self._known.get(block)):
            self._enter(block, Tier.GPU, copy=False)
            block = known.parent

    def _gone(self, block: EngineHash, tier: Tier) -> None:
        """The block has no reference left in this tier."""
        known = self._known.get(block)
        if known is None:
            return
        was_rooted = block in self._rooted
        if not self._tiers_of(block):
            self._ghosts[block] = None
            for each in self._rooted.discard(block, known.parent):
                for where in self._tiers_of(each):
                    self._live.discard(self._known[each].name, where)
        if was_rooted:
            self._live.discard(known.name, tier)

    def _root(self, block: EngineHash, known: _Known) -> None:
        """The block is live: it may be rooted now, with what follows it, if it was not before."""
        for each in self._rooted.add(block, known.parent):
            for where in self._tiers_of(each):
                self._live.add(self._known[each].name, where)

    def _tiers_of(self, block: EngineHash) -> list[Tier]:
        """Where the block is live."""
        return [tier for tier, references in self._references.items() if block in references]

    def _forget_live(self) -> None:
        for references in self._references.values():
            references.clear()
        self._rooted.clear()
        self._live.clear()

    # --- what is known

    def _learn(self, event: Stored) -> None:
        """Name a run and what waited for it, or keep it until its parent can be named."""
        unnamed = [event]
        while unnamed:
            run = unnamed.pop()
            if run.parent is None:
                self._name(run, CHAIN_START, Scope(self._model, run.adapter, run.salt))
            elif parent := self._known.get(run.parent):
                self._name(run, parent.point, parent.scope)
            else:
                self._orphans.keep(run)
                continue
            for block in run.hashes:
                unnamed += self._orphans.children_of(block)

    def _name(self, run: Stored, point: ChainPoint, scope: Scope) -> None:
        parent = run.parent
        for first, end, part_scope in _parts(run, scope):
            tokens = run.tokens[first * self._block_tokens : end * self._block_tokens]
            names, points = self._hasher(part_scope).extend(point, tokens)
            for block, name, after in zip(
                run.hashes[first:end], names.tolist(), points, strict=True
            ):
                self._remember(block, _Known(name, after, part_scope, parent))
                parent, point = block, after

    def _remember(self, block: EngineHash, known: _Known) -> None:
        if block in self._known:
            return
        self._known[block] = known
        if self._by_name is not None:
            self._by_name[known.name] = block
        if self._tiers_of(block):
            self._root(block, known)
        else:
            self._ghosts[block] = None

    def _forget_old_ghosts(self) -> None:
        while len(self._ghosts) > GHOSTS_MAX:
            oldest = next(iter(self._ghosts))
            del self._ghosts[oldest]
            name = self._known.pop(oldest).name
            if self._by_name is not None and self._by_name.get(name) == oldest:
                del self._by_name[name]


def _parts(run: Stored, scope: Scope) -> Iterator[tuple[int, int, Scope]]:
    """Cut a run where its scope changes: images belong to every block from theirs on."""
    first = 0
    for index, keys in enumerate(run.media):
        # An image that spans several blocks is a key of each.
        if new := [key for key in keys if key not in scope.media]:
            if index > first:
                yield first, index, scope
            first = index
            scope = Scope(scope.model, scope.adapter, scope.tenant, (*scope.media, *new))
    yield first, len(run.hashes), scope
