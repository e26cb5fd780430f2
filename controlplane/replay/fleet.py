"""One worker in virtual time: a simulated engine, and what its agent would tell of it.

The trace's canonical names serve as the engine's own block hashes, so nothing need be translated;
the simulated cache never evicts a block before those that follow it, so all that it holds is told.
Answers hold blocks while they are written and leave none behind: nobody asks for their tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from controlplane.router.ingest import Snapshot
from proto.hashing import digest, pack
from proto.ids import WorkerId
from proto.kv import SNAPSHOT_CHUNK_BLOCKS, KvBatch, KvSnapshotChunk, Tier
from proto.load import LoadReport, StepSums
from proto.workers import Hardware, KvTransfer, Role, WorkerRecord, WorkerState
from workers.sim.cache import CacheEvent, Cleared, Stored
from workers.sim.engine import Engine
from workers.sim.speculation import Speculation
from workers.sim.timing import Profile

INCARNATION = 1
MODEL = "replay"


class SimulatedWorker:
    """An engine and its agent. Drive `engine` as its module says, then ask here for the words."""

    def __init__(
        self,
        worker: WorkerId,
        profile: Profile,
        block_tokens: int,
        blocks: int | None,
        speculation: Speculation | None = None,
        role: Role = Role.AGGREGATED,
    ) -> None:
        self.worker = worker
        self.role = role
        self.copies = False
        """Whether cached blocks may go to other engines, and come from there."""
        self.engine = Engine(
            profile, block_tokens=block_tokens, blocks=blocks, speculation=speculation
        )
        self.wake_s: float | None = None
        """When the engine next has something to show; kept by the driver."""
        self.busy_ms = 0.0
        self.steps = 0
        """That the engine has made, as of the last report; so are the next."""
        self.decoded = 0
        """Sequences, summed over all steps."""
        self.live: set[int] = set()
        """The names its agent knows to be cached."""
        self.kv_sequence = 0
        """Of the agent's last batch."""
        self._digest = 0

    @property
    def block_bytes(self) -> int:
        """Of one block's KV."""
        return self.engine.profile.kv_token_bytes * self.engine.block_tokens

    def record(self, *, kv_events: bool) -> WorkerRecord:
        """As its agent would register it."""
        profile = self.engine.profile
        return WorkerRecord(
            worker=self.worker,
            incarnation=INCARNATION,
            model=MODEL,
            engine="sim",
            url=f"sim://{self.worker}",
            state=WorkerState.READY,
            block_tokens=self.engine.block_tokens,
            total_blocks=self.engine.load().total_blocks,
            max_batched_tokens=profile.max_num_batched_tokens,
            max_running=profile.max_num_seqs,
            kv_events=kv_events,
            hardware=Hardware(
                profile=profile.name,
                accelerators=profile.accelerators,
                topology={"rack": "replay"},
            ),
            role=self.role,
            transfer=KvTransfer(
                connector="sim",
                layout=profile.name,
                block_bytes=self.block_bytes,
                copies=self.copies,
            ),
        )

    def hear(self, events: Sequence[CacheEvent]) -> KvBatch:
        """The agent is told of its cache; returns its next batch, number `kv_sequence`."""
        stored, removed = net_changes(events)
        self.live.difference_update(removed)
        self.live.update(stored)
        self._digest ^= digest((*stored, *removed))
        self.kv_sequence += 1
        return KvBatch(self.worker, stored=_pack(stored), removed=_pack(removed))

    def snapshot(self) -> Snapshot:
        """The agent's whole set as of its last batch."""
        names, snapshot = list(self.live), Snapshot(self.worker)
        starts = range(0, max(1, len(names)), SNAPSHOT_CHUNK_BLOCKS)
        for chunk, start in enumerate(starts):
            snapshot.add(
                KvSnapshotChunk(
                    worker=self.worker,
                    incarnation=INCARNATION,
                    sequence=self.kv_sequence,
                    snapshot=1,
                    chunk=chunk,
                    last=start == starts[-1],
                    tier=Tier.GPU,
                    names=_pack(names[start : start + SNAPSHOT_CHUNK_BLOCKS]),
                )
            )
        return snapshot

    def report(self) -> LoadReport:
        """What the agent would push now; the cache is told of as of the last batch."""
        load = self.engine.load()
        return LoadReport(
            worker=self.worker,
            running=load.running,
            waiting=load.waiting,
            queued_prefill_tokens=load.queued_prefill_tokens,
            decode_kv_tokens=load.decode_kv_tokens,
            used_blocks=load.used_blocks,
            total_blocks=load.total_blocks,
            kv_sequence=self.kv_sequence,
            live_blocks=len(self.live),
            digest=self._digest,
            preemptions=load.preemptions,
            cached_tokens=load.cached_tokens,
            queried_tokens=load.queried_tokens,
            steps=self._take_steps(),
        )

    def _take_steps(self) -> StepSums:
        sums = self.engine.take_step_sums()
        self.busy_ms += sums.prefill_ms + sums.decode_ms
        self.steps += sums.steps
        self.decoded += sums.decode_batch
        return StepSums(
            steps=sums.steps,
            prefill_tokens=sums.prefill_tokens,
            prefill_ms=sums.prefill_ms,
            decode_batch=sums.decode_batch,
            decode_kv_tokens=sums.decode_kv_tokens,
            decode_ms=sums.decode_ms,
            accepted_drafts=sums.accepted_drafts,
            verifications=sums.verifications,
            drafted_tokens=sums.drafted_tokens,
        )


def net_changes(events: Sequence[CacheEvent]) -> tuple[Collection[int], Collection[int]]:
    """Names stored and names removed by these events in order; what came and went again is in
    neither."""
    stored: dict[int, None] = {}
    removed: dict[int, None] = {}
    for event in events:
        assert not isinstance(event, Cleared), "nobody resets an engine in a replay"
        arrived, left = (stored, removed) if isinstance(event, Stored) else (removed, stored)
        for name in event.names:
            if name in left:
                del left[name]
            else:
                arrived[name] = None
    return stored.keys(), removed.keys()


def _pack(names: Collection[int]) -> bytes:
    return pack(np.fromiter(names, dtype=np.uint64, count=len(names)))
