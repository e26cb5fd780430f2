"""What the doctor finds of NATS and etcd: each trouble is made for real."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import anyio
import pytest
from pydantic import SecretStr

from controlplane.access import etcd as etcd_access
from controlplane.access.certificates import Pair, authority, issue
from controlplane.access.nats import configuration, password_variable, users_of
from controlplane.cli.doctor import Doctor, examine
from controlplane.doctor.findings import Finding
from controlplane.gateway.settings import GatewaySettings
from controlplane.local.ports import free_ports
from controlplane.runtime.settings import (
    AdminSettings,
    BusSettings,
    StoreSettings,
    TelemetrySettings,
)
from proto.subjects import Keys
from proto.wire.etcd.connection import EtcdSettings
from proto.wire.etcd.store import EtcdStore
from proto.wire.etcd.users import put_in_place
from proto.wire.nats import NatsBus, NatsSettings
from proto.wire.ports import StreamSpec
from tests.support.etcd_server import EtcdServer, etcd_server
from tests.support.nats_server import NatsServer, nats_server

pytestmark = pytest.mark.anyio

FULL_S = 30.0

SECRET = SecretStr("a secret of this test alone")
CLUSTER = "examined"


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with nats_server(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with etcd_server(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def own(tmp_path: Path) -> Iterator[ExitStack]:
    """For servers of one test alone."""
    with ExitStack() as stack:
        yield stack


async def _found(
    nats: NatsServer | BusSettings, etcd: EtcdServer | StoreSettings, **others: object
) -> dict[str, Finding]:
    bus = nats if isinstance(nats, BusSettings) else BusSettings(servers=(nats.url,), connect_s=1)
    store = (
        etcd
        if isinstance(etcd, StoreSettings)
        else StoreSettings(endpoints=(etcd.endpoint,), call_s=2)
    )
    settings = Doctor(
        nats=bus,
        etcd=store,
        **{"secret": SECRET, "cluster": CLUSTER, "listen_s": 0.05, **others},  # type: ignore[arg-type]
    )
    return {each.code: each for each in await examine(settings)}


async def test_servers_that_are_as_they_should_be(nats: NatsServer, etcd: EtcdServer) -> None:
    found = await _found(nats, etcd)
    assert {each for each in found if each.split("-")[0] in {"nats", "etcd", "jetstream"}} == set()


async def test_nobody_listens(etcd: EtcdServer, nats: NatsServer) -> None:
    free = free_ports(2)
    found = await _found(
        BusSettings(servers=(f"nats://127.0.0.1:{free[0]}",)),
        StoreSettings(endpoints=(etcd.endpoint, f"127.0.0.1:{free[1]}")),
    )
    assert str(free[0]) in found["nats-unreachable"].what
    assert str(free[1]) in found["etcd-unreachable"].what


async def test_somebody_else_listens(etcd: EtcdServer) -> None:
    found = await _found(BusSettings(servers=(f"nats://{etcd.endpoint}",)), etcd)
    assert etcd.endpoint in found["nats-not-nats"].what


async def test_nats_without_jetstream(own: ExitStack, etcd: EtcdServer, tmp_path: Path) -> None:
    server = own.enter_context(nats_server(tmp_path, jetstream=False))
    assert "jetstream-off" in await _found(server, etcd)


async def test_jetstream_that_is_nearly_full(
    own: ExitStack, etcd: EtcdServer, tmp_path: Path
) -> None:
    file = tmp_path / "limits.conf"
    file.write_text(
        "accounts { A { jetstream: { max_file: 100KB }, users: [ { user: u, password: p } ] } }"
    )
    server = own.enter_context(nats_server(tmp_path, options=("--config", str(file))))
    async with NatsBus(NatsSettings(servers=(server.url,), user="u", password="p")) as bus:
        await bus.ensure_stream(StreamSpec("S", ("s",), 60, 99_000))
        await bus.append("s", bytes(95_000), timeout_s=5)
    us = BusSettings(servers=(server.url,), user="u", password=SecretStr("p"))
    assert "jetstream-full" in await _found(us, etcd)


@pytest.mark.parametrize("password", [None, "wrong"])
async def test_nats_does_not_know_us(
    own: ExitStack, etcd: EtcdServer, tmp_path: Path, password: str | None
) -> None:
    server = own.enter_context(nats_server(tmp_path, options=("--user", "a", "--pass", "right")))
    word = SecretStr(password) if password else None
    us = BusSettings(servers=(server.url,), connect_s=1, user=word and "a", password=word)
    found = await _found(us, etcd)
    assert "nats-credentials" in found
    assert "wrong" not in str(found)


async def test_nats_lets_us_not_listen(
    own: ExitStack, etcd: EtcdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for user in (*users_of(()), "sys"):
        monkeypatch.setenv(password_variable(user), f"word-of-{user}")
    file = tmp_path / "access.conf"
    file.write_text(configuration(CLUSTER))
    server = own.enter_context(nats_server(tmp_path, options=("--config", str(file))))
    words = {user: SecretStr(f"word-of-{user}") for user in ("gateway", "operator")}
    for user, refused in (("gateway", True), ("operator", False)):
        us = BusSettings(servers=(server.url,), connect_s=1, user=user, password=words[user])
        found = await _found(us, etcd)
        assert ("nats-rights" in found) is refused
        assert "nats-unreachable" not in found


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    ca = authority("test", 2)
    ca.write(folder, "ca")
    authority("somebody else", 2).write(folder, "other")
    _issue(ca, folder, "server", ["127.0.0.1"])
    return folder


def _issue(ca: Pair, folder: Path, name: str, hosts: list[str]) -> None:
    issue(ca, name, hosts, 2).write(folder, name)


async def test_nats_and_we_differ_about_tls(
    own: ExitStack, nats: NatsServer, etcd: EtcdServer, tmp_path: Path, pki: Path
) -> None:
    tls = ("--tls", "--tlscert", str(pki / "server.pem"), "--tlskey", str(pki / "server.key"))
    server = own.enter_context(nats_server(tmp_path, options=tls))
    assert "wants TLS" in (await _found(server, etcd))["nats-tls"].what
    us = BusSettings(servers=(nats.url,), ca=pki / "ca.pem")
    assert "has no TLS" in (await _found(us, etcd))["nats-tls"].what
    trusting = BusSettings(servers=(server.url,), ca=pki / "ca.pem")
    assert "nats-tls" not in await _found(trusting, etcd)
    distrusting = BusSettings(servers=(server.url,), ca=pki / "other.pem", connect_s=1)
    assert "certificate" in (await _found(distrusting, etcd))["nats-tls"].what.lower()


async def test_etcd_and_we_differ_about_tls(
    own: ExitStack, nats: NatsServer, etcd: EtcdServer, tmp_path: Path, pki: Path
) -> None:
    tls = ("--cert-file", str(pki / "server.pem"), "--key-file", str(pki / "server.key"))
    server = own.enter_context(etcd_server(tmp_path, scheme="https", options=tls))
    assert "wants TLS" in (await _found(nats, server))["etcd-tls"].what
    us = StoreSettings(endpoints=(etcd.endpoint,), ca=pki / "ca.pem")
    assert "has no TLS" in (await _found(nats, us))["etcd-tls"].what
    trusting = StoreSettings(endpoints=(server.endpoint,), ca=pki / "ca.pem")
    assert "etcd-tls" not in await _found(nats, trusting)
    distrusting = StoreSettings(endpoints=(server.endpoint,), ca=pki / "other.pem")
    assert "not trusted" in (await _found(nats, distrusting))["etcd-tls"].what


async def test_etcd_does_not_know_us_or_lets_us_not(
    own: ExitStack, nats: NatsServer, tmp_path: Path
) -> None:
    server = own.enter_context(etcd_server(tmp_path, options=("--bcrypt-cost", "4")))
    unasked = StoreSettings(
        endpoints=(server.endpoint,), user="operator", password=SecretStr("o"), call_s=2
    )
    assert "not enabled" in (await _found(nats, unasked))["etcd-credentials"].what
    granted = etcd_access.users(CLUSTER)
    root = EtcdSettings(endpoints=(server.endpoint,), user="root", password="r")
    await put_in_place(root, granted, dict.fromkeys(granted, "o"))
    wrong = unasked.model_copy(update={"password": SecretStr("wrong")})
    assert "operator" in (await _found(nats, wrong))["etcd-credentials"].what
    nobody = StoreSettings(endpoints=(server.endpoint,), call_s=2)
    assert "nobody" in (await _found(nats, nobody))["etcd-credentials"].what
    reader = unasked.model_copy(update={"user": "router"})
    assert "router" in (await _found(nats, reader))["etcd-rights"].what
    assert {c for c in await _found(nats, unasked) if c.startswith("etcd")} == set()


async def test_etcd_that_is_full(own: ExitStack, nats: NatsServer, tmp_path: Path) -> None:
    server = own.enter_context(
        etcd_server(tmp_path, options=("--quota-backend-bytes", str(1 << 20)))
    )
    async with EtcdStore(EtcdSettings(endpoints=(server.endpoint,))) as store:
        # It looks at its size now and then, and takes what comes in between.
        with pytest.raises(Exception, match="space exceeded"), anyio.fail_after(FULL_S):
            for number in count():
                await store.put(f"/big/{number}", bytes(256 << 10))
    assert "etcd-full" in await _found(nats, server)


async def test_another_clusters_name(nats: NatsServer, etcd: EtcdServer) -> None:
    async with EtcdStore(EtcdSettings(endpoints=(etcd.endpoint,))) as store:
        await store.put(Keys("theirs").model("m"), b"{}")
    found = await _found(nats, etcd, cluster="ours")
    assert "theirs" in found["wrong-cluster"].what


async def test_a_gateway_that_asks_for_no_keys(nats: NatsServer, etcd: EtcdServer) -> None:
    gateway = GatewaySettings(host="0.0.0.0")
    assert "gateway-open" in await _found(nats, etcd, gateway=gateway)
    assert "gateway-open" not in await _found(nats, etcd)


async def test_no_secret(nats: NatsServer, etcd: EtcdServer) -> None:
    secret = SecretStr("tokenplane-development")
    assert "development-secret" in await _found(nats, etcd, secret=secret)


async def test_a_port_that_is_taken(nats: NatsServer, etcd: EtcdServer) -> None:
    free, taken = free_ports(1)[0], int(nats.url.rpartition(":")[2])
    gateway, admin = GatewaySettings(port=free), AdminSettings(port=taken)
    found = await _found(nats, etcd, gateway=gateway, admin=admin, ports=True)
    assert f"admin.port 127.0.0.1:{taken}" in found["port-taken"].what


async def test_no_collector(nats: NatsServer, etcd: EtcdServer) -> None:
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    telemetry = TelemetrySettings(otlp_endpoint=endpoint)
    assert endpoint in (await _found(nats, etcd, telemetry=telemetry))["collector-unreachable"].what


async def test_a_disk_that_is_low(
    nats: NatsServer, etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No disk is filled for it: what counts as low is raised above what any has."""
    monkeypatch.setattr("controlplane.doctor.surroundings.FREE_BYTES", 1 << 62)
    assert "disk-low" in await _found(nats, etcd)


async def test_a_frozen_etcd_is_found(own: ExitStack, nats: NatsServer, tmp_path: Path) -> None:
    server = own.enter_context(etcd_server(tmp_path))
    server.freeze()
    try:
        found = await _found(nats, server)
    finally:
        server.thaw()
    assert "etcd-unreachable" in found
