"""The translator against a naive engine with physical blocks, under random schedules.

The engine's prompts are paths in a small tree, so that they share prefixes and meet again. It
copies blocks (as vLLM does when two requests compute the same at once), evicts any of them, resets,
and may announce hits again. What the agent must hold is read off the engine's physical blocks: each
that is cached with all before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import product

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agents.adapters.protocol import Cleared, EngineEvent, LossReason, Lost, Removed, Stored
from agents.live import LiveSet
from agents.translator import Translator
from proto.hashing import BlockHasher, Scope, digest
from proto.kv import Tier

SECRET = b"a secret of tests"
TOTAL_BLOCKS = 12
DEPTH_MAX = 5

Path = tuple[int, ...]
"""A block and all before it, each by its one token."""

paths = st.lists(st.integers(0, 1), min_size=1, max_size=DEPTH_MAX).map(tuple)
_hasher = BlockHasher(SECRET, Scope("tiny"), block_tokens=1)


def name_of(path: Path) -> int:
    return int(_hasher.names(path)[-1])


def hash_of(path: Path) -> bytes:
    return bytes(path)


PREFIXES = {
    name_of(path): {name_of(path[: k + 1]) for k in range(depth)}
    for depth in range(1, DEPTH_MAX + 1)
    for path in product((0, 1), repeat=depth)
}
"""By name: the names of the block and of all before it."""


def closed(paths: Collection[Path]) -> set[Path]:
    """Those that come with their whole prefix."""
    return {path for path in paths if all(path[: k + 1] in paths for k in range(len(path)))}


def run_of(path: Path, first: int, end: int) -> Stored:
    return Stored(
        hashes=tuple(hash_of(path[: k + 1]) for k in range(first, end)),
        parent=hash_of(path[:first]) if first else None,
        tokens=path[first:end],
        block_tokens=1,
    )


@dataclass
class Engine:
    """`slots` are the physical blocks: what each holds, in no order."""

    slots: list[Path] = field(default_factory=list)

    @property
    def live(self) -> set[Path]:
        return set(self.slots)

    def hit(self, path: Path) -> int:
        """How many leading blocks of the prompt are cached."""
        live = self.live
        return next((k for k in range(len(path)) if path[: k + 1] not in live), len(path))

    def compute(self, path: Path, from_block: int, victims: list[int]) -> list[EngineEvent]:
        """Run a prompt, finding its first blocks in the cache and storing copies of the rest."""
        first = min(from_block, self.hit(path))
        events: list[EngineEvent] = []
        held = {path[: k + 1] for k in range(first)}
        while len(self.slots) + len(path) - first > TOTAL_BLOCKS:
            free = [path for path in self.slots if path not in held]
            events += self.evict(free[victims.pop() % len(free)] if victims else free[0])
        self.slots += [path[: k + 1] for k in range(first, len(path))]
        if first < len(path):
            events.append(run_of(path, first, len(path)))
        return events

    def evict(self, path: Path) -> list[EngineEvent]:
        self.slots.remove(path)
        return [Removed((hash_of(path),))]

    def clear(self) -> list[EngineEvent]:
        self.slots.clear()
        return [Cleared()]

    def announce(self, path: Path) -> list[EngineEvent]:
        """Say again what a request found in the cache."""
        hit = self.hit(path)
        return [run_of(path, 0, hit)] if hit else []


class Faithful(RuleBasedStateMachine):
    """Every event is heard, and none is said twice: the agent's set is the engine's."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine()
        self.live = LiveSet()
        self.translator = Translator(self.live, SECRET, "tiny", 1, TOTAL_BLOCKS)
        self.reader: set[int] = set()

    def hear(self, events: list[EngineEvent]) -> None:
        for event in events:
            self.translator.apply(event)

    @rule(path=paths, from_block=st.integers(0, 5), victims=st.lists(st.integers(0, 20)))
    def compute(self, path: Path, from_block: int, victims: list[int]) -> None:
        self.hear(self.engine.compute(path, from_block, victims))

    @rule(which=st.integers(0, TOTAL_BLOCKS))
    def evict(self, which: int) -> None:
        if self.engine.slots:
            self.hear(self.engine.evict(self.engine.slots[which % len(self.engine.slots)]))

    @rule()
    def clear(self) -> None:
        self.hear(self.engine.clear())

    @rule()
    def publish(self) -> None:
        """A reader that applies every change holds the same set, and whole prefixes on the way."""
        for change in self.live.take():
            removed, stored = change.removed.tolist(), change.stored.tolist()
            assert not set(removed) & set(stored)
            if change.cleared:
                self.reader.clear()
            for name in removed:
                self.reader.remove(name)
                assert all(PREFIXES[held] <= self.reader for held in self.reader)
            for name in stored:
                self.reader.add(name)
                assert PREFIXES[name] <= self.reader
        assert self.reader == self.held

    @property
    def held(self) -> set[int]:
        return set(dict(self.live.names())[Tier.GPU].tolist())

    @invariant()
    def agrees(self) -> None:
        assert self.held == {name_of(path) for path in closed(self.engine.live)}

    @invariant()
    def counts(self) -> None:
        assert self.live.blocks == len(self.held)
        assert self.live.digest == digest(list(self.held))


class Lossy(Faithful):
    """The agent misses events, and may come late: it never claims what the engine does not hold,
    and holds all that it heard since, as soon as it knows the chain."""

    def __init__(self) -> None:
        super().__init__()
        self.listening = False  # the agent comes late
        self.heard: Counter[Path] = Counter()
        self.known: set[Path] = set()
        self.doubted: set[Path] = set()

    def hear(self, events: list[EngineEvent]) -> None:
        if not self.listening:
            return
        super().hear(events)
        for event in events:
            self.note(event)

    def note(self, event: EngineEvent) -> None:
        match event:
            case Stored():
                paths = [tuple(hashed) for hashed in event.hashes if isinstance(hashed, bytes)]
                self.heard.update(paths)
                self.known.update(paths)
            case Removed():
                (path,) = (tuple(hashed) for hashed in event.hashes if isinstance(hashed, bytes))
                if self.heard[path]:
                    self.heard[path] -= 1
                    self.doubted.add(path)  # it may have been a copy that was not heard of
            case Cleared():
                self.heard.clear()
                self.known.clear()
                self.doubted.clear()

    @rule()
    def come(self) -> None:
        self.listening = True

    @rule(missed=st.lists(st.tuples(paths, st.integers(0, 5)), max_size=3))
    def lose(self, missed: list[tuple[Path, int]]) -> None:
        for path, from_block in missed:
            self.engine.compute(path, from_block, [])
        if self.listening:
            self.translator.apply(Lost(LossReason.GAP))
            self.heard.clear()
            self.doubted.clear()

    @rule()
    def restart(self) -> None:
        self.engine.clear()
        self.hear([Lost(LossReason.RESTART), Cleared()])

    @invariant()
    def agrees(self) -> None:
        held, heard = self.held, +self.heard
        assert held <= {name_of(path) for path in closed(self.engine.live)}
        certain = closed((self.known & heard.keys()) - self.doubted)
        assert held >= {name_of(path) for path in certain}


class Chatty(Faithful):
    """Hits are announced again, unmarked: no live block is dropped before the engine's size says
    that some block must be, and what is wrong stays bounded by that size."""

    def __init__(self) -> None:
        super().__init__()
        self.announced: Counter[Path] = Counter()
        self.forced = False

    def hear(self, events: list[EngineEvent]) -> None:
        for event in events:
            super().hear([event])
            self.forced = self.forced or len(self.upper_bound(event)) > TOTAL_BLOCKS

    def upper_bound(self, event: EngineEvent) -> set[Path]:
        """Everything that was announced more often than removed."""
        match event:
            case Stored():
                self.announced.update(tuple(h) for h in event.hashes if isinstance(h, bytes))
            case Removed():
                self.announced.subtract(tuple(h) for h in event.hashes if isinstance(h, bytes))
            case Cleared():
                self.announced.clear()
                self.forced = False
        return set(+self.announced)

    @rule(path=paths)
    def announce(self, path: Path) -> None:
        self.hear(self.engine.announce(path))

    @invariant()
    def agrees(self) -> None:
        assert self.live.blocks <= TOTAL_BLOCKS
        if not self.forced:
            assert self.held == {name_of(path) for path in closed(+self.announced)}
            assert self.held >= {name_of(path) for path in closed(self.engine.live)}


_schedules = settings(max_examples=120, stateful_step_count=40, deadline=None)
Faithful.TestCase.settings = Lossy.TestCase.settings = Chatty.TestCase.settings = _schedules
TestFaithful, TestLossy, TestChatty = Faithful.TestCase, Lossy.TestCase, Chatty.TestCase
