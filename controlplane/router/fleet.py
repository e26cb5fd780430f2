"""The workers of one model, as columns of numbers: what a decision looks at, kept up to date.

A row is computed when something about its worker changes, not when a decision is made.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controlplane.capacity import WARM_UP_S, Capacities, Curve
from controlplane.router.busy import BusyLimits
from controlplane.router.filters import Demand, part, standing
from controlplane.router.known import Known
from controlplane.router.ledger import LATELY_S, Ledger
from controlplane.router.policies.base import Candidates, Floats, Ints, Overlap
from proto.constraints import Constraints
from proto.ids import WorkerId
from proto.load import LoadReport
from proto.numbers import COUNT_MAX
from proto.route import RouteLeg, RouteRequest
from proto.workers import WorkerRecord

Rows = NDArray[np.intp]

FIRST_ROWS = 16
ADMISSIONS_MAX = 256
"""Different constraints whose outcome is kept, at most."""
PREFILL_MARGIN = 2.0
"""What a prompt may take of the time that it would alone, before a worker which shows no queue is
taken to have computed it: some engines do not count the prompt that they are at."""
_PREFILL_TOKEN_MS = Curve._fields.index("prefill_token_ms")
_BLOCK_TOKENS, _QUEUED, _DECODE, _REQUESTS, _CAPACITY, _STEP = range(6)


class Admission(NamedTuple):
    """Who can take a request: their rows; and why each of the others cannot."""

    rows: Rows
    refused: Mapping[WorkerId, str]

    def without(self, refused: Mapping[WorkerId, str], workers: Sequence[WorkerId]) -> Admission:
        """Less those who are refused besides; `workers` are by row."""
        if not refused:
            return self
        kept = [workers[row] not in refused for row in self.rows.tolist()]
        return Admission(self.rows[kept], {**self.refused, **refused})


class Fleet:
    """One row a worker, without holes: the last row moves to where one leaves. Pure."""

    def __init__(
        self,
        ledger: Ledger,
        capacities: Capacities,
        report_stale_s: float,
        limits: BusyLimits,
    ) -> None:
        self._ledger = ledger
        self._capacities = capacities
        self._curves_version = -1
        self._report_stale_s = report_stale_s
        self._limits = limits
        self._oldest_s = math.inf
        """No report that counts was heard before this."""
        self._known: list[Known] = []
        self._workers: list[WorkerId] = []
        self._rows: dict[WorkerId, int] = {}
        self._sizes: Counter[int] = Counter()
        self._columns: NDArray[np.int64] = np.zeros((6, FIRST_ROWS), dtype=np.int64)
        self._lately: Floats = np.zeros((2, FIRST_ROWS))
        self._curves: Floats = np.full((len(Curve._fields), FIRST_ROWS), np.nan)
        self._accept_length: Floats = np.ones(FIRST_ROWS)
        self._admissions: dict[tuple[Constraints, RouteLeg], Admission] = {}
        self._free = np.zeros(FIRST_ROWS, dtype=bool)
        """Who could take some request now."""
        self.changes = 0
        """Rises whenever a row is another worker's, or another block size's."""

    def __len__(self) -> int:
        return len(self._workers)

    @property
    def workers(self) -> Sequence[WorkerId]:
        """By row."""
        return self._workers

    @property
    def block_sizes(self) -> Collection[int]:
        """Every block size that a worker has, in tokens."""
        return self._sizes.keys()

    @property
    def block_tokens(self) -> Ints:
        """By row."""
        return self._columns[_BLOCK_TOKENS, : len(self._workers)]

    def record(self, row: int) -> WorkerRecord:
        return self._known[row].record

    def row(self, worker: WorkerId) -> int | None:
        return self._rows.get(worker)

    def put(self, record: WorkerRecord) -> None:
        """A worker is there, or says something else of itself; under another incarnation it knows
        nothing of what it said before."""
        row = self._rows.get(record.worker)
        if row is None:
            row = self._rows[record.worker] = len(self._workers)
            self._grow(row + 1)
            self._workers.append(record.worker)
            self._known.append(Known(record))
        else:
            known = self._known[row]
            self._drop_size(known.record.block_tokens)
            if known.record.incarnation == record.incarnation:
                known.record = record
            else:
                self._known[row] = Known(record)
        self.changes += 1
        self._sizes[record.block_tokens] += 1
        self._accept_length[row] = self._known[row].accept_length
        self._columns[_BLOCK_TOKENS, row] = record.block_tokens
        self._columns[_CAPACITY, row] = min(record.total_blocks * record.block_tokens, COUNT_MAX)
        self._columns[_STEP, row] = record.max_batched_tokens
        self._curves_version = -1
        self._admissions.clear()
        self._judge(row)
        self._weigh(row)

    def remove(self, worker: WorkerId) -> None:
        """A worker is gone."""
        self.changes += 1
        row, last = self._rows.pop(worker), len(self._workers) - 1
        self._drop_size(self._known[row].record.block_tokens)
        if row != last:
            self._workers[row], self._known[row] = self._workers[last], self._known[last]
            self._rows[self._workers[row]] = row
            self._columns[:, row] = self._columns[:, last]
            self._lately[:, row] = self._lately[:, last]
            self._curves[:, row] = self._curves[:, last]
            self._accept_length[row] = self._accept_length[last]
            self._free[row] = self._free[last]
        del self._workers[last], self._known[last]
        self._admissions.clear()

    def tells_of_cache(self, row: int) -> bool:
        """Whether what the worker holds becomes known: its engine gives KV events, and its agent
        has not fallen silent."""
        return self._known[row].tells_of_cache

    def observe(self, report: LoadReport, now_s: float) -> bool:
        """Take in what a worker says it is busy with. True if it tells of its cache again that
        had fallen silent."""
        row = self._rows[report.worker]
        known = self._known[row]
        was_silent = known.record.kv_events and not known.tells_of_cache
        self._free_prefilled(row, report, now_s)
        known.observe(report, self._ledger.of(report.worker), now_s)
        self._accept_length[row] = known.accept_length
        if known.known_for_s(now_s) >= WARM_UP_S:
            self._capacities.observe(known.record, report.steps)
        self._oldest_s = min(self._oldest_s, now_s)
        self._judge(row)
        self._weigh(row)
        return was_silent

    def _free_prefilled(self, row: int, report: LoadReport, now_s: float) -> None:
        """What two reports show to be computed is owed no longer."""
        if not self._ledger.of(report.worker).prefill_tokens:
            return
        before_s = self._known[row].prefilled_before_s(report, now_s)
        if before_s > -math.inf:
            token_s = float(self._curves[_PREFILL_TOKEN_MS, row]) / 1000  # as of the last decision
            margin_s = 0.0 if math.isnan(token_s) else PREFILL_MARGIN * token_s
            self._ledger.prefilled(report.worker, before_s, margin_s)

    def weigh(self, worker: WorkerId) -> None:
        """The ledger has changed for the worker."""
        self._weigh(self._rows[worker])

    def age(self, now_s: float) -> None:
        """Reports that have become too old no longer count."""
        limit_s = now_s - self._report_stale_s
        if self._oldest_s >= limit_s:
            return
        self._oldest_s = math.inf
        for row, known in enumerate(self._known):
            if known.report is None:
                continue
            if known.heard_s < limit_s:
                known.report = None
                self._judge(row)
                self._weigh(row)
            else:
                self._oldest_s = min(self._oldest_s, known.heard_s)

    def sift(self, request: RouteRequest, demands: Sequence[Demand]) -> Admission:
        """Who can take the request, and why the others cannot."""
        admitted = self._admission(request.constraints, request.leg)
        if not demands:
            return admitted
        refused = {}
        for row in admitted.rows.tolist():
            said = (demand.refuses(request, self._known[row].record) for demand in demands)
            if reason := next(filter(None, said), ""):
                refused[self._workers[row]] = reason
        return admitted.without(refused, self._workers)

    def free(self, admitted: Admission) -> Admission:
        """Less those who are busy."""
        taken = admitted.rows[~self._free[admitted.rows]].tolist()
        busy = {self._workers[row]: self._known[row].busy for row in taken}
        return admitted.without(busy, self._workers)

    def anyone_free(self) -> bool:
        """Whether some worker could take some request now."""
        return bool(self._free[: len(self._workers)].any())

    def busy(self, told_max: int) -> tuple[Mapping[WorkerId, str], int]:
        """Some of the busy workers with the reason, and how many there are."""
        busy = [known for known in self._known if known.busy and not known.refused]
        return {known.record.worker: known.busy for known in busy[:told_max]}, len(busy)

    def _admission(self, constraints: Constraints, leg: RouteLeg) -> Admission:
        known = self._admissions.get((constraints, leg))
        if known is None:
            if len(self._admissions) >= ADMISSIONS_MAX:
                self._admissions.clear()
            known = self._admissions[constraints, leg] = self._admit(constraints, leg)
        return known

    def _admit(self, constraints: Constraints, leg: RouteLeg) -> Admission:
        rows, refused = [], {}
        for row, known in enumerate(self._known):
            record = known.record
            if reason := known.refused or part(leg, record) or constraints.refusal(record):
                refused[self._workers[row]] = reason
            else:
                rows.append(row)
        return Admission(np.array(rows, dtype=np.intp), refused)

    def candidates(self, rows: Rows, overlap: Overlap, now_s: float) -> Candidates:
        """What a policy sees of these rows; `overlap` is by row of the whole fleet."""
        if self._curves_version != self._capacities.version:
            self._learn()
        every = len(rows) == len(self._workers)
        workers = self._workers if every else [self._workers[row] for row in rows.tolist()]
        chosen = slice(len(rows)) if every else rows
        columns = self._columns[:, chosen]
        lately_tokens, booked_s = self._lately[:, chosen]
        rested_s = now_s - booked_s
        return Candidates(
            workers=workers,
            block_tokens=columns[_BLOCK_TOKENS],
            overlap=overlap if every else Overlap(*[column[rows] for column in overlap]),
            queued_prefill_tokens=columns[_QUEUED],
            decode_tokens=columns[_DECODE],
            requests=columns[_REQUESTS],
            capacity_tokens=columns[_CAPACITY],
            step_tokens=columns[_STEP],
            prefill_rate=lately_tokens * np.exp(rested_s / -LATELY_S) / LATELY_S,
            curves=self._curves[:, chosen],
            accept_length=self._accept_length[chosen],
            rested_s=rested_s,
        )

    def limit(self, limits: BusyLimits) -> None:
        """Other limits make a worker busy from now on."""
        self._limits = limits
        for row in range(len(self._known)):
            self._weigh(row)

    def _learn(self) -> None:
        """Some class's curve is another."""
        self._curves_version = self._capacities.version
        for row, known in enumerate(self._known):
            curve = self._capacities.curve(known.record)
            self._curves[:, row] = np.nan if curve is None else curve

    def _judge(self, row: int) -> None:
        known = self._known[row]
        refused = standing(known.record, known.report)
        if refused != known.refused:
            known.refused = refused
            self._admissions.clear()

    def _weigh(self, row: int) -> None:
        known = self._known[row]
        booked = self._ledger.of(known.record.worker)
        owed = known.owes(booked)
        # Each number has a limit and sums of them have none; policies add and multiply in 64 bits.
        prefill_tokens = min(owed.prefill_tokens, COUNT_MAX)
        decode_tokens = min(owed.decode_blocks * known.record.block_tokens, COUNT_MAX)
        self._columns[_QUEUED, row] = prefill_tokens
        self._columns[_DECODE, row] = decode_tokens
        self._columns[_REQUESTS, row] = min(owed.requests, COUNT_MAX)
        self._lately[:, row] = booked.lately_tokens, max(booked.booked_s, 0.0)
        known.busy = self._limits.exceeded(known.record, prefill_tokens, decode_tokens)
        self._free[row] = not (known.refused or known.busy)

    def _grow(self, rows: int) -> None:
        room = self._columns.shape[1]
        if rows > room:
            self._columns = np.pad(self._columns, ((0, 0), (0, room)))
            self._lately = np.pad(self._lately, ((0, 0), (0, room)))
            self._curves = np.pad(self._curves, ((0, 0), (0, room)), constant_values=np.nan)
            self._accept_length = np.pad(self._accept_length, (0, room), constant_values=1.0)
            self._free = np.pad(self._free, (0, room))

    def _drop_size(self, block_tokens: int) -> None:
        self._sizes[block_tokens] -= 1
        if not self._sizes[block_tokens]:
            del self._sizes[block_tokens]
