"""What the agents of the benchmark say must be true, or routers would mend instead of work."""

from __future__ import annotations

import numpy as np
import pytest

from bench.agents import Agent
from bench.fleet import Fleet
from bench.match import names_at_random
from proto.codec import Producer, Reader
from proto.hashing import Words, digest, unpack
from proto.ids import Incarnation
from proto.kv import KvBatch, KvSnapshotChunk, KvSnapshotRequest
from proto.load import LoadReport
from proto.subjects import Subjects
from proto.wire.ports import Message

SUBJECTS = Subjects("test")


def chains(count: int) -> list[Words]:
    rng = np.random.default_rng(0)
    return [names_at_random(4, rng) for _ in range(count)]


@pytest.mark.anyio
async def test_batches_reports_and_snapshots_agree() -> None:
    agent, (first, second, third) = Agent(7, SUBJECTS, lambda: 1.0), chains(3)
    agent.hold(first)
    agent.hold(second)
    batch = Reader[KvBatch](KvBatch).open(agent.turn_over(third))
    assert (batch.sequence, batch.time_s) == (1, 1.0)
    assert unpack(batch.body.stored) == third.tolist()
    assert unpack(batch.body.removed) == first.tolist()
    assert [agent.holds(each) for each in (first, second, third)] == [False, True, True]
    report = Reader[LoadReport](LoadReport).open(agent.report()).body
    held = [*second.tolist(), *third.tolist()]
    assert (report.kv_sequence, report.live_blocks, report.digest) == (1, 8, digest(held))
    ask = Producer("router", Incarnation(1), lambda: 1.0).seal(KvSnapshotRequest())
    answer = await agent.endpoint.handle(Message("snapshot", ask))
    chunk = Reader[KvSnapshotChunk](KvSnapshotChunk).open(answer).body
    assert unpack(chunk.names) == held
    assert (chunk.sequence, chunk.last, agent.snapshots) == (1, True, 1)


def test_a_fleet_never_says_that_a_worker_holds_a_chain_twice() -> None:
    fleet = Fleet(SUBJECTS, np.random.default_rng(0))
    live = {agent.record.worker: set[int]() for agent in fleet.agents}
    reader = Reader[KvBatch](KvBatch)
    for number in range(3_000):
        subject, data = fleet.batch(number)
        batch = reader.open(data).body
        stored = set(unpack(batch.stored))
        assert subject == SUBJECTS.kv(batch.worker)
        assert not stored & live[batch.worker]
        live[batch.worker] |= stored
