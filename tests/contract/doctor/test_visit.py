"""A visit to a fleet on real NATS and etcd, whose agents and services are played by the test."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from pydantic import SecretStr

from controlplane.cli.doctor import Doctor, examine
from controlplane.doctor.fleet import SERVICES
from controlplane.runtime.settings import BusSettings, StoreSettings
from controlplane.runtime.version import VERSION
from proto.codec import Producer
from proto.hashing import secret_mark
from proto.ids import Incarnation, WorkerId
from proto.load import LoadReport
from proto.subjects import Keys, Subjects
from proto.wire.etcd.connection import EtcdSettings
from proto.wire.etcd.store import EtcdStore
from proto.wire.nats import NatsBus, NatsSettings
from proto.wire.ports import Endpoint, Message, ServiceInfo
from proto.workers import WorkersReply
from tests.support.etcd_server import EtcdServer, etcd_server
from tests.support.nats_server import NatsServer, nats_server
from tests.unit.controlplane.registry.records import card, worker

pytestmark = pytest.mark.anyio

CLUSTER, SECRET = "visited", "a secret of this test alone"
SUBJECTS, KEYS = Subjects(CLUSTER), Keys(CLUSTER)
LATE_S = 30.0


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[NatsServer, EtcdServer]]:
    folder: Path = tmp_path_factory.mktemp("servers")
    with nats_server(folder) as nats, etcd_server(folder) as etcd:
        yield nats, etcd


def _doctor(servers: tuple[NatsServer, EtcdServer]) -> Doctor:
    nats, etcd = servers
    return Doctor(
        cluster=CLUSTER,
        secret=SecretStr(SECRET),
        nats=BusSettings(servers=(nats.url,)),
        etcd=StoreSettings(endpoints=(etcd.endpoint,)),
        listen_s=0.5,
    )


@asynccontextmanager
async def _fleet(
    servers: tuple[NatsServer, EtcdServer],
    speaking: list[str],
    registered: list[str],
    late_s: float,
) -> AsyncIterator[None]:
    """`speaking` report their load, `registered` are in the registry, clocks `late_s` behind."""

    async def report(bus: NatsBus, name: str) -> None:
        producer = Producer(name, Incarnation(1), lambda: time.time() - late_s)
        body = LoadReport(WorkerId(name), 0, 0, 0, 0, 0, 1024, 0, 0, 0)
        while True:
            await bus.publish(SUBJECTS.load(WorkerId(name)), producer.seal(body))
            await anyio.sleep(0.05)

    async def answer(message: Message) -> bytes:
        return WorkersReply(workers=(), stale=True).model_dump_json().encode()

    nats, etcd = servers
    marks = {"agent_version": VERSION, "secret_mark": secret_mark(SECRET.encode())}
    async with (
        NatsBus(NatsSettings(servers=(nats.url,))) as bus,
        EtcdStore(EtcdSettings(endpoints=(etcd.endpoint,))) as store,
        bus.serve(ServiceInfo(SERVICES[0], "1.0.0"), [Endpoint("x", "x", answer)]),
        bus.serve(
            ServiceInfo(SERVICES[1], "1.0.0"),
            [Endpoint("workers", SUBJECTS.registry_workers, answer)],
        ),
        anyio.create_task_group() as tasks,
    ):
        lease = await store.grant(60)
        model = card("sim").model_copy(update={"tokenizer_json": "{}"})
        await store.put(KEYS.model("sim"), model.model_dump_json().encode(), lease=lease)
        for name in registered:
            record = worker(name).model_copy(update={**marks, "url": f"http://{name}"})
            value = record.model_dump_json().encode()
            await store.put(KEYS.worker(WorkerId(name)), value, lease=lease)
        for name in speaking:
            tasks.start_soon(report, bus, name)
        yield
        await store.revoke(lease)
        tasks.cancel_scope.cancel()


async def test_who_is_heard_who_is_registered_and_whose_clock_is_wrong(
    servers: tuple[NatsServer, EtcdServer],
) -> None:
    async with _fleet(servers, ["a", "b"], ["b", "c"], LATE_S):
        found = await examine(_doctor(servers))
    told = {
        (each.code, name) for each in found for name in "abc" if f" {name} " in f" {each.what} "
    }
    assert ("unregistered-worker", "a") in told
    assert ("silent-worker", "c") in told
    assert {name for code, name in told if code == "clock-skew"} == {"a", "b"}
    assert "registry-stale" in {each.code for each in found}
    assert not {"no-router", "no-registry", "secret-mismatch"} & {each.code for each in found}


async def test_a_healthy_fleet_and_json(
    servers: tuple[NatsServer, EtcdServer],
) -> None:
    async with _fleet(servers, ["a"], ["a"], 0.0):
        nats, etcd = servers
        argv = ["--cluster", CLUSTER, "--secret", SECRET, "--nats.servers", nats.url]
        argv += ["--etcd.endpoints", etcd.endpoint, "--json", "--listen_s", "1"]
        program = [sys.executable, "-m", "controlplane.cli.main", "doctor"]
        done = await anyio.run_process([*program, *argv], check=False)
    found = json.loads(done.stdout)["findings"]
    assert {each["code"] for each in found} == {"registry-stale"}
    assert done.returncode == 0  # warnings alone


async def test_an_empty_cluster_has_neither_router_nor_registry(
    servers: tuple[NatsServer, EtcdServer],
) -> None:
    found = await examine(_doctor(servers))
    assert {each.code for each in found} >= {"no-router", "no-registry"}
