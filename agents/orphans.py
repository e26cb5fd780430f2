"""Runs of blocks whose parent was never announced: kept, within a bound, until it is."""

from __future__ import annotations

from agents.adapters.protocol import EngineHash, Stored


class Orphans:
    """At most `blocks_max` blocks with their tokens; the runs that came first go first."""

    def __init__(self, blocks_max: int) -> None:
        self._blocks_max = blocks_max
        self._runs: dict[tuple[EngineHash, ...], Stored] = {}
        self._by_parent: dict[EngineHash, list[tuple[EngineHash, ...]]] = {}
        self._blocks = 0

    def __len__(self) -> int:
        """Blocks, not runs."""
        return self._blocks

    def keep(self, run: Stored) -> None:
        """Keep a run until its parent is known; the same run is kept once."""
        assert run.parent is not None
        if run.hashes in self._runs:
            return
        self._runs[run.hashes] = run
        self._by_parent.setdefault(run.parent, []).append(run.hashes)
        self._blocks += len(run.hashes)
        while self._blocks > self._blocks_max:
            self._release(next(iter(self._runs)))

    def children_of(self, block: EngineHash) -> list[Stored]:
        """The runs that waited for this block; they are not kept any longer."""
        return [self._release(hashes) for hashes in list(self._by_parent.get(block, ()))]

    def clear(self) -> None:
        self._runs.clear()
        self._by_parent.clear()
        self._blocks = 0

    def _release(self, hashes: tuple[EngineHash, ...]) -> Stored:
        run = self._runs.pop(hashes)
        assert run.parent is not None
        siblings = self._by_parent[run.parent]
        siblings.remove(hashes)
        if not siblings:
            del self._by_parent[run.parent]
        self._blocks -= len(hashes)
        return run
