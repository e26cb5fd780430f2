"""Getting in: who we are, whom we trust, and servers that are not what they should be."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream
from anyio.lowlevel import checkpoint

from proto.wire.errors import BusUnavailable
from proto.wire.nats.bus import NatsBus
from proto.wire.nats.settings import NatsSettings
from tests.contract.bus.carriers import (
    DEADLINE_S,
    nats_only,
    quick_settings,
    stranger,
    take,
    until,
)
from tests.support.nats_server import NatsServer, nats_server

pytestmark = [pytest.mark.anyio, nats_only]

PASSWORD = "only-for-this-test"
GREETING = b'INFO {"server_id":"x","version":"2.12.0","headers":true,"max_payload":1048576}\r\n'


async def works(settings: NatsSettings) -> bool:
    async with NatsBus(settings) as bus, bus.subscribe("s") as messages:
        await bus.publish("s", b"in")
        return [each.data for each in await take(messages, 1)] == [b"in"]


async def test_user_and_password(tmp_path: Path) -> None:
    with nats_server(tmp_path, options=["--user", "me", "--pass", PASSWORD]) as server:
        assert await works(quick_settings(server, user="me", password=PASSWORD))
        inside = server.url.replace("//", f"//me:{PASSWORD}@")
        assert await works(quick_settings(server, servers=(inside,)))


async def test_a_token(tmp_path: Path) -> None:
    with nats_server(tmp_path, options=["--auth", PASSWORD]) as server:
        assert await works(quick_settings(server, token=PASSWORD))


async def test_an_nkey(tmp_path: Path) -> None:
    nkeys = pytest.importorskip("nkeys", reason="comes with nats-py[nkeys]")
    pair = nkeys.from_seed(nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER))
    seed, config = tmp_path / "user.nk", tmp_path / "server.conf"
    seed.write_bytes(bytes(pair.seed))
    config.write_text(f"authorization {{ users: [{{ nkey: {pair.public_key.decode()} }}] }}")
    with nats_server(tmp_path, options=["--config", str(config)]) as server:
        assert await works(quick_settings(server, nkey_seed=seed))


async def test_a_server_that_does_not_know_us_is_told_without_our_secrets(tmp_path: Path) -> None:
    with nats_server(tmp_path, options=["--user", "me", "--pass", PASSWORD]) as server:
        inside = server.url.replace("//", f"//me:{PASSWORD}-wrong@")
        for settings in (
            quick_settings(server, user="me", password=f"{PASSWORD}-wrong", connect_s=0.3),
            quick_settings(server, servers=(inside,), connect_s=0.3),
        ):
            with pytest.raises(BusUnavailable, match="Authorization Violation") as refused:
                await works(settings)
            assert PASSWORD not in str(refused.value)


async def test_a_login_that_is_withdrawn_for_a_while_is_survived(tmp_path: Path) -> None:
    config = tmp_path / "server.conf"
    login = "authorization { user: me, password: %s }"
    config.write_text(login % PASSWORD)
    with nats_server(tmp_path, options=["--config", str(config)]) as server:
        settings = quick_settings(server, user="me", password=PASSWORD)
        async with NatsBus(settings) as bus, bus.subscribe("s") as messages:
            config.write_text(login % "another")
            server.reload()
            await until(lambda: not bus.connected)
            config.write_text(login % PASSWORD)
            server.reload()
            await until(lambda: bus.connected)
            await bus.publish("s", b"back")
            assert (await take(messages, 1))[0].data == b"back"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
async def test_tls_with_a_certificate_that_we_are_told_to_trust(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1"
    who = "-subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    files = ["-keyout", str(key), "-out", str(cert)]
    subprocess.run([*make.split(), *who.split(), *files], check=True, capture_output=True)
    options = ["--tls", "--tlscert", str(cert), "--tlskey", str(key)]
    with nats_server(tmp_path, options=options) as server:
        settings = quick_settings(server, ca=cert)
        async with NatsBus(settings) as bus, bus.subscribe("s") as messages:
            server.kill()
            await until(lambda: not bus.connected)
            server.start()
            await until(lambda: bus.connected)
            await bus.publish("s", b"in")
            assert (await take(messages, 1))[0].data == b"in"
        with pytest.raises(BusUnavailable, match="certificate"):
            await works(quick_settings(server, connect_s=0.3))


async def test_somebody_else_at_the_address_is_told() -> None:
    async def talk(stream: SocketStream) -> None:
        await stream.send(b"x" * 100_000)
        await anyio.sleep_forever()

    async with stranger(talk) as port:
        settings = NatsSettings(servers=(f"nats://127.0.0.1:{port}",), connect_s=0.5)
        with pytest.raises(BusUnavailable, match=str(port)):
            await works(settings)


async def test_a_server_that_dies_over_the_greeting_is_tried_again(tmp_path: Path) -> None:
    died = anyio.Event()

    async def die(stream: SocketStream) -> None:
        await stream.send(GREETING)
        await stream.receive()
        died.set()

    async with anyio.create_task_group() as tasks:
        async with stranger(die) as port:
            server = NatsServer(tmp_path, port=port)
            tasks.start_soon(works, quick_settings(server))
            with anyio.fail_after(DEADLINE_S):
                await died.wait()
        server.start()
    server.close()


async def test_a_stranger_met_on_the_way_back_is_left_each_time(server: NatsServer) -> None:
    left = 0

    async def talk(stream: SocketStream) -> None:
        nonlocal left
        await stream.send(b"HTTP/1.1 400 Bad Request\r\n")
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
        left += 1

    async with NatsBus(quick_settings(server)) as bus:
        server.kill()
        await until(lambda: not bus.connected)
        async with stranger(talk, port=int(server.url.rpartition(":")[2])):
            await until(lambda: left == 2)
        server.start()
        await until(lambda: bus.connected)


async def test_a_subscription_cancelled_at_any_step_keeps_the_connection(
    server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with NatsBus(quick_settings(server)) as bus:

        async def subscribe() -> None:
            async with bus.subscribe("s"):
                pass

        for steps in range(12):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(subscribe)
                for _ in range(steps):
                    await checkpoint()
                tasks.cancel_scope.cancel()
            await subscribe()
    assert caplog.records == []


async def test_a_bus_that_is_not_open_is_misuse(server: NatsServer) -> None:
    bus = NatsBus(quick_settings(server))
    assert not bus.connected
    with pytest.raises(RuntimeError, match="async with"):
        await bus.publish("s", b"")
    async with bus:
        pass
    assert not bus.connected
    with pytest.raises(RuntimeError, match="closed"):
        await bus.publish("s", b"")
    with pytest.raises(RuntimeError, match="closed"):
        await bus.request("s", b"", timeout_s=DEADLINE_S)
