"""The users that `tokenplane access` makes, on real servers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from controlplane.access import etcd as etcd_access
from controlplane.access.nats import configuration, password_variable, users_of
from proto.ids import WorkerId
from proto.subjects import Keys, Subjects
from proto.wire.errors import BusUnavailable, StoreRefused
from proto.wire.etcd import users
from proto.wire.etcd.connection import Connection, EtcdSettings
from proto.wire.etcd.store import EtcdStore
from proto.wire.etcd.users import put_in_place
from proto.wire.nats import NatsBus, NatsSettings
from proto.wire.ports import Endpoint, Message, Put, ServiceInfo, StreamSpec
from tests.support.etcd_server import EtcdServer, etcd_server
from tests.support.nats_server import NatsServer, nats_server

CLUSTER = "guarded"
SUBJECTS, KEYS = Subjects(CLUSTER), Keys(CLUSTER)
OURS, THEIRS = WorkerId("ours"), WorkerId("theirs")
WORKERS = (OURS, THEIRS)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def _word(user: str) -> str:
    return f"word-of-{user}"


@pytest.fixture
def nats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NatsServer]:
    for user in (*users_of(WORKERS), "sys"):
        monkeypatch.setitem(os.environ, password_variable(user), _word(user))
    file = tmp_path / "access.conf"
    file.write_text(configuration(CLUSTER, WORKERS))
    with nats_server(tmp_path, options=("--config", str(file))) as server:
        yield server


def _bus(server: NatsServer, user: str, password: str | None = None) -> NatsBus:
    settings = NatsSettings(
        servers=(server.url,), user=user, password=password or _word(user), connect_s=2, call_s=2
    )
    return NatsBus(settings)


async def _heard(listener: NatsBus, speaker: NatsBus, tried: list[str], last: str) -> list[str]:
    """Which of the subjects arrive that are `tried` before the `last`, which does."""
    async with listener.subscribe(SUBJECTS.everything) as messages:
        for subject in (*tried, last):
            await speaker.publish(subject, b"")
        heard = []
        with anyio.fail_after(5):
            async for message in messages:
                heard.append(message.subject)
                if message.subject == last:
                    return heard
    raise AssertionError("the subscription ended")


@pytest.mark.anyio
async def test_an_agent_is_heard_on_its_own_subjects_alone(nats: NatsServer) -> None:
    own = [SUBJECTS.kv(OURS), SUBJECTS.load(OURS)]
    others = [
        SUBJECTS.kv(THEIRS),
        SUBJECTS.load(THEIRS),
        SUBJECTS.progress(OURS),
        SUBJECTS.withdrawn,
        SUBJECTS.requests,
        SUBJECTS.snapshot(THEIRS),
    ]
    async with _bus(nats, "operator") as operator, _bus(nats, OURS) as agent:
        assert await _heard(operator, agent, [own[0], *others], own[1]) == own


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("user", "subject"),
    [
        (OURS, SUBJECTS.everything),
        (OURS, SUBJECTS.snapshot(THEIRS)),
        (OURS, "_INBOX.gateway.>"),
        ("gateway", "_INBOX.>"),
        ("gateway", SUBJECTS.everything),
        ("router", "_INBOX.operator.>"),
        ("registry", SUBJECTS.every_kv),
    ],
)
async def test_what_a_user_may_not_hear(nats: NatsServer, user: str, subject: str) -> None:
    async with _bus(nats, user) as bus:
        with pytest.raises(BusUnavailable, match="permissions violation"):
            async with bus.subscribe(subject):
                pass


@pytest.mark.anyio
async def test_a_wrong_password_and_no_user_are_not_let_in(nats: NatsServer) -> None:
    for bus in (
        _bus(nats, "gateway", "guess"),
        NatsBus(NatsSettings(servers=(nats.url,), connect_s=1)),
    ):
        with pytest.raises(BusUnavailable, match=r"(?i)authorization violation"):
            async with bus:
                pass


@pytest.mark.anyio
async def test_services_do_what_they_are_for(nats: NatsServer) -> None:
    async def answer(message: Message) -> bytes:
        return message.data

    router_info, agent_info = ServiceInfo("router", "1.0.0"), ServiceInfo("agent", "1.0.0")
    async with (
        _bus(nats, "router") as router,
        _bus(nats, "gateway") as gateway,
        _bus(nats, OURS) as agent,
        _bus(nats, "operator") as operator,
        router.serve(router_info, [Endpoint("route", SUBJECTS.route, answer)]),
        agent.serve(agent_info, [Endpoint("snapshot", SUBJECTS.snapshot(OURS), answer)]),
    ):
        assert (await gateway.request(SUBJECTS.route, b"?", timeout_s=5)).data == b"?"
        assert (await router.request(SUBJECTS.snapshot(OURS), b"!", timeout_s=5)).data == b"!"
        assert b"router" in (await operator.request("$SRV.PING.router", b"", timeout_s=5)).data
        stream = StreamSpec(SUBJECTS.requests_stream, (SUBJECTS.requests,), 60, 1 << 20)
        await gateway.ensure_stream(stream)
        await gateway.append(SUBJECTS.requests, b"record", timeout_s=5)
        async with operator.consume(SUBJECTS.requests_stream) as records:
            record = await anext(records)
            assert record.message.data == b"record"
            await record.ack()


@pytest.mark.anyio
async def test_a_gateway_is_a_router_only_where_that_is_granted(
    tmp_path: Path, nats: NatsServer
) -> None:
    async def answer(message: Message) -> bytes:
        return message.data

    info, endpoint = ServiceInfo("router", "1.0.0"), Endpoint("route", SUBJECTS.route, answer)
    async with _bus(nats, "gateway") as gateway:
        with pytest.raises(BusUnavailable, match="permissions violation"):
            async with gateway.serve(info, [endpoint]):
                pass
    file = tmp_path / "access.conf"
    file.write_text(configuration(CLUSTER, WORKERS, own_routers=True))
    nats.restart()
    async with (
        _bus(nats, "gateway") as gateway,
        _bus(nats, OURS) as agent,
        gateway.subscribe(SUBJECTS.every_kv) as events,
        gateway.serve(info, [endpoint]),
    ):
        await agent.publish(SUBJECTS.kv(OURS), b"stored")
        with anyio.fail_after(5):
            assert (await anext(aiter(events))).data == b"stored"
        assert (await gateway.request(SUBJECTS.route, b"?", timeout_s=5)).data == b"?"


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with etcd_server(tmp_path_factory.mktemp("etcd")) as server:
        yield server


def _store(server: EtcdServer, user: str) -> EtcdStore:
    return EtcdStore(EtcdSettings(endpoints=(server.endpoint,), user=user, password=_word(user)))


async def _guard(server: EtcdServer, root_word: str = "root") -> None:
    granted = etcd_access.users(CLUSTER, WORKERS)
    root = EtcdSettings(endpoints=(server.endpoint,), user="root", password=_word(root_word))
    await put_in_place(root, granted, {user: _word(user) for user in granted})


@pytest.mark.anyio
async def test_users_of_etcd_read_and_write_what_is_theirs(etcd: EtcdServer) -> None:
    await _guard(etcd)
    await _guard(etcd)  # again: nothing changes, and root's word is asked for now
    async with _store(etcd, OURS) as agent, _store(etcd, "router") as router:
        lease = await agent.grant(30)
        await agent.put(KEYS.worker(OURS), b"here", lease=lease)
        await agent.put(KEYS.model("a/b"), b"card")
        assert await router.get(KEYS.worker(OURS)) is not None
        async with router.watch(KEYS.workers) as events:
            async for event in events:
                if isinstance(event, Put):
                    assert event.entry.value == b"here"
                    break
        for refused in (
            agent.put(KEYS.worker(THEIRS), b"not me"),
            agent.put(f"{KEYS.everything}config/x", b""),
            agent.get("/elsewhere"),
            router.put(KEYS.worker(OURS), b""),
            router.delete(KEYS.worker(OURS)),
        ):
            with pytest.raises(StoreRefused, match="permission denied"):
                await refused
        await agent.revoke(lease)


@pytest.mark.anyio
async def test_rights_that_were_given_by_hand_are_taken_back(etcd: EtcdServer) -> None:
    await _guard(etcd)
    root = ("--user", f"root:{_word('root')}")
    etcd.control(*root, "role", "grant-permission", "router", "--prefix=true", "readwrite", "/")
    await _guard(etcd)
    async with _store(etcd, "router") as router:
        with pytest.raises(StoreRefused, match="permission denied"):
            await router.put("/elsewhere", b"")


@pytest.mark.anyio
async def test_a_change_whose_answer_is_lost_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(Connection):
        """Hears only every second answer."""

        async def call(
            self, stub: Callable[[Any], Any], method: str, request: Any, *, repeat: bool = True
        ) -> Any:
            await super().call(stub, method, request, repeat=repeat)
            return await super().call(stub, method, request, repeat=repeat)

    monkeypatch.setattr(users, "Connection", Forgetful)
    with etcd_server(tmp_path) as etcd:
        etcd.control("role", "add", "router")
        etcd.control("role", "grant-permission", "router", "--prefix=true", "readwrite", "/")
        await _guard(etcd)
        await _guard(etcd)
        async with _store(etcd, "router") as router:
            assert await router.get(KEYS.worker(OURS)) is None
            with pytest.raises(StoreRefused, match="permission denied"):
                await router.put("/elsewhere", b"")


@pytest.mark.anyio
async def test_only_root_may_change_users(etcd: EtcdServer) -> None:
    await _guard(etcd)
    with pytest.raises(StoreRefused, match="authentication failed"):
        await _guard(etcd, root_word="guess")
