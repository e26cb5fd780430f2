from __future__ import annotations

import anyio
import msgspec
import pytest
from prometheus_client import CollectorRegistry

from agents import snapshot
from agents.live import LiveSet
from agents.metrics import AgentMetrics
from agents.publisher import Outbox
from agents.snapshot import Snapshots
from proto.codec import Producer, Reader
from proto.hashing import unpack
from proto.ids import Incarnation, WorkerId
from proto.kv import KvSnapshotChunk, KvSnapshotRequest, Tier
from proto.subjects import Subjects
from proto.wire.errors import RequestRefused
from proto.wire.memory.bus import MemoryHub
from proto.wire.ports import Message

pytestmark = pytest.mark.anyio

WORKER, INCARNATION = WorkerId("w"), Incarnation(7)
SUBJECTS = Subjects("test")


class Asked:
    """An agent that is asked for snapshots; the test moves its clock."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.live = LiveSet()
        metrics = AgentMetrics(CollectorRegistry())
        bus = MemoryHub().connect("agent")
        identity = (SUBJECTS, WORKER, INCARNATION)
        self.outbox = Outbox(bus, *identity, self.live, metrics, lambda: self.now_s)
        snapshots = Snapshots(self.outbox, *identity, metrics, lambda: self.now_s)
        self._handle = snapshots.endpoint.handle
        self._producer = Producer("reader", Incarnation(1), lambda: self.now_s)

    def store(self, *names: int, tier: Tier = Tier.GPU) -> None:
        for name in names:
            self.live.add(name, tier)

    async def ask(self, number: int = 0, chunk: int = 0) -> KvSnapshotChunk:
        request = self._producer.seal(KvSnapshotRequest(number, chunk))
        return await self.send(request)

    async def send(self, request: bytes) -> KvSnapshotChunk:
        reply = await self._handle(Message(SUBJECTS.snapshot(WORKER), request))
        return Reader[KvSnapshotChunk](KvSnapshotChunk).open(reply).body


@pytest.fixture
async def agent() -> Asked:
    return Asked()


async def test_an_empty_worker_has_a_snapshot_too(agent: Asked) -> None:
    chunk = await agent.ask()
    assert (chunk.worker, chunk.incarnation, chunk.sequence) == (WORKER, INCARNATION, 0)
    assert (chunk.chunk, chunk.last, chunk.tier, chunk.names) == (0, True, Tier.GPU, b"")
    assert chunk.snapshot > 0


async def test_pending_changes_are_sent_before_and_are_in_it(agent: Asked) -> None:
    agent.store(1, 2)
    chunk = await agent.ask()
    assert (chunk.sequence, set(unpack(chunk.names))) == (1, {1, 2})
    assert agent.live.pending == 0


async def test_later_chunks_are_of_the_same_moment(
    agent: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "SNAPSHOT_CHUNK_BLOCKS", 2)
    agent.store(1, 2, 3, 4, 5)
    chunks = [await agent.ask()]
    agent.store(6)
    await agent.ask()
    while not chunks[-1].last:
        chunks.append(await agent.ask(chunks[0].snapshot, len(chunks)))
    assert [chunk.chunk for chunk in chunks] == [0, 1, 2]
    assert {chunk.sequence for chunk in chunks} == {1}
    assert sorted(name for chunk in chunks for name in unpack(chunk.names)) == [1, 2, 3, 4, 5]


async def test_every_tier_has_its_chunks(agent: Asked) -> None:
    agent.store(1)
    agent.store(2, tier=Tier.HOST)
    first = await agent.ask()
    second = await agent.ask(first.snapshot, 1)
    assert [(c.tier, unpack(c.names), c.last) for c in (first, second)] == [
        (Tier.GPU, [1], False),
        (Tier.HOST, [2], True),
    ]


async def test_few_snapshots_are_kept(agent: Asked) -> None:
    numbers = [(await agent.ask()).snapshot for _ in range(snapshot.KEPT + 1)]
    assert len(set(numbers)) == len(numbers)
    assert (await agent.ask(numbers[-1])).snapshot == numbers[-1]
    with pytest.raises(RequestRefused) as refused:
        await agent.ask(numbers[0])
    assert refused.value.code == 404


async def test_a_dozen_readers_in_step_all_come_to_the_end(
    agent: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As routers do that start anew at once."""
    monkeypatch.setattr(snapshot, "SNAPSHOT_CHUNK_BLOCKS", 2)
    agent.store(1, 2, 3, 4, 5)
    firsts = [await agent.ask() for _ in range(12)]
    for chunk in (1, 2):
        for first in firsts:
            last = (await agent.ask(first.snapshot, chunk)).last
    assert last


async def test_a_snapshot_expires(agent: Asked) -> None:
    number = (await agent.ask()).snapshot
    agent.now_s += snapshot.KEPT_S
    with pytest.raises(RequestRefused) as refused:
        await agent.ask(number)
    assert refused.value.code == 404


@pytest.mark.parametrize("chunk", [-1, 1])
async def test_a_chunk_that_is_not_there_is_refused(agent: Asked, chunk: int) -> None:
    number = (await agent.ask()).snapshot
    with pytest.raises(RequestRefused) as refused:
        await agent.ask(number, chunk)
    assert refused.value.code == 400


async def test_an_unreadable_request_is_refused(agent: Asked) -> None:
    with pytest.raises(RequestRefused) as refused:
        await agent.send(msgspec.msgpack.encode("snapshot, please"))
    assert refused.value.code == 400


async def test_a_snapshot_waits_for_what_is_being_sent(agent: Asked) -> None:
    """Two at once: each is whole, and their numbers agree with their content."""
    agent.store(1)
    seen: list[KvSnapshotChunk] = []

    async def ask() -> None:
        seen.append(await agent.ask())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        tasks.start_soon(ask)
    assert [(chunk.sequence, unpack(chunk.names)) for chunk in seen] == [(1, [1]), (1, [1])]
