"""Agents of workers that do not exist: registered, with blocks, and heard on the bus.

One process plays all of them on one connection. What they hold is kept as chains, oldest first, so
that saying it costs the benchmark little.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import numpy as np

from bench.ours import FIRST_LIFE, worker_record
from proto.codec import Producer, Reader
from proto.hashing import Words, pack
from proto.kv import KvBatch, KvSnapshotChunk, KvSnapshotRequest, Tier
from proto.load import LoadReport, StepSums
from proto.subjects import Keys, Subjects
from proto.wire.ports import Bus, Endpoint, Message, ServiceInfo, Store

LEASE_S = 60
REPORT_EVERY_S = 1.0
SERVICE = ServiceInfo("bench-agents", "1.0.0")
NO_STEPS = StepSums()


class Agent:
    """One worker's agent: what it holds, and how it says so."""

    def __init__(self, number: int, subjects: Subjects, clock: Callable[[], float]) -> None:
        self.record = worker_record(number)
        self.kv_subject = subjects.kv(self.record.worker)
        self.load_subject = subjects.load(self.record.worker)
        self.snapshots = 0
        """How many times a router has asked for everything."""
        self._chains: deque[Words] = deque()
        self._firsts: set[int] = set()
        self._blocks = 0
        self._digest = 0
        self._kv, self._load, self._replies = (
            Producer(self.record.worker, FIRST_LIFE, clock) for _ in range(3)
        )
        self._reader = Reader[KvSnapshotRequest](KvSnapshotRequest)
        self.endpoint = Endpoint(
            f"snapshot-{number}", subjects.snapshot(self.record.worker), self._snapshot, group=None
        )

    def hold(self, names: Words) -> None:
        """This chain, not held yet, is in the cache, too; nobody is told."""
        self._chains.append(names)
        self._firsts.add(int(names[0]))
        self._blocks += len(names)
        self._digest ^= int(np.bitwise_xor.reduce(names))

    def holds(self, names: Words) -> bool:
        """Whether this chain is in the cache."""
        return int(names[0]) in self._firsts

    def turn_over(self, names: Words) -> bytes:
        """This chain, not held yet, comes in and the oldest goes: the batch that says so."""
        removed = self._chains.popleft()
        self._firsts.discard(int(removed[0]))
        self._blocks -= len(removed)
        self._digest ^= int(np.bitwise_xor.reduce(removed))
        self.hold(names)
        return self._kv.seal(KvBatch(self.record.worker, pack(names), pack(removed)))

    def report(self, steps: StepSums = NO_STEPS) -> bytes:
        """An idle engine's load; the count and the digest are true."""
        return self._load.seal(
            LoadReport(
                worker=self.record.worker,
                running=0,
                waiting=0,
                queued_prefill_tokens=0,
                decode_kv_tokens=0,
                used_blocks=self._blocks,
                total_blocks=self.record.total_blocks,
                kv_sequence=self._kv.sequence,
                live_blocks=self._blocks,
                digest=self._digest,
                steps=steps,
            )
        )

    async def _snapshot(self, message: Message) -> bytes:
        self._reader.open(message.data)
        self.snapshots += 1
        names = np.concatenate(self._chains) if self._chains else np.empty(0, dtype=np.uint64)
        return self._replies.seal(
            KvSnapshotChunk(
                worker=self.record.worker,
                incarnation=FIRST_LIFE,
                sequence=self._kv.sequence,
                snapshot=1,
                chunk=0,
                last=True,
                tier=Tier.GPU,
                names=pack(names),
            )
        )


@asynccontextmanager
async def serving(
    agents: Sequence[Agent], bus: Bus, store: Store, keys: Keys
) -> AsyncIterator[None]:
    """They are registered and give snapshots while the context is open."""
    endpoints = [agent.endpoint for agent in agents]
    async with bus.serve(SERVICE, endpoints), anyio.create_task_group() as tasks:
        lease = await store.grant(LEASE_S)
        tasks.start_soon(store.keep_alive, lease)
        for agent in agents:
            record = agent.record.model_dump_json().encode()
            await store.put(keys.worker(agent.record.worker), record, lease=lease)
        yield
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await store.revoke(lease)


@asynccontextmanager
async def reporting(
    agents: Sequence[Agent], bus: Bus, token_s: float, rng: np.random.Generator
) -> AsyncIterator[None]:
    """Each reports its load every second, with steps of an engine that needs `token_s` to prefill
    a token, while the context is open."""

    async def report() -> None:
        while True:
            for agent in agents:
                await bus.publish(agent.load_subject, agent.report(_steps(token_s, rng)))
                await anyio.sleep(REPORT_EVERY_S / len(agents))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(report)
        yield
        tasks.cancel_scope.cancel()


def _steps(token_s: float, rng: np.random.Generator) -> StepSums:
    """Some interval of an engine: each step takes 5 ms, and a millisecond per 10 streams more."""
    steps, batch = (int(rng.integers(10, 50)) for _ in range(2))
    tokens = int(rng.integers(1_000, 20_000))
    return StepSums(
        steps=steps,
        prefill_tokens=tokens,
        prefill_ms=1e3 * token_s * tokens,
        decode_batch=steps * batch,
        decode_kv_tokens=steps * batch * int(rng.integers(500, 5_000)),
        decode_ms=steps * (5 + batch / 10),
    )
