"""Who is there and how busy they are: the registry's records and the last load reports. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from controlplane.capacity import Capacities, class_of
from controlplane.planner.estimate import Engine
from proto.ids import WorkerId
from proto.load import LoadReport, StepSums
from proto.scaling import Pool, pool_of
from proto.workers import WorkerRecord, WorkerState

ACCEPT_GAIN = 0.05
"""Weight of a report in the running accept length of a model."""
IDLE = StepSums()
LATELY_S = 30.0


@dataclass
class Worker:
    """One worker, as the registry has it and as it spoke last."""

    record: WorkerRecord
    since_s: float
    """When this life of it was first seen."""
    report: LoadReport | None = None
    heard_s: float = 0.0

    def stale(self, now_s: float, stale_s: float) -> bool:
        """It should have spoken by now, and has not."""
        return now_s - max(self.heard_s, self.since_s) > stale_s


class Fleet:
    """All workers of a cluster."""

    def __init__(self, capacities: Capacities, warm_up_s: float) -> None:
        self.workers: dict[WorkerId, Worker] = {}
        self._capacities = capacities
        self._warm_up_s = warm_up_s
        self._accept: dict[str, float] = {}
        self.computed: Counter[str] = Counter()
        """Prompt tokens that engines have computed so far, by model."""

    def put(self, record: WorkerRecord, now_s: float) -> None:
        """A worker is there, or says something else of itself. Another engine version is another
        class of capacity (HW5), and a new incarnation warms up anew."""
        known = self.workers.get(record.worker)
        if known is not None and known.record.incarnation == record.incarnation:
            known.record = record
        else:
            self.workers[record.worker] = Worker(record, now_s)

    def remove(self, worker: WorkerId) -> None:
        """A worker is gone."""
        self.workers.pop(worker, None)

    def hear(self, report: LoadReport, now_s: float) -> None:
        """What a worker is busy with; learned from once it is warm (AS12), idle ones tell
        nothing (AS7)."""
        worker = self.workers.get(report.worker)
        if worker is None:
            return
        worker.report, worker.heard_s = report, now_s
        self.computed[worker.record.model] += report.steps.prefill_tokens
        warm = now_s - worker.since_s >= self._warm_up_s
        if not warm or report.steps == IDLE or worker.record.state is not WorkerState.READY:
            return
        self._capacities.observe(worker.record, report.steps)
        if report.steps.decode_batch:
            accepted = 1 + report.steps.accepted_drafts / report.steps.decode_batch
            model = worker.record.model
            known = self._accept.get(model, accepted)
            self._accept[model] = known + ACCEPT_GAIN * (accepted - known)

    def accept_length(self, model: str) -> float:
        """Tokens that a step gives a sequence, of late; 1 until it is known (AS6)."""
        return max(1.0, self._accept.get(model, 1.0))

    def models(self) -> set[str]:
        return {each.record.model for each in self.workers.values()}

    def pools(self) -> dict[Pool, WorkerRecord]:
        """Every pool that has a worker, with one of its workers."""
        return {pool_of(each.record): each.record for each in self.workers.values()}

    def of(self, pool: Pool) -> list[Worker]:
        return [each for each in self.workers.values() if pool_of(each.record) == pool]

    def engine(self, pool: Pool) -> Engine | None:
        """What one of the pool can do, by the class that most of it is of; None if that is not
        known yet."""
        curves = [(self._capacities.curve(each.record), each.record) for each in self.of(pool)]
        known = [(curve, record) for curve, record in curves if curve is not None]
        if not known:
            return None
        sizes = Counter(class_of(record) for _, record in known)
        # Reversed: of two classes of which there are as many, the one that joined last.
        curve, record = max(reversed(known), key=lambda each: sizes[class_of(each[1])])
        return Engine(
            curve,
            record.max_batched_tokens,
            record.max_running,
            record.total_blocks * record.block_tokens,
            self.accept_length(pool.model),
        )


@dataclass(frozen=True)
class Sums:
    """Workers' reports, added up."""

    running: int = 0
    waiting: int = 0
    queued_tokens: int = 0
    kv_tokens: int = 0
    silent: int = 0
    """Workers whose report is missing or old."""
    leaving: int = 0
    """Requests of workers that drain: nobody else will have to bear them."""


def add_up(workers: Iterable[Worker], now_s: float, stale_s: float) -> Sums:
    """The reports of those that can be believed."""
    running = waiting = queued = kv_tokens = silent = leaving = 0
    for worker in workers:
        if worker.stale(now_s, stale_s):
            silent += 1
        if worker.report is None:
            continue
        if worker.record.state is WorkerState.DRAINING:
            leaving += worker.report.running + worker.report.waiting
        else:
            running += worker.report.running
            waiting += worker.report.waiting
            queued += worker.report.queued_prefill_tokens
            kv_tokens += worker.report.decode_kv_tokens
    return Sums(running, waiting, queued, kv_tokens, silent, leaving)


class Stock(NamedTuple):
    """What is in the engines of a phase."""

    running: float
    queued_tokens: float


class Stocks:
    """What was in them of late, so that a moment's burst is not taken for a queue."""

    def __init__(self) -> None:
        self._noted: deque[tuple[float, Stock]] = deque()

    def note(self, sums: Sums, now_s: float) -> None:
        """Said once a tick."""
        self._noted.append((now_s, Stock(sums.running, sums.queued_tokens)))
        while self._noted[0][0] < now_s - LATELY_S:
            self._noted.popleft()

    def lately(self, now_s: float) -> Stock:
        """How many ran on average, and how many tokens have been waiting all the time."""
        recent = [stock for noted_s, stock in self._noted if noted_s >= now_s - LATELY_S / 2]
        if not recent:
            return Stock(0.0, 0.0)
        running = sum(stock.running for _, stock in self._noted) / len(self._noted)
        return Stock(running, min(stock.queued_tokens for stock in recent))


def states(workers: Iterable[Worker]) -> Mapping[WorkerState, int]:
    """How many are in each state."""
    counts = dict.fromkeys(WorkerState, 0)
    for worker in workers:
        counts[worker.record.state] += 1
    return counts


def least_to_lose(workers: Iterable[Worker]) -> tuple[WorkerId, ...]:
    """Those that can be chosen, the one to retire first in front: with the fewest requests, then
    the fewest tokens of KV, then the youngest."""

    def loss(worker: Worker) -> tuple[int, int, float]:
        report = worker.report
        if report is None:
            return 0, 0, -worker.since_s
        return report.running + report.waiting, report.used_blocks, -worker.since_s

    ready = [each for each in workers if each.record.state is WorkerState.READY]
    return tuple(each.record.worker for each in sorted(ready, key=loss))
