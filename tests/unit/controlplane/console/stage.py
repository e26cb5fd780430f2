"""A console in front of a fleet that is played: every word on the bus is real, its content made up
from a seed."""

from __future__ import annotations

import math
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise

import anyio
import msgspec
from prometheus_client import CollectorRegistry

from controlplane.console.service import ConsoleService
from controlplane.console.settings import ConsoleSettings
from controlplane.registry.view import RegistryView
from proto.codec import Producer
from proto.decisions import Decision
from proto.ids import Incarnation, RequestId, WorkerId
from proto.load import LoadReport
from proto.progress import Phase, Progress
from proto.records import RequestRecord
from proto.route import Term
from proto.scaling import Action, PhasePlan, PlanTick, Reason
from proto.subjects import Keys, Subjects
from proto.transfers import State, Step, TicketId, Transition
from proto.wire.memory.bus import MemoryBus, MemoryHub
from proto.wire.memory.store import MemoryEtcd, MemoryStore
from proto.workers import Hardware, Role, WorkerRecord, WorkerState

CLUSTER = "stage"
SUBJECTS, KEYS = Subjects(CLUSTER), Keys(CLUSTER)
MODEL = "llama-3.3-70b"
BLOCKS = 8_192
DECODES_MAX = 4
ODD_ONES = {7: WorkerState.DRAINING, 11: WorkerState.UNHEALTHY, 13: WorkerState.STARTING}


@dataclass
class _Running:
    request: RequestId
    worker: WorkerId
    began_s: float
    ttft_s: float
    ends_s: float
    prompt_tokens: int
    cached_tokens: int
    told_first: bool = False


class Stage:
    """Plays the fleet; `play` says what happens at one moment."""

    def __init__(self, bus: MemoryBus, store: MemoryStore, workers: int, seed: int = 1) -> None:
        self.bus = bus
        self.store = store
        self.rng = random.Random(seed)
        self.records = [_record(i, workers) for i in range(workers)]
        self.ready = [r for r in self.records if r.state is WorkerState.READY]
        self.running: list[_Running] = []
        self.counters = {r.worker: [0, 0] for r in self.records}
        self._producer = Producer("stage", Incarnation(1), time.time)

    async def register(self) -> None:
        """Every worker is there."""
        for record in self.records:
            await self.put(record)

    async def put(self, record: WorkerRecord) -> None:
        """Write one worker's record."""
        await self.store.put(KEYS.worker(record.worker), record.model_dump_json().encode())

    async def play(self, now_s: float, arrivals: int) -> None:
        """New requests, steps of those there are, and a load report of every worker."""
        for _ in range(arrivals):
            await self._arrive(now_s)
        for one in list(self.running):
            await self._step(one, now_s)
        for record in self.records:
            await self._report(record)
        await self._plan(now_s)

    async def _arrive(self, now_s: float) -> None:
        rng = self.rng
        prompt = rng.randint(200, 6_000)
        candidates = rng.sample(self.ready, min(len(self.ready), 40))
        hold = {r.worker: int(prompt * rng.random() ** 3) // 16 for r in candidates}
        request = RequestId(f"{rng.getrandbits(128):032x}")
        terms = sorted(
            (
                Term(
                    worker=worker,
                    cost=(prompt - 16 * blocks) / 16 + rng.random() * 20,
                    overlap_blocks=blocks,
                    queued_prefill_tokens=rng.randint(0, 4_000),
                    decode_blocks=rng.randint(0, 2_000),
                    requests=rng.randint(0, 12),
                )
                for worker, blocks in hold.items()
            ),
            key=lambda term: term.cost,
        )
        chosen = terms[0].worker
        decision = Decision(
            request, 1, MODEL, "router-7f3a21c4", "kv", time.time(), prompt, chosen, "",
            (*terms, *(Term(r.worker, 0.0, excluded=r.state.value) for r in self._others())),
        )  # fmt: skip
        await self._say(SUBJECTS.decisions, decision)
        ttft_s = 0.08 + prompt / 9_000 * (1.4 + math.sin(now_s / 40)) * rng.uniform(0.5, 2.0)
        lasts_s = ttft_s + rng.uniform(0.5, 9)
        one = _Running(request, chosen, now_s, ttft_s, now_s + lasts_s, prompt, 16 * hold[chosen])
        self.running.append(one)
        await self._say(SUBJECTS.progress(chosen), Progress(request, chosen, 1, Phase.DISPATCHED))
        await self._move(one, State.PLANNED, State.RESERVED, State.PREFILLING)

    def _others(self) -> list[WorkerRecord]:
        return [record for record in self.records if record.state is not WorkerState.READY]

    async def _step(self, one: _Running, now_s: float) -> None:
        where = SUBJECTS.progress(one.worker)
        if not one.told_first and now_s - one.began_s >= one.ttft_s:
            one.told_first = True
            await self._say(where, Progress(one.request, one.worker, 1, Phase.FIRST_TOKEN, 1))
            await self._move(one, State.PREFILLING, State.STAGED, State.TRANSFERRING)
        if now_s < one.ends_s:
            return
        self.running.remove(one)
        if self.rng.random() < 0.06:
            await self._move(one, State.TRANSFERRING, State.FAILED)
        else:
            await self._move(one, State.TRANSFERRING, State.LANDED, State.RELEASED)
        outcome = self.rng.choices(("completed", "cancelled", "engine_failed"), (97, 2, 1))[0]
        await self._say(
            where, Progress(one.request, one.worker, 1, Phase.ENDED, 120, outcome=outcome)
        )
        tpot_ms = 18 + 14 * (1 + math.sin(now_s / 55)) * self.rng.uniform(0.6, 1.7)
        counters = self.counters[one.worker]
        counters[0] += one.cached_tokens
        counters[1] += one.prompt_tokens
        duration_ms = 1000 * (now_s - one.began_s)
        record = RequestRecord(
            one.request, MODEL, "acme", "interactive", time.time() - duration_ms / 1000, outcome,
            one.prompt_tokens, self.rng.randint(20, 400), one.cached_tokens,
            int(one.cached_tokens * 0.94), 1000 * one.ttft_s, tpot_ms, duration_ms, 1, one.worker,
            "kv", "0af7651916cd43dd8448eb211c80319c",
        )  # fmt: skip
        await self._say(SUBJECTS.requests, record)

    async def _move(self, one: _Running, *states: State) -> None:
        """Blocks of a prefill worker go to where the request decodes, if there are any such."""
        prefills = [r.worker for r in self.ready if r.role is Role.PREFILL]
        if not prefills:
            return
        for before, after in pairwise(states):
            step = Transition(
                ticket=TicketId(one.request[:12]),
                request=one.request,
                sequence=0,
                step=Step.STAGE,
                before=before,
                after=after,
                prefill=prefills[one.prompt_tokens % len(prefills)],
                prefill_incarnation=1,
                decode=one.worker,
                decode_incarnation=1,
                at_s=time.time(),
                kv_bytes=one.prompt_tokens * 327_680,
                link="r00-r03",
                cause="the decode engine went away" if after is State.FAILED else "",
            )
            await self._say(SUBJECTS.transitions, step)

    async def _plan(self, now_s: float) -> None:
        roles = sorted({record.role for record in self.records})
        phases = [self._phase(role, now_s) for role in roles]
        tick = PlanTick(
            planner="planner-1",
            time_s=time.time(),
            advisory=False,
            phases=tuple(phases),
            ttft_target_ms=1_500.0,
            tpot_target_ms=50.0,
            goal=0.95,
        )
        await self._say(SUBJECTS.plan, tick)

    def _phase(self, role: Role, now_s: float) -> PhasePlan:
        there = sum(record.role is role for record in self.ready)
        wanted = there + round(2 * math.sin(now_s / 9))
        return PhasePlan(
            model=MODEL,
            role=role,
            action=Action.UP if wanted > there else Action.HOLD,
            reason=Reason.TTFT_AT_RISK if wanted > there else Reason.TARGETS_MET,
            workers=there,
            wanted=wanted,
            needed=float(wanted),
            floor=there - 1,
            rate=20.0,
            predicted_rate=23.0,
            prompt_tokens=3_000.0,
            output_tokens=120.0,
            hit_rate=0.8,
            accept_length=1.0,
            queued_prefill_tokens=0,
            running=len(self.running),
            waiting=0,
            ttft_ms=1_100.0 + 500 * math.sin(now_s / 9),
            tpot_ms=float("inf") if role is Role.PREFILL else 41.0,
            attainment=0.96 - 0.04 * math.sin(now_s / 9),
        )

    async def _report(self, record: WorkerRecord) -> None:
        mine = [one for one in self.running if one.worker == record.worker]
        waiting = max(0, len(mine) - DECODES_MAX)
        cached, queried = self.counters[record.worker]
        used = min(BLOCKS, 300 + 410 * len(mine))
        live = min(BLOCKS, max(used, 700 + queried // 9 % 7_400))
        await self._say(
            SUBJECTS.load(record.worker),
            LoadReport(
                worker=record.worker,
                running=len(mine) - waiting,
                waiting=waiting,
                queued_prefill_tokens=1_800 * waiting,
                decode_kv_tokens=4_000 * len(mine),
                used_blocks=used,
                total_blocks=BLOCKS,
                kv_sequence=1,
                live_blocks=live,
                digest=0,
                cached_tokens=cached,
                queried_tokens=queried,
            ),
        )

    async def _say(self, subject: str, body: msgspec.Struct) -> None:
        await self.bus.publish(subject, self._producer.seal(body))


def _record(index: int, of: int) -> WorkerRecord:
    racks = {} if of < 40 else {"zone": "eu-1", "rack": f"r{index * 8 // of:02d}"}
    prefill = of >= 40 and index % 4 == 0
    role = Role.AGGREGATED if of < 40 else Role.PREFILL if prefill else Role.DECODE
    return WorkerRecord(
        worker=WorkerId(f"engine-{index}"),
        incarnation=1,
        model=MODEL,
        engine="vllm",
        engine_version="0.11.2",
        url=f"http://10.0.{index // 250}.{index % 250}:8000",
        role=role,
        state=ODD_ONES.get(index, WorkerState.READY),
        block_tokens=16,
        total_blocks=BLOCKS,
        max_running=12,
        hardware=Hardware(profile="h100-sxm", accelerators=4, topology=racks),
    )


@asynccontextmanager
async def on_stage(
    workers: int, settings: ConsoleSettings | None = None, *, seed: int = 1
) -> AsyncIterator[tuple[ConsoleService, Stage]]:
    """A console that serves on a free port, and the fleet that it shows."""
    hub, etcd = MemoryHub(), MemoryEtcd()
    view = RegistryView(etcd.connect(), KEYS)
    console = ConsoleService(
        settings or ConsoleSettings(port=0, every_s=0.2),
        CLUSTER,
        hub.connect("console"),
        view,
        CollectorRegistry(),
    )
    stage = Stage(hub.connect("stage"), etcd.connect(), workers, seed)
    await stage.register()
    async with hub, anyio.create_task_group() as tasks:
        await tasks.start(lambda *, task_status: view.run(task_status=task_status))
        await tasks.start(lambda *, task_status: console.run(task_status=task_status))
        yield console, stage
        tasks.cancel_scope.cancel()
