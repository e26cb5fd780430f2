"""The certificates of `tokenplane certs`, asked for by NATS, etcd and the gateway's own server."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import anyio
import pytest
from anyio.streams.tls import TLSStream

from controlplane.cli.certs import main
from controlplane.runtime.tls import BadCertificate, client_context, server_context
from proto.wire.errors import BusUnavailable, HttpError, StoreUnavailable
from proto.wire.etcd.connection import EtcdSettings
from proto.wire.etcd.store import EtcdStore
from proto.wire.http import HttpClient, HttpServer
from proto.wire.nats import NatsBus, NatsSettings
from proto.wire.ports import Headers, HttpCall, HttpLimits
from tests.support.etcd_server import etcd_server
from tests.support.nats_server import nats_server

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    assert main([str(folder)]) == 0
    return folder


def _pair(pki: Path, name: str) -> tuple[Path, Path]:
    return pki / f"{name}.pem", pki / f"{name}.key"


async def test_nats_asks_both_ways(pki: Path, tmp_path: Path) -> None:
    cert, key = _pair(pki, "nats-server")
    tls = ("--tlsverify", "--tlscert", str(cert), "--tlskey", str(key))
    with nats_server(tmp_path, options=(*tls, "--tlscacert", str(pki / "ca.pem"))) as server:
        ours = NatsSettings(servers=(server.url,), ca=pki / "ca.pem", connect_s=3)
        cert, key = _pair(pki, "gateway")
        known = NatsSettings(servers=(server.url,), ca=ours.ca, cert=cert, key=key)
        async with NatsBus(known) as bus:
            await bus.publish("x", b"")
            assert bus.connected
        with pytest.raises(BusUnavailable):
            async with NatsBus(ours):
                pass


async def test_etcd_asks_both_ways(pki: Path, tmp_path: Path) -> None:
    cert, key = _pair(pki, "etcd-server")
    tls = ("--cert-file", str(cert), "--key-file", str(key), "--client-cert-auth")
    options = (*tls, "--trusted-ca-file", str(pki / "ca.pem"))
    with etcd_server(tmp_path, scheme="https", options=options) as server:
        ca = pki / "ca.pem"
        cert, key = _pair(pki, "router")
        known = EtcdSettings(endpoints=(server.endpoint,), ca=ca, cert=cert, key=key)
        async with EtcdStore(known) as store:
            await store.put("/a", b"")
        stranger = EtcdSettings(endpoints=(server.endpoint,), ca=ca, attempt_s=0.5, call_s=1)
        async with EtcdStore(stranger) as store:
            with pytest.raises(StoreUnavailable):
                await store.put("/a", b"")


async def test_http_asks_both_ways(pki: Path) -> None:
    cert, key = _pair(pki, "gateway-server")
    tls = server_context(cert, key, pki / "ca.pem")

    async def answer(call: HttpCall) -> None:
        call.start(200, {}, 4)
        await call.write(b"here")

    def refuse(status: int, why: str) -> tuple[Headers, bytes]:
        return {}, f"{status} {why}".encode()

    limits = HttpLimits(1024, stall_s=5.0)
    server = HttpServer()
    async with server.serve("127.0.0.1", 0, answer, refuse=refuse, limits=limits, tls=tls) as port:
        url = f"https://127.0.0.1:{port.port}/"
        ours = client_context(pki / "ca.pem", *_pair(pki, "operator"))
        async with HttpClient(ours) as http, http.exchange("GET", url) as response:
            assert b"".join([chunk async for chunk in response.chunks()]) == b"here"
        for stranger in (client_context(pki / "ca.pem", None, None), None):
            with pytest.raises(HttpError):
                async with HttpClient(stranger) as http, http.exchange("GET", url):
                    pass


async def test_who_is_still_shaking_hands_when_the_server_is_left_is_not_served(pki: Path) -> None:
    asked = False

    async def answer(call: HttpCall) -> None:
        nonlocal asked
        asked = True
        call.start(200, {}, 0)

    def refuse(status: int, why: str) -> tuple[Headers, bytes]:
        return {}, why.encode()

    tls = server_context(*_pair(pki, "gateway-server"), None)
    server = HttpServer()
    limits = HttpLimits()
    async with server.serve("127.0.0.1", 0, answer, refuse=refuse, limits=limits, tls=tls) as port:
        stream = await anyio.connect_tcp("127.0.0.1", port.port)
        await anyio.sleep(0.05)  # nothing tells that the server has taken it
    trusting = client_context(pki / "ca.pem", None, None)
    with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError, ssl.SSLError)):
        async with (
            stream,
            await TLSStream.wrap(stream, hostname="127.0.0.1", ssl_context=trusting) as encrypted,
        ):
            await encrypted.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            await encrypted.receive()
    assert not asked


def test_keys_are_for_their_owner_alone(pki: Path) -> None:
    keys = list(pki.glob("*.key"))
    assert keys and all(stat.S_IMODE(key.stat().st_mode) == 0o600 for key in keys)


def test_the_authority_stays_and_signs_anew(pki: Path, tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 0
    before = (tmp_path / "ca.pem").read_bytes(), (tmp_path / "router.pem").read_bytes()
    assert main([str(tmp_path), "--workers", "a,b"]) == 0
    assert (tmp_path / "ca.pem").read_bytes() == before[0]
    assert (tmp_path / "router.pem").read_bytes() != before[1]
    assert (tmp_path / "a.pem").exists() and (tmp_path / "agent.pem").exists()


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    with pytest.raises(BadCertificate, match=r"broken\.pem"):
        client_context(broken, None, None)
    with pytest.raises(BadCertificate, match="set cert and key"):
        server_context(None, None, broken)
