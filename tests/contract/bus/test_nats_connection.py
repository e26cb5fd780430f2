"""Getting in: who we are, whom we trust, and servers that are not what they should be."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest
from anyio.abc import SocketStream
from anyio.lowlevel import checkpoint

from proto.wire.errors import BusUnavailable
from proto.wire.nats.bus import NatsBus
from proto.wire.nats.client import PromptTransport
from proto.wire.nats.connection import Connection, Listener
from proto.wire.nats.settings import NatsSettings
from proto.wire.ports import Message
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
HTTP, ENDLESS, NO_INFO = b"HTTP/1.1 400 Bad Request\r\n", b"x" * 100_000, b"INFO 5\r\n"
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


async def test_a_subscription_that_is_not_granted_is_told(tmp_path: Path) -> None:
    config = tmp_path / "server.conf"
    allowed = 'subscribe: ["s", "_INBOX.>"]'
    config.write_text(
        f"authorization {{ users: [{{ user: me, password: {PASSWORD},"
        f" permissions: {{ {allowed} }} }}] }}"
    )
    with nats_server(tmp_path, options=["--config", str(config)]) as server:
        async with NatsBus(quick_settings(server, user="me", password=PASSWORD)) as bus:
            with pytest.raises(BusUnavailable, match=r"permissions violation .*forbidden"):
                async with bus.subscribe("forbidden"):
                    pass
            async with bus.subscribe("s") as messages:
                await bus.publish("s", b"in")
                assert (await take(messages, 1))[0].data == b"in"


async def test_a_limit_of_the_server_is_told_and_survived(tmp_path: Path) -> None:
    config = tmp_path / "server.conf"
    config.write_text("max_subscriptions: 3")
    with nats_server(tmp_path, options=["--config", str(config)]) as server:
        async with NatsBus(quick_settings(server)) as bus, bus.subscribe("s") as messages:
            with pytest.raises(BusUnavailable, match="maximum subscriptions"):
                async with bus.subscribe("t"), bus.subscribe("u"), bus.subscribe("v"):
                    pass
            await bus.publish("s", b"in")
            assert (await take(messages, 1))[0].data == b"in"


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
            await works(quick_settings(server, connect_s=2.0))


@pytest.mark.parametrize("greeting", [HTTP, ENDLESS], ids=["http", "endless"])
async def test_somebody_else_at_the_address_is_told(greeting: bytes) -> None:
    async def talk(stream: SocketStream) -> None:
        await stream.send(greeting)
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

    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        async with stranger(die) as port:
            server = NatsServer(tmp_path, port=port)
            stack.callback(server.close)
            tasks.start_soon(works, quick_settings(server))
            with anyio.fail_after(DEADLINE_S):
                await died.wait()
        server.start()


@pytest.mark.parametrize("greeting", [ENDLESS, NO_INFO], ids=["endless", "no-info"])
async def test_a_stranger_met_on_the_way_back_is_left_each_time(
    server: NatsServer, greeting: bytes
) -> None:
    left = 0

    async def talk(stream: SocketStream) -> None:
        nonlocal left
        try:
            await stream.send(greeting)
            await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            left += 1

    async with NatsBus(quick_settings(server)) as bus:
        server.kill()
        await until(lambda: not bus.connected)
        async with stranger(talk, port=int(server.url.rpartition(":")[2])):
            await until(lambda: left == 2)
        server.start()
        await until(lambda: bus.connected)


async def test_one_that_takes_messages_and_fails_over_one_is_handed_the_next(
    server: NatsServer,
) -> None:
    connection, heard = Connection(quick_settings(server)), list[bytes]()

    def hear(message: Message, reply: str) -> None:
        if message.data == b"bad":
            raise KeyError("a bug")
        heard.append(message.data)

    await connection.open()
    try:
        async with connection.listen(Listener("s", hear)):
            for each in (b"1", b"bad", b"2"):
                await connection.publish("s", each)
            await until(lambda: heard == [b"1", b"2"])
    finally:
        await connection.close()


async def test_a_subscription_stands_however_much_waits_to_be_sent_before_it(
    server: NatsServer,
) -> None:
    settings = quick_settings(server, ping_interval_s=60.0, call_s=DEADLINE_S)
    async with NatsBus(settings) as bus, NatsBus(settings) as other:
        server.freeze()
        for _ in range(70):
            await bus.publish("elsewhere", bytes(100_000))
        async with anyio.create_task_group() as tasks:

            async def subscribe() -> None:
                async with bus.subscribe("s") as messages:
                    await other.publish("s", b"heard")
                    assert (await take(messages, 1))[0].data == b"heard"

            tasks.start_soon(subscribe)
            await checkpoint()
            server.thaw()


async def gone(server: NatsServer) -> PromptTransport:
    transport = PromptTransport()  # type: ignore[no-untyped-call]
    await transport.connect(urlsplit(server.url), 32768, 2)  # type: ignore[arg-type]
    transport.close()
    await transport.wait_closed()  # type: ignore[no-untyped-call]
    return transport


async def test_a_connection_that_is_gone_is_an_os_error_on_every_loop(server: NatsServer) -> None:
    with suppress(ConnectionResetError):  # asyncio itself says nothing
        (await gone(server)).write(b"PING\r\n")


async def test_a_round_trip_that_finds_the_connection_gone_has_failed(server: NatsServer) -> None:
    connection = Connection(quick_settings(server))
    await connection.open()
    client = connection.client
    whole, client._transport = client._transport, await gone(server)
    with anyio.move_on_after(0.1):  # as long as asyncio, which says nothing, may wait
        assert not await client.settle()
    client._transport = whole
    await connection.close()


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
