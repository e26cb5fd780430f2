"""In virtual time: leases end and outages last as long as they need to."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import TaskGroup
from prometheus_client import CollectorRegistry

from agents.metrics import AgentMetrics
from agents.presence import LEASE_S, LOOK_S, Presence
from proto.ids import WorkerId
from proto.subjects import Keys
from proto.wire.memory.store import MemoryEtcd, MemoryStore
from proto.wire.ports import Lease
from proto.workers import ModelCard, WorkerRecord, WorkerState
from tests.unit.agents.clocks import VIRTUAL
from tests.unit.agents.reader import wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", [VIRTUAL])]

WORKER = WorkerId("w")
KEYS = Keys("test")
CARD = ModelCard(name="tiny", context_tokens=2048)


def record(state: WorkerState = WorkerState.READY, incarnation: int = 7) -> WorkerRecord:
    return WorkerRecord(
        worker=WORKER,
        incarnation=incarnation,
        model="tiny",
        engine="sim",
        url="http://127.0.0.1:1",
        state=state,
        block_tokens=16,
        total_blocks=64,
    )


class Registry:
    """An etcd, the agent's link to it, and a look at what it holds."""

    def __init__(self) -> None:
        self.etcd = MemoryEtcd()
        self.link: MemoryStore = self.etcd.connect()
        self.numbers = CollectorRegistry()
        self.presence = Presence(
            self.link, KEYS, WORKER, AgentMetrics(self.numbers), random.Random(1)
        )

    def worker(self) -> WorkerRecord | None:
        self.etcd.expire()
        entry = self.etcd.entries.get(KEYS.worker(WORKER))
        return WorkerRecord.model_validate_json(entry.value) if entry else None

    def card(self) -> ModelCard | None:
        entry = self.etcd.entries.get(KEYS.model("tiny"))
        return ModelCard.model_validate_json(entry.value) if entry else None

    def leases(self) -> float:
        return self.numbers.get_sample_value("tokenplane_agent_registrations_total") or 0.0

    async def shows(self, wanted: WorkerRecord | None) -> None:
        await wait_until(lambda: self.worker() == wanted, within_s=300)
        assert self.worker() == wanted


@asynccontextmanager
async def present() -> AsyncGenerator[tuple[Registry, TaskGroup], None]:
    registry = Registry()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(registry.presence.run)
        yield registry, tasks
        tasks.cancel_scope.cancel()


async def test_nothing_is_registered_before_there_is_something_to_tell() -> None:
    async with present() as (registry, _):
        await anyio.sleep(60)
        assert registry.etcd.entries == {}
        registry.presence.tell(record(), CARD)
        await registry.shows(record())
        assert registry.card() == CARD
        assert registry.presence.registered


async def test_the_record_follows_the_state_under_one_lease() -> None:
    async with present() as (registry, _):
        for state in (WorkerState.READY, WorkerState.UNHEALTHY, WorkerState.DRAINING):
            registry.presence.tell(record(state), CARD)
            assert not registry.presence.registered
            await registry.shows(record(state))
        await anyio.sleep(10 * LEASE_S)
        await registry.shows(record(WorkerState.DRAINING))
        assert registry.leases() == 1


async def test_saying_the_same_again_writes_nothing() -> None:
    async with present() as (registry, _):
        registry.presence.tell(record(), CARD)
        await registry.shows(record())
        revision = registry.etcd.revision
        registry.presence.tell(record(), CARD)
        await anyio.sleep(3 * LOOK_S)
        assert registry.etcd.revision == revision


async def test_leaving_deregisters_and_keeps_the_card() -> None:
    async with present() as (registry, _):
        registry.presence.tell(record(), CARD)
        await registry.shows(record())
        await registry.presence.leave()
        assert registry.worker() is None
        await anyio.sleep(10 * LEASE_S)
        assert registry.worker() is None
        assert registry.card() == CARD


async def test_being_cancelled_deregisters() -> None:
    async with present() as (registry, tasks):
        registry.presence.tell(record(), CARD)
        await registry.shows(record())
        tasks.cancel_scope.cancel()
    assert registry.worker() is None


async def test_a_lost_lease_is_taken_anew() -> None:
    async with present() as (registry, _):
        registry.presence.tell(record(), CARD)
        await registry.shows(record())
        await registry.link.revoke(_lease_of(registry))
        assert registry.worker() is None
        await registry.shows(record())
        assert registry.leases() == 2


async def test_after_an_outage_longer_than_the_lease_it_registers_again() -> None:
    async with present() as (registry, _):
        registry.presence.tell(record(), CARD)
        await registry.shows(record())
        registry.link.cut()
        await anyio.sleep(20 * LEASE_S)
        assert registry.worker() is None
        registry.link.mend()
        await registry.shows(record())


async def test_what_is_told_during_an_outage_is_written_after_it() -> None:
    async with present() as (registry, _):
        registry.presence.tell(record(), CARD)
        await registry.shows(record())
        registry.link.cut()
        registry.presence.tell(record(WorkerState.DRAINING), CARD)
        await anyio.sleep(LEASE_S / 2)
        registry.link.mend()
        await registry.shows(record(WorkerState.DRAINING))


async def test_a_store_that_is_away_at_the_start_is_waited_for() -> None:
    async with present() as (registry, _):
        registry.link.cut()
        registry.presence.tell(record(), CARD)
        await anyio.sleep(600)
        registry.link.mend()
        await registry.shows(record())


async def test_a_deleted_record_is_put_back() -> None:
    async with present() as (registry, _):
        registry.presence.tell(record(), CARD)
        await registry.shows(record())
        registry.etcd.erase(KEYS.worker(WORKER))
        await anyio.sleep(2 * LOOK_S)
        assert registry.worker() == record()


async def test_an_earlier_life_is_overwritten() -> None:
    async with present() as (registry, _):
        _write(registry, record(incarnation=6))
        registry.presence.tell(record(), CARD)
        await registry.shows(record())


async def test_a_later_agent_of_the_same_name_is_left_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with present() as (registry, _):
        _write(registry, record(incarnation=8))
        registry.presence.tell(record(), CARD)
        await anyio.sleep(3 * LOOK_S)
        assert registry.worker() == record(incarnation=8)
        assert not registry.presence.registered
    assert "two agents must not share a worker id" in caplog.text


async def test_an_unreadable_record_is_overwritten() -> None:
    async with present() as (registry, _):
        registry.etcd.write(KEYS.worker(WORKER), b"not json", None)
        registry.presence.tell(record(), CARD)
        await wait_until(lambda: registry.presence.registered)
        assert registry.worker() == record()


async def test_a_card_that_differs_is_replaced_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    async with present() as (registry, _):
        other = ModelCard(name="tiny", context_tokens=4096)
        registry.etcd.write(KEYS.model("tiny"), other.model_dump_json().encode(), None)
        registry.presence.tell(record(), CARD)
        await registry.shows(record())
        assert registry.card() == CARD
    assert "the card of model tiny differs" in caplog.text


def _lease_of(registry: Registry) -> Lease:
    return Lease(registry.etcd.entries[KEYS.worker(WORKER)].lease, LEASE_S)


def _write(registry: Registry, written: WorkerRecord) -> None:
    registry.etcd.write(KEYS.worker(WORKER), written.model_dump_json().encode(), None)
