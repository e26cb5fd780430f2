"""The manifests with TLS: what they add holds together, and real servers run by it."""

from __future__ import annotations

import re
from pathlib import Path

import kubernetes_validate
import pytest

from controlplane.cli.access import new_passwords
from controlplane.cli.certs import main as certs
from handbook.pages import KUBERNETES_WORKERS as WORKERS
from proto.wire.errors import BusUnavailable, StoreUnavailable
from proto.wire.etcd.connection import EtcdSettings
from proto.wire.etcd.store import EtcdStore
from proto.wire.nats import NatsBus, NatsSettings
from tests.support.etcd_server import etcd_server
from tests.support.nats_server import nats_server
from tests.unit.deploy.manifests import WITH_TLS, Object, references, render

SERVERS = {"nats": "nats-server", "etcd": "etcd-server"}
USERS = {"access": "operator", **SERVERS}
"""Whose certificate a workload has, where that is not its own name."""


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    assert certs([str(folder), "--workers", ",".join(WORKERS)]) == 0
    return folder


@pytest.fixture(scope="module")
def passwords() -> dict[str, str]:
    return dict(line.split("=", 1) for line in new_passwords(WORKERS).splitlines())


@pytest.fixture(scope="module")
def objects(pki: Path, passwords: dict[str, str]) -> list[Object]:
    given = {f"pki/{path.name}": path.read_text() for path in pki.iterdir()}
    given["secrets.env"] = "".join(f"{name}={word}\n" for name, word in passwords.items())
    given["tenants.toml"] = '[tenants.acme]\nkeys = ["sha256:00"]\n'
    return render(given, WITH_TLS)


def test_the_schemas_of_kubernetes_know_every_field(objects: list[Object]) -> None:
    for each in objects:
        kubernetes_validate.validate(each, "1.34", strict=True)


def test_what_is_referred_to_is_there(objects: list[Object]) -> None:
    there = {(o["kind"], o["metadata"]["name"]): o for o in objects}
    for each in objects:
        for kind, name, key in references(each):
            found = there[kind, name]
            assert key is None or key in (found.get("data") or found["stringData"])


def test_each_process_has_its_own_key_and_no_other(objects: list[Object]) -> None:
    for name, pod in _pods(objects).items():
        [volume] = [v for v in pod["volumes"] if v["name"] == "tls"]
        items = {item["path"]: item["key"] for item in volume["secret"]["items"]}
        mounts = [
            (container["name"], mount)
            for container in pod["containers"]
            for mount in container["volumeMounts"]
            if mount["name"] == "tls"
        ]
        [(container, mount)] = mounts
        if name == "sim":
            assert container == "agent" and mount["subPathExpr"] == "$(POD_NAME)"
            assert {p for p in items if p.endswith(".key")} == {f"{w}/own.key" for w in WORKERS}
            assert all(items[f"{worker}/own.key"] == f"{worker}.key" for worker in WORKERS)
        else:
            assert items["own.key"] == f"{USERS.get(name, name)}.key"
            others = {key for path, key in items.items() if path.endswith(".key")}
            assert others - {items["own.key"]} <= {"gateway-server.key"}


def test_nobody_speaks_in_the_clear(objects: list[Object]) -> None:
    settings = next(o for o in objects if o["metadata"]["name"] == "settings")["data"]
    assert settings["TOKENPLANE_NATS__SERVERS"].startswith("tls://")
    for to in ("NATS", "ETCD"):
        assert {f"TOKENPLANE_{to}__{what}" for what in ("CA", "CERT", "KEY")} <= settings.keys()
    [etcd] = _pods(objects)["etcd"]["containers"]
    clear = [word for word in etcd["command"] if "http://" in word]
    assert [word.partition("=")[0] for word in clear] == ["--listen-metrics-urls"]
    gateway = _pods(objects)["gateway"]["containers"][0]
    assert {"TOKENPLANE_GATEWAY__CERT", "TOKENPLANE_GATEWAY__KEY"} <= {
        entry["name"] for entry in gateway["env"]
    }


@pytest.mark.anyio
async def test_nats_runs_by_it_and_asks_both_ways(
    objects: list[Object],
    pki: Path,
    passwords: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [generated] = [o for o in objects if re.match(r"nats-[0-9a-f]{10}$", o["metadata"]["name"])]
    for name, text in generated["data"].items():
        (tmp_path / name).write_text(_here(text, pki, "nats-server", tmp_path))
    for name, word in (*passwords.items(), ("POD_NAME", "nats-0")):
        monkeypatch.setenv(name, word)
    config = ("--config", str(tmp_path / "nats-server.conf"))
    with nats_server(tmp_path, jetstream=False, options=config) as server:
        ours = {
            "servers": (server.url.replace("nats://", "tls://"),),
            "ca": pki / "ca.pem",
            "user": "router",
            "password": passwords["ROUTER_PASSWORD"],
            "connect_s": 5.0,
        }
        known = {"cert": pki / "router.pem", "key": pki / "router.key"}
        async with NatsBus(NatsSettings(**ours, **known)) as bus:  # type: ignore[arg-type]
            assert bus.connected
        with pytest.raises(BusUnavailable):
            async with NatsBus(NatsSettings(**ours)):  # type: ignore[arg-type]
                pass


@pytest.mark.anyio
async def test_etcd_runs_by_it_and_asks_both_ways(
    objects: list[Object], pki: Path, tmp_path: Path
) -> None:
    [container] = _pods(objects)["etcd"]["containers"]
    flags = ("--cert-file", "--key-file", "--trusted-ca-file", "--client-cert-auth", "--peer-")
    tls = [
        _here(word, pki, "etcd-server", tmp_path)
        for word in container["command"]
        if word.startswith(flags)
    ]
    assert len(tls) == 8
    with etcd_server(tmp_path, scheme="https", options=tls) as server:
        ca = pki / "ca.pem"
        known = EtcdSettings(
            endpoints=(server.endpoint,), ca=ca, cert=pki / "router.pem", key=pki / "router.key"
        )
        async with EtcdStore(known) as store:
            await store.put("/a", b"")
        stranger = EtcdSettings(endpoints=(server.endpoint,), ca=ca, attempt_s=0.5, call_s=1)
        async with EtcdStore(stranger) as store:
            with pytest.raises(StoreUnavailable):
                await store.put("/a", b"")


def _pods(objects: list[Object]) -> dict[str, Object]:
    return {
        o["metadata"]["name"]: o["spec"]["template"]["spec"]
        for o in objects
        if o["kind"] in {"Deployment", "StatefulSet", "Job"}
    }


def _here(text: str, pki: Path, name: str, data: Path) -> str:
    """The same with paths of this machine."""
    for inside, outside in (
        ("/tls/own.pem", pki / f"{name}.pem"),
        ("/tls/own.key", pki / f"{name}.key"),
        ("/tls/ca.pem", pki / "ca.pem"),
        ("/data", data / "data"),
        ("/var/run/nats", data),
    ):
        text = text.replace(inside, str(outside))
    return text
