"""`tokenplane up` with a link between every process and each server or engine that it talks to.

    python -m tests.chaos.linked --name test --port 0 --engines 3

takes the words of `up`. Links are named as `gateway>nats`; what is to be wrong with them is told
over a port of its own, a line of JSON for each change (`Links` is the other end). And the clock of
each of our processes can be set (`clock_of`).
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import anyio
from anyio.abc import SocketStream, TaskGroup
from anyio.streams.buffered import BufferedByteReceiveStream

from controlplane.cli.run import run_interactive
from controlplane.cli.up import Up, up
from controlplane.local.cluster import Stages
from controlplane.local.plan import Part
from controlplane.local.ports import free_ports
from tests.support.link import LOOPBACK, Link, Trouble
from tests.support.up import PATIENCE_S, UpCluster

COMMAND = ("tests.chaos.linked",)
NATS, ETCD = "TOKENPLANE_NATS__SERVERS", "TOKENPLANE_ETCD__ENDPOINTS"
ENGINE = "TOKENPLANE_AGENT__ENGINE_URL"
EVENTS = ("TOKENPLANE_AGENT__EVENTS", "TOKENPLANE_AGENT__REPLAY")
PUBLIC = "TOKENPLANE_AGENT__PUBLIC_URL"
LINE_BYTES_MAX = 1_024
CLOCK = Path(__file__).parent / "clock"
"""What a process imports whose clock can be set."""


class Way:
    """All links of a cluster, made as its parts are planned."""

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self.links: dict[str, Link] = {}

    def arrange(self, stages: Stages) -> Stages:
        """The same parts, each with addresses of its own."""
        return [[self._detour(part) for part in stage] for stage in stages]

    def _detour(self, part: Part) -> Part:
        own = dict(part.environment)
        if part.argv[0] == sys.executable:
            own |= {"PYTHONPATH": str(CLOCK), "TOKENPLANE_CLOCK": str(clock_of(_home(), part.name))}
        for name, server in ((NATS, "nats"), (ETCD, "etcd")):
            if name in own:
                [address] = json.loads(own[name])
                own[name] = json.dumps([self._through(f"{part.name}>{server}", address)])
        if ENGINE in own:
            engine = part.name.replace("agent", "engine")
            own[PUBLIC] = self._through(f"gateways>{engine}", own[ENGINE])
            own[ENGINE] = self._through(f"{part.name}>{engine}", own[ENGINE])
            for name in EVENTS:
                own[name] = self._through(f"{part.name}>{engine} {name[-6:].lower()}", own[name])
        return replace(part, environment=own, start_s=PATIENCE_S)

    def _through(self, name: str, address: str) -> str:
        """The address of the link of that name, which leads there."""
        target = urlsplit(address if "//" in address else f"//{address}").port
        assert target is not None, address
        if name not in self.links:
            self.links[name] = Link(free_ports(1)[0], target)
            self._tasks.start_soon(self._tasks.start, self.links[name].run)
        return address.replace(str(target), str(self.links[name].port))

    async def obey(self, told: SocketStream) -> None:
        """Do what somebody tells us, line by line, and say that it is done."""
        async with told:
            lines = BufferedByteReceiveStream(told)
            try:
                while True:
                    name, trouble = json.loads(await lines.receive_until(b"\n", LINE_BYTES_MAX))
                    self.links[name].be(Trouble(trouble) if trouble else None)
                    await told.send(b"done\n")
            except anyio.IncompleteRead:
                return


async def linked_up(options: Up) -> None:
    """As `up`, until SIGINT."""
    [port] = free_ports(1)
    async with anyio.create_task_group() as tasks:
        way = Way(tasks)
        listener = await anyio.create_tcp_listener(local_host=LOOPBACK, local_port=port)
        tasks.start_soon(partial(listener.serve, way.obey))
        _told_by(_home()).write_text(str(port))
        await up(options, way.arrange)
        tasks.cancel_scope.cancel()


class Links:
    """The links of a cluster that runs, from outside."""

    def __init__(self, cluster: UpCluster) -> None:
        self._port = int(_told_by(cluster.home).read_text())

    async def be(self, name: str, trouble: Trouble | None) -> None:
        """From now on the link is like this."""
        async with await anyio.connect_tcp(LOOPBACK, self._port) as teller:
            await teller.send(json.dumps([name, trouble]).encode() + b"\n")
            assert await teller.receive() == b"done\n"


def names(engines: int, services: tuple[str, ...]) -> list[str]:
    """All links that such a cluster has."""
    agents = [f"agent-{number}" for number in range(engines)]
    servers = [f"{part}>{to}" for part in (*services, *agents) for to in ("nats", "etcd")]
    to_engines = [
        f"{who}>engine-{number}{what}"
        for number in range(engines)
        for who, what in (
            ("gateways", ""),
            (f"agent-{number}", ""),
            (f"agent-{number}", " events"),
            (f"agent-{number}", " replay"),
        )
    ]
    return servers + to_engines


def clock_of(home: Path, part: str) -> Path:
    """A file with the seconds that the part's clock is off."""
    return home / f"clock-{part}"


def _home() -> Path:
    return Path(os.environ["TOKENPLANE_HOME"])


def _told_by(home: Path) -> Path:
    return home / "links"


def main() -> int:
    """Exit code of `up`."""
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    return run_interactive("python -m tests.chaos.linked", Up, linked_up, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
