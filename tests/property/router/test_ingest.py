"""Whatever happens to an agent's words on the way, a lane that needs nothing is exact.

The naive model is the agent itself: it remembers its set after every batch it has numbered. Words
may be lost, doubled, delayed and reordered, agents restart and number from 1 again, snapshots come
in chunks that get lost or are overtaken, and are installed while more is heard.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from controlplane.router.core import RouterCore
from controlplane.router.ingest import BadSnapshot, Held, Lane, Snapshot
from controlplane.router.settings import RouterSettings
from proto.ids import WorkerId
from proto.kv import KvBatch, KvSnapshotChunk, Tier
from proto.load import LoadReport
from tests.support.numbered_agent import NumberedAgent, Word
from tests.support.router_core import record

WORKER = WorkerId("w")
HELD_BYTES_MAX = 3_000
"""About ten batches, so that the bound is met."""

name_sets = st.sets(st.integers(1, 60), max_size=8)


class IngestMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.agent = NumberedAgent(WORKER)
        self.lane = Lane(WORKER, HELD_BYTES_MAX)
        self.core = RouterCore(RouterSettings(), "r", random.Random(0))
        self.core.worker_joined(record(WORKER))
        self.on_the_way: list[Word] = []
        self.reports: list[tuple[int, LoadReport]] = []
        self.answer: list[KvSnapshotChunk] = []
        self.snapshot = Snapshot(WORKER)
        self.pieces: Iterator[KvBatch] | None = None
        self.photos = 0
        self.heard = (0, 0)
        """The latest word of the agent's that has come: incarnation and sequence."""

    @rule(
        tier=st.sampled_from(Tier),
        stored=name_sets,
        removed=name_sets,
        cleared=st.booleans(),
        lost=st.booleans(),
    )
    def agent_changes(
        self, tier: Tier, stored: set[int], removed: set[int], cleared: bool, lost: bool
    ) -> None:
        word = self.agent.change(tier, stored, removed, cleared and bool(removed))
        if not lost:
            self.on_the_way.append(word)

    @rule()
    def agent_restarts(self) -> None:
        self.agent.restart()

    @rule()
    def agent_reports(self) -> None:
        self.reports.append((self.agent.incarnation, self.agent.report()))

    @rule()
    def registry_tells(self) -> None:
        self._apply(self.lane.registered(self.agent.incarnation))

    @precondition(lambda self: self.on_the_way)
    @rule(data=st.data(), again=st.booleans())
    def a_batch_arrives(self, data: st.DataObject, again: bool) -> None:
        which = data.draw(st.integers(0, min(3, len(self.on_the_way) - 1)))
        self._offer(self.on_the_way[which] if again else self.on_the_way.pop(which))

    @precondition(lambda self: self.on_the_way)
    @rule()
    def all_batches_arrive(self) -> None:
        for word in self.on_the_way:
            self._offer(word)
        self.on_the_way.clear()

    @precondition(lambda self: self.reports)
    @rule()
    def a_report_arrives(self) -> None:
        self._check(*self.reports.pop(0))

    @precondition(lambda self: self.lane.needs and self.pieces is None)
    @rule()
    def a_snapshot_is_taken(self) -> None:
        self.photos += 1
        self.answer = self.agent.photograph(self.photos)
        self.snapshot = Snapshot(WORKER)

    @precondition(lambda self: self.answer)
    @rule()
    def all_chunks_arrive(self) -> None:
        while self.answer:
            self.a_chunk_arrives()

    @precondition(lambda self: self.answer)
    @rule()
    def a_chunk_arrives(self) -> None:
        self.snapshot.add(self.answer.pop(0))

    @precondition(lambda self: self.answer)
    @rule()
    def a_chunk_is_lost(self) -> None:
        self.answer.clear()
        self.snapshot = Snapshot(WORKER)
        self._apply(self.lane.make_do())

    @precondition(lambda self: self.snapshot.complete and self.pieces is None and self.lane.needs)
    @rule()
    def installation_begins(self) -> None:
        self.pieces = self.lane.install(self.snapshot)
        self.snapshot = Snapshot(WORKER)
        self._go_on(1)

    @precondition(lambda self: self.pieces is not None)
    @rule(steps=st.integers(1, 4))
    def installation_goes_on(self, steps: int) -> None:
        self._go_on(steps)

    def _go_on(self, steps: int) -> None:
        assert self.pieces is not None
        try:
            for _ in range(steps):
                self.core.apply(next(self.pieces))
        except (StopIteration, BadSnapshot):
            self.pieces = None

    def _offer(self, word: Word) -> None:
        incarnation, sequence, batch = word
        self.heard = max(self.heard, (incarnation, sequence))
        self._apply(self.lane.offer(incarnation, sequence, batch))

    def _check(self, incarnation: int, report: LoadReport) -> None:
        self.heard = max(self.heard, (incarnation, report.kv_sequence))
        self._apply(self.lane.check(report, incarnation, self._believed()))

    def _apply(self, batches: object) -> None:
        assert isinstance(batches, tuple | list)
        for batch in batches:
            self.core.apply(batch)

    def _believed(self) -> Held:
        return self.core.known.held(WORKER)

    @invariant()
    def a_lane_that_needs_nothing_is_exact(self) -> None:
        if self.lane.needs is None and self.lane.incarnation:
            assert (self.lane.incarnation, self.lane.sequence) >= self.heard
            truth = self.agent.past[self.lane.incarnation, self.lane.sequence]
            assert self._believed() == truth

    def teardown(self) -> None:
        """Quiescence: what is on the way arrives, a report tells what is wrong, one repair or two
        mend it: the second is for a snapshot that was taken before the last restart."""
        self._go_on(10_000) if self.pieces is not None else None
        self.all_batches_arrive()
        for _ in range(2):
            self._check(self.agent.incarnation, self.agent.report())
            if self.lane.needs:
                self.a_snapshot_is_taken()
                self.all_chunks_arrive()
                self.pieces = self.lane.install(self.snapshot)
                self._go_on(10_000)
        assert self.lane.needs is None
        assert self._believed() == self.agent.summed_up()
        self.a_lane_that_needs_nothing_is_exact()


TestIngest = IngestMachine.TestCase
TestIngest.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
