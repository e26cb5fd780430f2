"""Phases in known situations, for the tests of the rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from controlplane.capacity import Curve
from controlplane.planner.core import PlannerCore
from controlplane.planner.estimate import Engine, Load, needed
from controlplane.planner.phase import PhaseMemory, PhaseView, PoolView, Proposal, Rules
from controlplane.planner.plan import propose
from controlplane.planner.transition import Transition
from proto.ids import RequestId, WorkerId
from proto.load import LoadReport, StepSums
from proto.records import RequestRecord
from proto.scaling import Action, Reason
from proto.workers import Hardware, Role, WorkerRecord, WorkerState

CURVE = Curve(
    decode_base_ms=20.0, prefill_token_ms=0.05, decode_request_ms=0.2, decode_kv_token_ms=2e-4
)
ENGINE = Engine(CURVE, budget_tokens=2_048, running_max=256, kv_tokens=1_000_000)
RULES = Rules(
    goal=0.99,
    sensitivity=0.8,
    kv_max=0.9,
    down_after_s=60.0,
    ready_timeout_s=600.0,
    retry_s=60.0,
    outgrown=1.25,
)
MODEL = "m"
TTFT_MS, TPOT_MS = 2_000.0, 60.0


def load(
    rate: float,
    prompt: int | Sequence[int] = 2_000,
    output: int = 200,
    *,
    ttft_ms: float = TTFT_MS,
    tpot_ms: float = TPOT_MS,
    running: float = 0.0,
    context: float = 0.0,
    queued: float = 0.0,
) -> Load:
    """Requests a second of these lengths, half of each where two are given."""
    prompts = [prompt] if isinstance(prompt, int) else list(prompt)
    sizes = np.resize(np.array(prompts, dtype=float), 64)
    return Load(
        rate=rate,
        burstiness=1.0,
        prompt_tokens=sizes,
        new_tokens=sizes.copy(),
        after_first=np.full(64, output - 1.0),
        ttft_ms=np.full(64, ttft_ms),
        tpot_ms=np.full(64, tpot_ms),
        queued_tokens=queued,
        running=running,
        context_tokens=context,
    )


def pool(name: str = "p", ready: int = 2, most: int = 40, **other: object) -> PoolView:
    """A pool of engines as above."""
    base = PoolView(name, ready, 0, 0, ENGINE, 1, most, price=1.0, accelerators=1)
    return base._replace(**other)  # type: ignore[arg-type]


def phase(
    now: Load,
    *pools: PoolView,
    role: Role = Role.AGGREGATED,
    expected: Load | None = None,
    fresh: bool = True,
    complete: bool = True,
) -> PhaseView:
    """A phase under this load, for which nothing more is forecast unless it is said."""
    return PhaseView(
        model=MODEL,
        role=role,
        pools=pools or (pool(),),
        load=now,
        expected=now.at_rate(0.0) if expected is None else expected,
        fresh=fresh,
        complete=complete,
    )


def with_ready(view: PhaseView, ready: int) -> PhaseView:
    """The same with another number of workers in its only pool."""
    [only] = view.pools
    return replace(view, pools=(only._replace(ready=ready),))


def worker(
    name: str, *, version: str = "1", role: Role = Role.AGGREGATED, hardware: str = "h"
) -> WorkerRecord:
    return WorkerRecord(
        worker=WorkerId(name),
        incarnation=1,
        model=MODEL,
        engine="sim",
        engine_version=version,
        url="http://127.0.0.1:1",
        role=role,
        state=WorkerState.READY,
        block_tokens=16,
        total_blocks=62_500,
        max_batched_tokens=2_048,
        hardware=Hardware(profile=hardware),
    )


def report(name: str, running: int = 0, steps: StepSums | None = None) -> LoadReport:
    return LoadReport(
        worker=WorkerId(name),
        running=running,
        waiting=0,
        queued_prefill_tokens=0,
        decode_kv_tokens=running * 2_000,
        used_blocks=0,
        total_blocks=62_500,
        kv_sequence=0,
        live_blocks=0,
        digest=0,
        steps=steps or StepSums(),
    )


def steps(prefill: int, batch: int, curve: Curve = CURVE) -> StepSums:
    """Ten steps as an engine of this curve makes them."""
    count, kv_tokens = 10, batch * 2_000
    prefill_ms = count * curve.decode_base_ms + prefill * curve.prefill_token_ms
    decode_ms = curve.decode_request_ms * batch + curve.decode_kv_token_ms * kv_tokens
    return StepSums(
        steps=count,
        prefill_tokens=prefill,
        prefill_ms=prefill_ms,
        decode_batch=batch,
        decode_kv_tokens=kv_tokens,
        decode_ms=decode_ms,
    )


def record(
    number: int,
    arrived_s: float,
    *,
    prompt: int = 2_000,
    output: int = 200,
    ttft_ms: float = 300.0,
    tpot_ms: float = 30.0,
    shed: bool = False,
    slo_class: str = "",
) -> RequestRecord:
    return RequestRecord(
        request=RequestId(f"r{number}"),
        model=MODEL,
        tenant="",
        slo_class=slo_class,
        arrived_s=arrived_s,
        outcome="overloaded" if shed else "completed",
        prompt_tokens=prompt,
        output_tokens=0 if shed else output,
        cached_tokens=0,
        ttft_ms=None if shed else ttft_ms,
        tpot_ms=None if shed else tpot_ms,
        worker=None if shed else WorkerId("w0"),
    )


def settled(view: PhaseView) -> tuple[Proposal, PhaseMemory]:
    """What is proposed after this load has gone on for long enough."""
    memory = PhaseMemory()
    proposal = propose(view, memory, RULES, 0.0)
    for now_s in range(5, 125, 5):
        proposal = propose(view, memory, RULES, float(now_s))
        if proposal.action is not Action.HOLD:
            break
    return proposal, memory


def enough(view: PhaseView) -> int:
    """Workers that this load takes."""
    return int(needed(view.load, ENGINE, view.role, RULES.steady_goal, RULES.kv_max))


def taught(core: PlannerCore, workers: int, begin_s: float) -> int:
    """So many workers that have told how fast they are, and some traffic, by two hundred seconds
    later."""
    for i in range(workers):
        core.worker(worker(f"w{i}"), begin_s)
    for n in range(60):
        for i in range(workers):
            core.hear_load(report(f"w{i}", 4, steps(400 * (n % 5), 40 + n)), begin_s + 140 + n)
    core.models.clear()
    core.tick(begin_s + 195.0)
    for n in range(40):
        core.hear_record(record(n, begin_s + 190.0), begin_s + 199.0)
    core.tick(begin_s + 199.5)
    return workers


def idle_tick(core: PlannerCore, now_s: float) -> tuple[Action, Reason, int]:
    """What is done at this tick, and how many are wanted after it; all workers say that they have
    nothing to do."""
    for name in core.fleet.workers:
        core.hear_load(report(name), now_s)
    [plan] = core.tick(now_s).phases
    return plan.action, plan.reason, plan.wanted


def begin(memory: PhaseMemory, proposal: Proposal, view: PhaseView) -> None:
    """As the planner's core does, which issues what was granted."""
    memory.transition = Transition("d", proposal.action, 0.0, view.ready, proposal.wanted)
    memory.wanted, memory.decided = proposal.wanted, True
