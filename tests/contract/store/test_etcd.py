"""What etcd may do to us: die, freeze, forget its history, change its leader, ask who we are."""

from __future__ import annotations

import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anyio
import grpc
import grpc.aio
import pytest

from controlplane.local.ports import free_ports
from proto.wire.errors import StoreRefused, StoreUnavailable
from proto.wire.etcd import connection
from proto.wire.etcd.connection import Connection, EtcdSettings, Headers
from proto.wire.etcd.protocol import messages, stubs
from proto.wire.etcd.store import EtcdStore
from proto.wire.memory.store import MemoryEtcd
from proto.wire.ports import Deleted, Put, Stale, Synced, WatchEvent
from tests.support.etcd_server import EtcdServer, etcd_cluster, etcd_server
from tests.support.link import Link, Trouble

pytestmark = [pytest.mark.anyio, pytest.mark.cluster]


async def until_synced(events: AsyncIterator[WatchEvent]) -> list[WatchEvent]:
    seen: list[WatchEvent] = []
    with anyio.fail_after(30):
        async for event in events:
            seen.append(event)
            if isinstance(event, Synced):
                return seen
    raise AssertionError("the watch ended")


async def until_stale(events: AsyncIterator[WatchEvent]) -> None:
    with anyio.fail_after(30):
        async for event in events:
            if isinstance(event, Stale):
                return


async def test_a_restart_loses_no_event_and_doubles_none(tmp_path: Path) -> None:
    with etcd_server(tmp_path) as etcd:
        async with (
            EtcdStore(EtcdSettings(endpoints=(etcd.endpoint,))) as store,
            EtcdStore(EtcdSettings(endpoints=(etcd.endpoint,))) as writer,
            store.watch("/w/") as events,
        ):
            await until_synced(events)
            await writer.put("/w/before", b"")
            etcd.kill()
            await until_stale(events)
            etcd.start()
            etcd.wait()
            await writer.get("/w/before")  # connected again: no write below is sent twice
            for i in range(20):
                await writer.put("/w/after", str(i).encode())
            seen: list[str] = []
            with anyio.fail_after(30):
                async for event in events:
                    if isinstance(event, Put) and event.entry.key == "/w/after":
                        seen.append(event.entry.value.decode())
                    if seen and seen[-1] == "19":
                        break
    assert seen == [str(i) for i in range(20)]


async def test_waiting_for_etcd_costs_no_processor(tmp_path: Path) -> None:
    with etcd_server(tmp_path) as etcd:
        async with (
            EtcdStore(EtcdSettings(endpoints=(etcd.endpoint,))) as store,
            store.watch("/w/") as events,
        ):
            await until_synced(events)
            etcd.kill()
            await until_stale(events)
            began_s = time.process_time()
            with anyio.move_on_after(1.5):
                await until_stale(events)
            assert time.process_time() - began_s < 0.75  # a spinning stub would burn all of it
            etcd.start()


async def test_after_a_compaction_the_difference_is_told(tmp_path: Path) -> None:
    with etcd_server(tmp_path) as etcd:
        async with (
            EtcdStore(EtcdSettings(endpoints=(etcd.endpoint,))) as store,
            store.watch("/w/") as events,
        ):
            await store.put("/w/stays", b"1")
            await store.put("/w/goes", b"1")
            await until_synced(events)
            etcd.freeze()
            await until_stale(events)
            # Frozen, we are away; thawed, it forgets what happened before we come back.
            etcd.thaw()
            etcd.control("put", "/w/new", "1")
            etcd.control("del", "/w/goes")
            revision = etcd.control("put", "/w/stays", "2", "-w", "json").split('"revision":')[1]
            etcd.control("compact", revision.split(",")[0], "--physical")
            seen = await until_synced(events)
            told = {e.entry.key: e.entry.value for e in seen if isinstance(e, Put)}
            assert told == {"/w/new": b"1", "/w/stays": b"2"}
            assert [e.key for e in seen if isinstance(e, Deleted)] == ["/w/goes"]


async def test_a_frozen_server_is_noticed_and_calls_have_an_end(tmp_path: Path) -> None:
    with etcd_server(tmp_path) as etcd:
        settings = EtcdSettings(endpoints=(etcd.endpoint,), attempt_s=0.5, call_s=1.0)
        async with EtcdStore(settings) as store, store.watch("/w/") as events:
            await until_synced(events)
            etcd.freeze()
            with anyio.fail_after(10), pytest.raises(StoreUnavailable, match="no answer"):
                await store.get("/w/a")
            await until_stale(events)
            etcd.thaw()
            await until_synced(events)
            assert await store.get("/w/a") is None


async def test_an_idle_channel_is_not_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = dict(connection.OPTIONS) | {"grpc.keepalive_time_ms": 1_000}
    monkeypatch.setattr(connection, "OPTIONS", tuple(hasty.items()))
    with etcd_server(tmp_path) as etcd:
        idle = Connection(EtcdSettings(endpoints=(etcd.endpoint,)))
        try:
            await idle.call(stubs.KVStub, "Range", messages.RangeRequest(key=b"/w/a"))
            with anyio.move_on_after(4.5):  # etcd hangs up at the third ping
                await idle.channel().wait_for_state_change(grpc.ChannelConnectivity.READY)
            assert idle.channel().get_state() is grpc.ChannelConnectivity.READY
        finally:
            await idle.close()


async def test_a_channel_that_is_given_up_meanwhile_is_not_called(tmp_path: Path) -> None:
    class Interrupted(Connection):
        """Another task gives its channel up while a call waits to be told who we are."""

        interrupted = False

        async def ready(self) -> tuple[grpc.aio.Channel, Headers]:
            if not self.interrupted:
                self.interrupted = True
                await self.abandon(self.channel())
            return await super().ready()

    with etcd_server(tmp_path) as etcd:
        interrupted = Interrupted(EtcdSettings(endpoints=(etcd.endpoint,)))
        question = messages.RangeRequest(key=b"/w/a")
        try:
            reply = await interrupted.call(stubs.KVStub, "Range", question)
        finally:
            await interrupted.close()
        assert reply.count == 0


async def test_a_guarded_write_whose_answer_is_lost_is_not_sent_again(tmp_path: Path) -> None:
    with etcd_server(tmp_path) as etcd:
        link = Link(free_ports(1)[0], etcd.port)
        settings = EtcdSettings(endpoints=(f"127.0.0.1:{link.port}",))
        async with (
            anyio.create_task_group() as tasks,
            EtcdStore(settings) as store,
            EtcdStore(EtcdSettings(endpoints=(etcd.endpoint,))) as witness,
            witness.watch("/w/") as events,
        ):
            await tasks.start(link.run)
            await store.get("/w/lock")
            await until_synced(events)

            async def lose_the_answer() -> None:
                """Once etcd has executed it the connection breaks, and can be made again."""
                await anext(events)
                link.be(Trouble.CUT)
                link.be(None)

            link.be(Trouble.DEAF)
            tasks.start_soon(lose_the_answer)
            with anyio.fail_after(10), pytest.raises(StoreUnavailable):
                await store.put_if("/w/lock", b"mine", expected_revision=0)
            written = await store.get("/w/lock")
            assert written is not None and written.value == b"mine"
            link.be(Trouble.DEAF)
            tasks.start_soon(lose_the_answer)
            with anyio.fail_after(10), pytest.raises(StoreUnavailable):
                await store.delete("/w/lock", expected_revision=written.revision)
            assert await store.get("/w/lock") is None
            tasks.cancel_scope.cancel()


async def test_a_guarded_write_goes_on_to_a_member_that_is_there(tmp_path: Path) -> None:
    with etcd_server(tmp_path) as etcd:
        nobody = f"127.0.0.1:{free_ports(1)[0]}"
        for _ in range(8):  # the first endpoint is drawn by lot
            settings = EtcdSettings(endpoints=(nobody, etcd.endpoint))
            async with EtcdStore(settings) as store:
                entry = await store.get("/a")
                assert await store.put_if(
                    "/a", b"", expected_revision=entry.revision if entry else 0
                )


async def test_another_member_takes_over(tmp_path: Path) -> None:
    with etcd_cluster(tmp_path) as members:
        settings = EtcdSettings(endpoints=tuple(member.endpoint for member in members))
        async with EtcdStore(settings) as store, store.watch("/w/") as events:
            with anyio.fail_after(20):
                while True:
                    try:
                        await store.put("/w/ready", b"")
                        break
                    except StoreUnavailable:
                        continue
            await until_synced(events)
            for member in members:
                member.kill()
                await store.put(f"/w/{member.port}", b"")
                member.start()
                member.wait()
            wanted = {f"/w/{member.port}" for member in members}
            with anyio.fail_after(30):
                async for event in events:
                    if isinstance(event, Put):
                        wanted.discard(event.entry.key)
                    if not wanted:
                        break


async def test_passwords_and_tokens_that_run_out(tmp_path: Path) -> None:
    with etcd_server(tmp_path, options=("--auth-token-ttl", "1")) as etcd:
        _ask_for_users(etcd)
        async with EtcdStore(
            EtcdSettings(endpoints=(etcd.endpoint,), user="root", password="secret")
        ) as store:
            await store.put("/a", b"")
            etcd.restart()  # forgets every token
            assert await store.get("/a") is not None
        async with EtcdStore(
            EtcdSettings(endpoints=(etcd.endpoint,), user="root", password="wrong")
        ) as store:
            with pytest.raises(StoreRefused, match="authentication failed"):
                await store.get("/a")
        async with EtcdStore(EtcdSettings(endpoints=(etcd.endpoint,))) as store:
            with pytest.raises(StoreRefused, match="user name is empty"):
                await store.get("/a")


async def test_tokens_of_an_older_revision_are_replaced(tmp_path: Path) -> None:
    key, public = tmp_path / "jwt.key", tmp_path / "jwt.pem"
    _openssl("genrsa", "-out", str(key), "2048")
    _openssl("rsa", "-in", str(key), "-pubout", "-out", str(public))
    jwt = f"jwt,pub-key={public},priv-key={key},sign-method=RS256,ttl=10m"
    with etcd_server(tmp_path, options=("--auth-token", jwt)) as etcd:
        _ask_for_users(etcd)
        settings = EtcdSettings(endpoints=(etcd.endpoint,), user="root", password="secret")
        async with EtcdStore(settings) as store:
            lease = await store.grant(30)
            acts: list[Callable[[], Awaitable[object]]] = [
                lambda: store.get("/a"),
                lambda: store.put("/a", b"", lease=lease),
                lambda: store.put_if("/b", b"", expected_revision=0),
                lambda: store.grant(30),
                lambda: store.revoke(lease),
            ]
            for number, act in enumerate(acts):
                etcd.control("--user", "root:secret", "user", "add", f"user{number}:word")
                await act()
            etcd.control("--user", "root:secret", "user", "add", "another:word")
            async with store.watch("/b") as events:
                assert len(await until_synced(events)) == 2


async def test_an_etcd_that_refuses_every_token_is_not_asked_in_a_hot_loop(tmp_path: Path) -> None:
    class Refused(Connection):
        asked = 0

        async def ready(self) -> tuple[grpc.aio.Channel, Headers]:
            self.asked += 1
            self._token = "of no use"
            return await super().ready()

    with etcd_server(tmp_path) as etcd:
        _ask_for_users(etcd)
        refused = Refused(
            EtcdSettings(endpoints=(etcd.endpoint,), user="root", password="secret", call_s=1.0)
        )
        try:
            with pytest.raises(StoreUnavailable):
                await refused.call(stubs.KVStub, "Range", messages.RangeRequest(key=b"/a"))
        finally:
            await refused.close()
        assert 2 <= refused.asked <= 10


def test_a_password_never_shows() -> None:
    assert "secret" not in repr(EtcdSettings(user="root", password="secret"))


async def test_tls_both_ways(tmp_path: Path) -> None:
    ca = _authority(tmp_path)
    server, client = _certificate(tmp_path, "server"), _certificate(tmp_path, "client")
    options = (
        *("--cert-file", str(server[0]), "--key-file", str(server[1])),
        *("--trusted-ca-file", str(ca), "--client-cert-auth"),
    )
    with etcd_server(tmp_path, scheme="https", options=options) as etcd:
        ours = EtcdSettings(
            endpoints=(etcd.endpoint,), ca=ca, cert=client[0], key=client[1], call_s=5.0
        )
        async with EtcdStore(ours) as store:
            await store.put("/a", b"")
        stranger = EtcdSettings(endpoints=(etcd.endpoint,), ca=ca, attempt_s=0.5, call_s=1.0)
        async with EtcdStore(stranger) as store:
            with pytest.raises(StoreUnavailable):
                await store.get("/a")


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_cut_link_in_memory_behaves_alike(anyio_backend: str) -> None:
    server = MemoryEtcd()
    ours, theirs = server.connect(), server.connect()
    async with ours.watch("/w/") as events:
        await until_synced(events)
        ours.cut()
        await until_stale(events)
        await theirs.put("/w/missed", b"")
        ours.mend()
        seen = await until_synced(events)
    assert [e.entry.key for e in seen if isinstance(e, Put)] == ["/w/missed"]


def _ask_for_users(etcd: EtcdServer) -> None:
    for words in (
        ("user", "add", "root:secret"),
        ("user", "grant-role", "root", "root"),
        ("auth", "enable"),
    ):
        etcd.control(*words)


def _openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=20)


def _authority(folder: Path) -> Path:
    ca = folder / "ca.pem"
    subject = ("-subj", "/CN=test authority", "-days", "2")
    keys = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    _openssl("req", "-x509", *keys, *subject, "-keyout", str(folder / "ca.key"), "-out", str(ca))
    return ca


def _certificate(folder: Path, name: str) -> tuple[Path, Path]:
    cert, key, request = (folder / f"{name}.{end}" for end in ("pem", "key", "csr"))
    extensions = folder / f"{name}.ext"
    extensions.write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
    keys = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    _openssl("req", *keys, "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(request))
    authority = ("-CA", str(folder / "ca.pem"), "-CAkey", str(folder / "ca.key"))
    _openssl(
        *("x509", "-req", "-in", str(request), *authority, "-CAcreateserial", "-days", "2"),
        *("-extfile", str(extensions), "-out", str(cert)),
    )
    return cert, key
