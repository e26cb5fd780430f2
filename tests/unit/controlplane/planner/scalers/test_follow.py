"""Words in the store become deeds, and what came of them is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from controlplane.planner.scalers import deeds
from controlplane.planner.scalers.follow import ScalerService, ScalerTrouble
from proto.scaling import Desired, Reason, Scaled
from proto.subjects import Keys
from proto.wire.memory.store import MemoryEtcd
from proto.workers import Role
from tests.unit.agents.clocks import VIRTUAL
from tests.unit.agents.reader import wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", [VIRTUAL])]

KEYS = Keys("c")
TICK = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def word(replicas: int, decision: str = "d1", **other: object) -> Desired:
    base = Desired(
        model="m",
        role=Role.AGGREGATED,
        hardware="h",
        replicas=replicas,
        decision=decision,
        reason=Reason.TTFT_AT_RISK,
        decided_s=0.0,
        planner="p",
    )
    return base.model_copy(update=other)


class Machines:
    """Does at once what is wanted, unless it is out of machines."""

    name = "machines"

    def __init__(self, most: int) -> None:
        self.most = most
        self.running = 0

    async def act(self, wanted: Desired) -> None:
        self.running = min(wanted.replicas, self.most)
        if wanted.replicas > self.most:
            raise ScalerTrouble("out of machines")

    async def observe(self, wanted: Desired) -> Scaled:
        return Scaled(
            model=wanted.model,
            role=wanted.role,
            hardware=wanted.hardware,
            decision=wanted.decision,
            replicas=self.running,
            scaler=self.name,
        )


async def _run(
    run: Callable[..., Awaitable[None]], *, task_status: anyio.abc.TaskStatus[None]
) -> None:
    await run(task_status=task_status)


async def test_words_are_acted_on_and_trouble_is_told_until_it_is_over(
    anyio_backend: object,
) -> None:
    etcd = MemoryEtcd()
    store = etcd.connect()
    machines = Machines(most=4)
    service = ScalerService(etcd.connect(), KEYS, machines)
    pool = word(1).pool.name

    def told() -> Scaled | None:
        entry = etcd.entries.get(KEYS.scaled_of(pool))
        return Scaled.model_validate_json(entry.value) if entry else None

    async def until(condition: Callable[[Scaled], bool]) -> None:
        def met() -> bool:
            now = told()
            return now is not None and condition(now)

        await wait_until(met, within_s=60)
        assert met()

    async with anyio.create_task_group() as tasks:
        await tasks.start(_run, service.run)
        await store.put(KEYS.desired_of(pool), word(3).model_dump_json().encode())
        await until(lambda now: (now.replicas, now.decision) == (3, "d1"))
        await store.put(KEYS.desired_of("other"), b"nonsense")
        await store.put(KEYS.desired_of(pool), word(6, "d2").model_dump_json().encode())
        await until(lambda now: now.trouble == "out of machines" and now.decision == "d2")
        machines.most = 8
        await until(lambda now: now.replicas == 6 and not now.trouble)
        machines.running = 1  # somebody stopped them
        await until(lambda now: machines.running == 6)
        tasks.cancel_scope.cancel()


async def test_a_word_that_was_there_before_is_acted_on_and_is_no_deed_of_ours(
    anyio_backend: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(deeds, "spans", provider.get_tracer("test"))
    etcd = MemoryEtcd()
    store, machines = etcd.connect(), Machines(most=4)
    key = KEYS.desired_of(word(1).pool.name)
    await store.put(key, word(1, "d0").model_dump_json().encode())
    service = ScalerService(etcd.connect(), KEYS, machines)

    async def say(said: Desired) -> None:
        await store.put(key, said.model_dump_json().encode())
        await wait_until(lambda: key_told() == said.decision, within_s=60)

    def key_told() -> str:
        entry = etcd.entries.get(KEYS.scaled_of(word(1).pool.name))
        return Scaled.model_validate_json(entry.value).decision if entry else ""

    async with anyio.create_task_group() as tasks:
        await tasks.start(_run, service.run)
        await wait_until(lambda: machines.running == 1, within_s=60)
        await say(word(6, "d1", traceparent=TICK))  # more than there are machines for
        await say(word(3, "d2"))
        tasks.cancel_scope.cancel()

    ended = exporter.get_finished_spans()
    told = [(span.name, (span.attributes or {})["tokenplane.outcome"]) for span in ended]
    assert told == [("scaler.scale", "replaced"), ("scaler.scale", "done")]
    first = ended[0]
    assert first.parent is not None and f"{first.parent.span_id:016x}" in TICK
    assert [event.name for event in first.events][:1] == ["trouble"]
