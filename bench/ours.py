"""Our side of the index benchmarks: a router's core, fed with KV batches as they travel."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np

from controlplane.router.core import RouterCore
from controlplane.router.ingest import Lane
from controlplane.router.service import SWEEP_ENTRIES
from controlplane.router.settings import RouterSettings
from proto.codec import Producer, Reader
from proto.hashing import Words, pack
from proto.ids import Incarnation, WorkerId
from proto.kv import KvBatch
from proto.workers import WorkerRecord, WorkerState

MODEL = "bench"
BLOCK_TOKENS = 16
PIECE_BLOCKS = 64
"""In one batch, where the size of batches does not matter."""
FIRST_LIFE = Incarnation(1)


def worker_id(number: int) -> WorkerId:
    """Workers are numbers to the peer and names to us."""
    return WorkerId(f"worker-{number}")


def worker_number(worker: WorkerId) -> int:
    """The other way round."""
    return int(worker.rpartition("-")[2])


def worker_record(number: int) -> WorkerRecord:
    """A ready worker."""
    return WorkerRecord(
        worker=worker_id(number),
        incarnation=FIRST_LIFE,
        model=MODEL,
        engine="sim",
        url=f"http://127.0.0.1:{10_000 + number}",
        state=WorkerState.READY,
        block_tokens=BLOCK_TOKENS,
        total_blocks=1_000_000,
    )


class Voice:
    """What the agent of one worker says, sealed and numbered."""

    def __init__(self, number: int) -> None:
        self._worker = worker_id(number)
        self._producer = Producer(self._worker, FIRST_LIFE, lambda: 0.0)

    def stored(self, names: Words) -> bytes:
        return self._producer.seal(KvBatch(self._worker, stored=pack(names)))

    def removed(self, names: Words) -> bytes:
        return self._producer.seal(KvBatch(self._worker, removed=pack(names)))

    def stored_in_pieces(self, names: Words, piece_blocks: int) -> Iterator[bytes]:
        for start in range(0, len(names), piece_blocks):
            yield self.stored(names[start : start + piece_blocks])


class OurIndex:
    """The core with its lanes: bytes in, depths out."""

    def __init__(self, workers: int) -> None:
        self._core = RouterCore(RouterSettings(), "bench", random.Random(0))
        self._reader = Reader[KvBatch](KvBatch)
        self._lanes = {worker_id(number): Lane(worker_id(number)) for number in range(workers)}
        self.voices = [Voice(number) for number in range(workers)]
        for number in range(workers):
            self._core.worker_joined(worker_record(number))

    def apply(self, data: bytes) -> None:
        """From the wire into the index, as a router does it: read, put in order, apply."""
        envelope = self._reader.open(data)
        batch = envelope.body
        lane = self._lanes[batch.worker]
        for ready in lane.offer(envelope.incarnation, envelope.sequence, batch):
            self._core.apply(ready)

    def hold(self, worker: int, names: Words) -> None:
        """The worker holds these blocks."""
        for batch in self.voices[worker].stored_in_pieces(names, PIECE_BLOCKS):
            self.apply(batch)

    def rest(self) -> None:
        """What a router does every second: finish what is put off, as the growth of a table."""
        while self._core.index.sweep(SWEEP_ENTRIES):
            pass

    @staticmethod
    def question(names: Words) -> bytes:
        """A prompt as it comes from the bus."""
        return pack(names)

    def match(self, question: bytes) -> object:
        """Who holds how much of a prompt."""
        return self._core.index.match(np.frombuffer(question, dtype="<u8"))

    def depths(self, names: Words) -> dict[int, int]:
        """`match`, for comparison: leading blocks held, by the worker's number."""
        index = self._core.index
        depths = index.by_worker(index.match(names))
        return {worker_number(worker): depth for worker, depth in depths.items()}
