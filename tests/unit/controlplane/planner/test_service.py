"""Planners over a bus and a store, in virtual time: one decides, and the next one goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import TaskGroup
from prometheus_client import CollectorRegistry

from controlplane.planner.core import PlannerCore
from controlplane.planner.leader import Leadership
from controlplane.planner.metrics import PlannerMetrics
from controlplane.planner.service import PlannerService, Surroundings
from controlplane.planner.settings import PlannerSettings
from controlplane.planner.state import StateUnusable, restore, state_of
from controlplane.registry.view import RegistryView
from proto.codec import Producer, Reader
from proto.ids import Incarnation
from proto.scaling import Action, Desired, PlanTick, Reason, Scaled, pool_of
from proto.subjects import Keys, Subjects
from proto.wire.errors import StoreUnavailable
from proto.wire.memory.bus import MemoryHub
from proto.wire.memory.store import MemoryEtcd, MemoryStore
from proto.wire.ports import Lease, StreamSpec
from tests.unit.agents.clocks import VIRTUAL
from tests.unit.agents.reader import wait_until
from tests.unit.controlplane.planner.scenes import MODEL, record, report, steps, taught, worker

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", [VIRTUAL])]

SUBJECTS, KEYS = Subjects("c"), Keys("c")
POOL = pool_of(worker("w0"))
KEY = KEYS.desired_of(POOL.name)
SETTINGS = PlannerSettings(
    ttft_ms=2_000, tpot_ms=60, most=40, warm_up_s=0.0, tick_s=2.0, rate_window_s=10.0, stale_s=60.0
)


class World:
    """A bus, a store, and planners on them."""

    def __init__(self, hub: MemoryHub, tasks: TaskGroup) -> None:
        self.etcd = MemoryEtcd()
        self.store = self.etcd.connect()
        self.bus = hub.connect("test")
        self._hub = hub
        self._tasks = tasks
        self.scopes: dict[str, anyio.CancelScope] = {}

    async def planner(self, name: str, settings: PlannerSettings = SETTINGS) -> PlannerService:
        """Another one, running."""
        store, bus = self.etcd.connect(), self._hub.connect(name)
        view = RegistryView(store, KEYS)
        metrics = PlannerMetrics(CollectorRegistry())
        around = Surroundings(bus, store, SUBJECTS, KEYS, view, metrics)
        core = PlannerCore(settings, name)
        service = PlannerService(core, around, clock=anyio.current_time)
        self.scopes[name] = await self._tasks.start(self._live, view, service)
        return service

    async def _live(
        self,
        view: RegistryView,
        service: PlannerService,
        *,
        task_status: anyio.abc.TaskStatus[anyio.CancelScope],
    ) -> None:
        async with anyio.create_task_group() as tasks:
            await tasks.start(_run, view.run)
            await tasks.start(_run, service.run)
            task_status.started(tasks.cancel_scope)

    async def busy_worker(self) -> None:
        """One worker that has more to do than it can, and tells of it until the end."""
        entry = worker("w0").model_dump_json().encode()
        await self.store.put(KEYS.worker(worker("w0").worker), entry)
        spec = StreamSpec(SUBJECTS.requests_stream, (SUBJECTS.requests,), 3600.0, 1 << 20)
        await self.bus.ensure_stream(spec)
        self._tasks.start_soon(self._tell)

    async def _tell(self) -> None:
        words = Producer("w0", Incarnation(1), anyio.current_time)
        for n in range(1_000_000):
            did = steps(300 * (n % 5), 40 + n % 17)
            await self.bus.publish(
                SUBJECTS.load(worker("w0").worker), words.seal(report("w0", 4, did))
            )
            for i in range(10):
                told = record(10 * n + i, anyio.current_time())
                await self.bus.append(SUBJECTS.requests, words.seal(told), timeout_s=5)
            await anyio.sleep(0.5)

    def word(self) -> Desired | None:
        entry = self.etcd.entries.get(KEY)
        return Desired.model_validate_json(entry.value) if entry else None


@asynccontextmanager
async def a_world() -> AsyncIterator[World]:
    async with MemoryHub() as hub, anyio.create_task_group() as tasks:
        yield World(hub, tasks)
        tasks.cancel_scope.cancel()


async def _run(
    run: Callable[..., Awaitable[None]], *, task_status: anyio.abc.TaskStatus[None]
) -> None:
    await run(task_status=task_status)


async def until(condition: Callable[[], bool]) -> None:
    await wait_until(condition, within_s=600)
    assert condition()


async def test_a_busy_fleet_is_wanted_larger_and_the_diary_says_why(anyio_backend: object) -> None:
    async with a_world() as world:
        await world.busy_worker()
        await world.planner("p1")
        await until(lambda: world.word() is not None)
        word = world.word()
        assert word is not None and word.replicas > 1 and word.planner == "p1"
        assert word.reason in (Reason.TTFT_AT_RISK, Reason.TPOT_AT_RISK)
        ticks = Reader[PlanTick](PlanTick)
        async with world.bus.consume(SUBJECTS.plan_stream) as deliveries:
            async for delivery in deliveries:
                told = ticks.open(delivery.message.data).body
                await delivery.ack()
                if told.phases and told.phases[0].action is Action.UP:
                    break
        assert told.phases[0].decision == word.decision and told.phases[0].reason is word.reason


async def test_of_two_planners_one_decides_and_the_other_goes_on_from_there(
    anyio_backend: object,
) -> None:
    async with a_world() as world:
        await world.busy_worker()
        services = {name: await world.planner(name) for name in ("p1", "p2")}
        await until(lambda: world.word() is not None)
        first = world.word()
        assert first is not None
        [leader] = [n for n, service in services.items() if service.leadership.leads]
        assert first.planner == leader
        [other] = services.keys() - {leader}
        world.scopes[leader].cancel()
        await until(lambda: services[other].leadership.leads)
        await until(lambda: (word := world.word()) is not None and word.planner == other)
        second = world.word()
        assert second is not None
        assert (second.replicas, second.decision) == (first.replicas, first.decision)
        memory = services[other].core.models[MODEL].phases[POOL.role]
        assert memory.wanted == {POOL.name: first.replicas} and memory.transition is not None


async def test_one_that_never_hears_that_it_was_elected_gives_the_office_back(
    anyio_backend: object,
) -> None:
    class Forgetful(MemoryStore):
        """Loses the first answer."""

        lost = False

        async def put_if(
            self, key: str, value: bytes, *, expected_revision: int, lease: Lease | None = None
        ) -> int | None:
            written = await super().put_if(
                key, value, expected_revision=expected_revision, lease=lease
            )
            if not self.lost:
                self.lost = True
                raise StoreUnavailable("no answer")
            return written

    etcd = MemoryEtcd()
    leadership = Leadership(Forgetful(etcd), "/leader", "p1", lease_s=600)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leadership.run, anyio.sleep_forever)
        await wait_until(lambda: leadership.leads, within_s=10)
        assert leadership.leads and etcd.entries["/leader"].value == b"p1"
        tasks.cancel_scope.cancel()


async def test_one_that_finds_its_word_overwritten_stands_down(anyio_backend: object) -> None:
    async with a_world() as world:
        await world.busy_worker()
        service = await world.planner("p1", SETTINGS.model_copy(update={"ready_timeout_s": 20.0}))
        await until(lambda: world.word() is not None)
        theirs = world.word()
        assert theirs is not None
        foreign = theirs.model_copy(update={"replicas": 7, "planner": "stranger"})
        await world.store.put(KEY, foreign.model_dump_json().encode())
        # Its next word is refused; it stands for election again, and adopts what is there.
        await until(lambda: (word := world.word()) is not None and word.planner == "p1")
        word = world.word()
        assert word is not None and word.replicas == 7 and service.leadership.leads


async def test_what_a_scaler_says_in_the_store_acknowledges_the_change(
    anyio_backend: object,
) -> None:
    async with a_world() as world:
        await world.busy_worker()
        service = await world.planner("p1")
        await until(lambda: world.word() is not None)
        word = world.word()
        assert word is not None
        memory = service.core.models[MODEL].phases[POOL.role]
        assert memory.transition is not None and not memory.transition.acknowledged
        await world.store.put(KEYS.scaled_of("broken"), b"{")
        scaled = Scaled(
            model=word.model,
            role=word.role,
            hardware=word.hardware,
            decision=word.decision,
            replicas=word.replicas,
        )
        await world.store.put(KEYS.scaled_of(POOL.name), scaled.model_dump_json().encode())
        await until(lambda: memory.transition is not None and memory.transition.acknowledged)


async def test_an_adviser_changes_nothing(anyio_backend: object) -> None:
    async with a_world() as world:
        await world.busy_worker()
        service = await world.planner("p1", SETTINGS.model_copy(update={"advisory": True}))
        await until(lambda: service.core.decisions > 3)
        assert world.word() is None


async def test_a_planner_without_its_store_comes_back(anyio_backend: object) -> None:
    async with a_world() as world:
        service = await world.planner("p1")
        await until(lambda: service.leadership.leads)
        lost = world.etcd.entries[KEYS.planner_leader].lease
        world.etcd.end(lost)

        def back() -> bool:
            entry = world.etcd.entries.get(KEYS.planner_leader)
            return entry is not None and entry.lease != lost and service.leadership.leads

        await until(back)


async def test_what_was_learned_survives_a_restart(anyio_backend: object) -> None:
    del anyio_backend
    core = PlannerCore(SETTINGS, "p1")
    taught(core, 2, 0.0)
    core.tick(200.0)
    again = PlannerCore(SETTINGS, "p2")
    restore(again, state_of(core, 200.0), 300.0)
    learned, known = (each.capacities.curve(worker("w0")) for each in (core, again))
    assert learned is not None and known is not None
    assert known.decode_base_ms == pytest.approx(learned.decode_base_ms, rel=1e-3)
    assert known.prefill_token_ms == pytest.approx(learned.prefill_token_ms, rel=1e-3)
    assert again.models.keys() == core.models.keys()
    with pytest.raises(StateUnusable):
        restore(again, b"{}", 300.0)
