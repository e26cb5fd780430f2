"""Who decides how many: our planner, and those it is compared with.

- `static`: a number that never changes.
- `hpa`: Kubernetes' rule on utilisation. `ceil(workers * utilisation / target)` every 15 s, nothing
  within a tolerance of a tenth, at most doubled (or four more) at once, and for scaling down the
  highest recommendation of the last five minutes. Utilisation is the share of the time in which
  engines compute, over the last minute, averaged over workers.
- `queue`: llm-d's published saturation rule. A worker is free while less than 80 % of its KV cache
  is taken and fewer than five requests wait; one more if the free ones have, on average, less than
  a tenth of KV or less than three places in the queue to spare; one less if one less would still
  have. Peaks of a minute, once a minute, those starting counted.
- `dynamo`: Dynamo's documented load rule for SLA targets, every 5 s. One more if every engine's
  estimated time to first token, or every engine's time per token, is over target; one less if both
  of all engines stay below 0.8 of it with `workers / (workers - 1)` times the load; nothing while a
  change is under way. Its regressions are our capacity curves, learned from the same reports.
- `schedule`: the oracle's: numbers that were laid down beforehand, with hindsight.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

from controlplane.capacity import Capacities, Curve
from controlplane.planner.core import PlannerCore
from controlplane.planner.forecast import forecast
from controlplane.planner.settings import PlannerSettings
from controlplane.replay.elastic import Standing, Wish
from controlplane.replay.report import Targets
from proto.ids import WorkerId
from proto.load import LoadReport
from proto.records import RequestRecord
from proto.scaling import Action, Desired, Scaled
from proto.workers import WorkerRecord, WorkerState

MINUTE_S = 60.0


class Reactive:
    """What those have in common that look at load reports."""

    name = "reactive"
    interval_s = 15.0

    def __init__(self) -> None:
        self.records: dict[WorkerId, WorkerRecord] = {}
        self.reports: dict[WorkerId, LoadReport] = {}

    def worker(self, record: WorkerRecord, now_s: float) -> None:
        del now_s
        self.records[record.worker] = record

    def worker_left(self, worker: WorkerId, now_s: float) -> None:
        del now_s
        self.records.pop(worker, None)
        self.reports.pop(worker, None)

    def worker_gone(self, worker: WorkerId, now_s: float) -> None:
        """Of no interest: it has left before."""

    def hear_load(self, report: LoadReport, now_s: float) -> None:
        del now_s
        if report.worker in self.records:
            self.reports[report.worker] = report

    def hear_record(self, record: RequestRecord, now_s: float) -> None:
        """Of no interest."""


class Schedule(Reactive):
    """Numbers laid down beforehand: from each time on, so many."""

    def __init__(self, name: str, steps: Sequence[tuple[float, int]], interval_s: float = 5.0):
        super().__init__()
        self.name = name
        self.interval_s = interval_s
        self._times = [time_s for time_s, _ in steps]
        self._workers = [workers for _, workers in steps]

    def tick(self, now_s: float, fleet: Standing) -> Wish:
        del fleet
        at = max(0, bisect_right(self._times, now_s) - 1)
        return Wish(self._workers[at])


class Hpa(Reactive):
    """Kubernetes' horizontal pod autoscaler on engine utilisation."""

    name = "hpa"
    TOLERANCE = 0.1
    STABLE_S = 300.0

    def __init__(self, target: float = 0.7) -> None:
        super().__init__()
        self._target = target
        self._busy: deque[tuple[float, WorkerId, float]] = deque()
        self._wishes: deque[tuple[float, int]] = deque()

    def hear_load(self, report: LoadReport, now_s: float) -> None:
        super().hear_load(report, now_s)
        busy_s = (report.steps.prefill_ms + report.steps.decode_ms) / 1000
        self._busy.append((now_s, report.worker, busy_s))

    def tick(self, now_s: float, fleet: Standing) -> Wish:
        while self._busy and self._busy[0][0] < now_s - MINUTE_S:
            self._busy.popleft()
        workers = fleet.ready + fleet.starting
        if not self.records:
            return Wish(workers)
        busy_s = sum(busy for _, worker, busy in self._busy if worker in self.records)
        used = busy_s / MINUTE_S / len(self.records)
        ratio = used / self._target
        wish = workers
        if abs(ratio - 1) > self.TOLERANCE:
            wish = math.ceil(fleet.ready * ratio)
        wish = min(wish, max(2 * workers, workers + 4))
        self._wishes.append((now_s, wish))
        while self._wishes[0][0] < now_s - self.STABLE_S:
            self._wishes.popleft()
        highest = max(wish for _, wish in self._wishes)
        return Wish(max(wish, min(workers, highest)))


class Queue(Reactive):
    """llm-d's saturation rule."""

    name = "queue"
    interval_s = 60.0
    KV_MAX, QUEUE_MAX = 0.8, 5
    KV_SPARE, QUEUE_SPARE = 0.1, 3

    def __init__(self) -> None:
        super().__init__()
        self._peaks: dict[WorkerId, tuple[float, int]] = {}

    def hear_load(self, report: LoadReport, now_s: float) -> None:
        super().hear_load(report, now_s)
        kv, queue = self._peaks.get(report.worker, (0.0, 0))
        share = report.used_blocks / max(1, report.total_blocks)
        self._peaks[report.worker] = max(kv, share), max(queue, report.waiting)

    def tick(self, now_s: float, fleet: Standing) -> Wish:
        del now_s
        peaks = [self._peaks[w] for w in self.records if w in self._peaks]
        self._peaks.clear()
        workers = fleet.ready + fleet.starting
        if not peaks:
            return Wish(workers)
        free = [(kv, queue) for kv, queue in peaks if kv < self.KV_MAX and queue < self.QUEUE_MAX]
        if not free:
            return Wish(workers + (not fleet.starting))
        kv_spare = sum(self.KV_MAX - kv for kv, _ in free) / len(free)
        queue_spare = sum(self.QUEUE_MAX - queue for _, queue in free) / len(free)
        if kv_spare < self.KV_SPARE or queue_spare < self.QUEUE_SPARE:
            return Wish(workers + (not fleet.starting))
        if len(peaks) >= 2 and len(free) == len(peaks) and not fleet.starting:
            left = len(peaks) - 1
            kv = sum(kv for kv, _ in peaks) / left
            queue = sum(queue for _, queue in peaks) / left
            spare = self.KV_MAX - kv >= self.KV_SPARE
            if spare and self.QUEUE_MAX - queue >= self.QUEUE_SPARE:
                return Wish(workers - 1)
        return Wish(workers)


class Dynamo(Reactive):
    """The fast loop of Dynamo's planner, as documented; aggregated workers."""

    name = "dynamo"
    interval_s = 5.0
    SENSITIVITY = 0.8
    OBSERVATIONS_MIN = 5

    def __init__(self, targets: Targets) -> None:
        super().__init__()
        self._targets = targets
        self._capacities = Capacities()

    def hear_load(self, report: LoadReport, now_s: float) -> None:
        super().hear_load(report, now_s)
        record = self.records.get(report.worker)
        if record is not None:
            self._capacities.observe(record, report.steps)

    def tick(self, now_s: float, fleet: Standing) -> Wish:
        del now_s
        workers = fleet.ready
        if fleet.starting or len(self.reports) < len(self.records):
            return Wish(workers + fleet.starting)
        curves = [(self._capacities.curve(self.records[w]), r) for w, r in self.reports.items()]
        known = [(curve, report) for curve, report in curves if curve is not None]
        if len(known) < len(curves) or not known:
            return Wish(workers)
        now = [self._estimate(curve, report, 1.0) for curve, report in known]
        ttft, tpot = self._targets.ttft_ms, self._targets.tpot_ms
        if all(each[0] > ttft for each in now) or all(each[1] > tpot for each in now):
            return Wish(workers + 1)
        if workers > 1:
            more = workers / (workers - 1)
            then = [self._estimate(curve, report, more) for curve, report in known]
            share = self.SENSITIVITY
            clear = all(t < ttft * share and p < tpot * share and kv < 1 for t, p, kv in then)
            if clear:
                return Wish(workers - 1)
        return Wish(workers)

    def _estimate(
        self, curve: Curve, report: LoadReport, more: float
    ) -> tuple[float, float, float]:
        """Time to first token for what is queued, time per token for what runs, share of KV; with
        so much more of it."""
        record = self.records[report.worker]
        queued = report.queued_prefill_tokens * more
        steps = math.ceil(queued / record.max_batched_tokens)
        step_ms = (
            curve.decode_base_ms
            + curve.decode_request_ms * report.running * more
            + curve.decode_kv_token_ms * report.decode_kv_tokens * more
        )
        ttft_ms = curve.prefill_token_ms * queued + max(1, steps) * step_ms
        kv_tokens = max(1, record.total_blocks * record.block_tokens)
        return ttft_ms, step_ms, report.decode_kv_tokens * more / kv_tokens


class Planner:
    """Ours, the very code that plans live clusters."""

    name = "planner"

    def __init__(self, settings: PlannerSettings) -> None:
        self._core = PlannerCore(settings, "replay")
        self.interval_s = settings.tick_s
        self._issued: list[Desired] = []
        """Words that the fleet has begun to follow since the last tick."""

    def worker(self, record: WorkerRecord, now_s: float) -> None:
        self._core.worker(record, now_s)

    def worker_left(self, worker: WorkerId, now_s: float) -> None:
        record = self._core.fleet.workers[worker].record
        self._core.worker(record.model_copy(update={"state": WorkerState.DRAINING}), now_s)

    def worker_gone(self, worker: WorkerId, now_s: float) -> None:
        del now_s
        self._core.worker_left(worker)

    def hear_load(self, report: LoadReport, now_s: float) -> None:
        self._core.hear_load(report, now_s)

    def hear_record(self, record: RequestRecord, now_s: float) -> None:
        self._core.hear_record(record, now_s)

    def tick(self, now_s: float, fleet: Standing) -> Wish:
        core = self._core
        for word in self._issued:
            core.hear_scaled(
                Scaled(
                    model=word.model,
                    role=word.role,
                    hardware=word.hardware,
                    decision=word.decision,
                    replicas=word.replicas,
                ),
                now_s,
            )
        for model, (history, horizon_s) in core.due(now_s).items():
            core.take(model, forecast(history, horizon_s))
        tick = core.tick(now_s)
        self._issued = list(core.desired(tick))
        workers = fleet.ready + fleet.starting
        retire: Sequence[WorkerId] = ()
        reason = ""
        for plan in tick.phases:
            reason = plan.reason.value
            if plan.action is not Action.HOLD:
                workers = plan.wanted
                retire = self._issued[0].retire
        return Wish(workers, retire, reason)
