"""Which processes make a cluster of one machine, with which words and ports. Pure."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from controlplane.local.layout import Layout
from controlplane.local.options import SIM_BLOCK_TOKENS, SIM_CONTEXT_TOKENS, ClusterOptions
from controlplane.local.servers import etcd_argv, nats_argv
from proto.hardware import builtin_file
from proto.ids import WorkerId
from proto.workers import Role

SPANS_KEPT = "50000"
LOOPBACK_URL = "http://127.0.0.1"
DRAIN_S = 120.0
"""With a planner: how long an engine that is to go may take to finish its requests."""
PLANNER_PACE = {
    "TOKENPLANE_PLANNER__TICK_S": "2",
    "TOKENPLANE_PLANNER__FORECAST_S": "15",
    "TOKENPLANE_PLANNER__RATE_WINDOW_S": "20",
    "TOKENPLANE_PLANNER__SAMPLE_S": "60",
    "TOKENPLANE_PLANNER__DOWN_AFTER_S": "20",
    "TOKENPLANE_PLANNER__RESERVE_HALF_S": "30",
    "TOKENPLANE_PLANNER__START_S": "5",
    "TOKENPLANE_PLANNER__READY_TIMEOUT_S": "60",
    "TOKENPLANE_PLANNER__WARM_UP_S": "2",
}
"""Engines of one machine start in seconds, so that their planner may be as quick."""


@dataclass(frozen=True)
class EnginePorts:
    """One engine and the admin port of its agent."""

    http: int
    events: int
    replay: int
    kv: int
    """Where engines that pass blocks to each other meet."""
    agent_admin: int

    NEEDED: ClassVar[int] = 5

    @staticmethod
    def deal(free: Sequence[int]) -> EnginePorts:
        """From as many free ports as are needed."""
        return EnginePorts(*free)


@dataclass(frozen=True)
class Ports:
    """Every port of a local cluster."""

    nats: int
    nats_monitor: int
    etcd: int
    etcd_peer: int
    gateway: int
    gateways_admin: tuple[int, ...]
    registry_admin: int
    transfer_admin: int
    console: int
    console_admin: int
    planner_admin: int
    routers_admin: tuple[int, ...]
    engines: tuple[EnginePorts, ...]

    @staticmethod
    def needed(options: ClusterOptions) -> int:
        """How many free ports to find."""
        others = 10 + options.gateways + options.routers
        return others + EnginePorts.NEEDED * options.engines

    @staticmethod
    def assign(options: ClusterOptions, free: Sequence[int], *, console: int = 0) -> Ports:
        """Deal out free ports; gateway and console get those that the user asked for."""
        take = iter(free)
        return Ports(
            nats=next(take),
            nats_monitor=next(take),
            etcd=next(take),
            etcd_peer=next(take),
            gateway=options.port or next(take),
            gateways_admin=tuple(next(take) for _ in range(options.gateways)),
            registry_admin=next(take),
            transfer_admin=next(take),
            console=console or next(take),
            console_admin=next(take),
            planner_admin=next(take),
            routers_admin=tuple(next(take) for _ in range(options.routers)),
            engines=tuple(
                EnginePorts.deal([next(take) for _ in range(EnginePorts.NEEDED)])
                for _ in range(options.engines)
            ),
        )


@dataclass(frozen=True)
class Part:
    """One process of the cluster; it is ready when a GET of `ready_url` answers 200."""

    name: str
    argv: tuple[str, ...]
    ready_url: str
    environment: Mapping[str, str]
    files: Mapping[Path, str] = field(default_factory=dict)
    """To be written before it starts."""
    start_s: float = 60.0
    stop_s: float = 8.0
    family: bool = False
    """It starts processes of its own."""


def worker_id(index: int) -> WorkerId:
    """The worker that engine number `index` registers as."""
    return WorkerId(f"engine-{index}")


def servers(layout: Layout, ports: Ports) -> list[Part]:
    """NATS and etcd: what everything else needs first."""
    return [
        Part(
            "nats",
            nats_argv(layout.nats_data, port=ports.nats, monitor_port=ports.nats_monitor),
            f"{LOOPBACK_URL}:{ports.nats_monitor}/healthz",
            {},
        ),
        Part(
            "etcd",
            etcd_argv(layout.etcd_data, port=ports.etcd, peer_port=ports.etcd_peer),
            f"{LOOPBACK_URL}:{ports.etcd}/health",
            {},
        ),
    ]


def services(
    options: ClusterOptions, layout: Layout, ports: Ports, given: Mapping[str, str]
) -> list[Part]:
    """Registry, routers, gateway and console, and who coordinates transfers or plans where that is
    wanted; `given` has settings that the user has made in the environment."""
    common = _common_environment(options, layout, ports)

    def service(command: str, name: str, admin_port: int, **own: str) -> Part:
        environment = {**common, "TOKENPLANE_ADMIN__PORT": str(admin_port), **own}
        argv = (sys.executable, "-m", "controlplane.cli.main", command)
        return Part(name, argv, f"{LOOPBACK_URL}:{admin_port}/ready", environment)

    deciding = {
        "TOKENPLANE_ROUTER__POLICY": options.policy,
        "TOKENPLANE_ROUTER__DECISIONS_SHARE": str(options.decisions_share),
    }
    routers = [
        service("router", f"router-{number}", port, **deciding)
        for number, port in enumerate(ports.routers_admin)
    ]
    answering = {"TOKENPLANE_GATEWAY__PORT": str(ports.gateway)}
    if options.gateways > 1:
        answering["TOKENPLANE_GATEWAY__SHARED"] = "true"
    if not routers:
        answering |= {"TOKENPLANE_GATEWAY__OWN_ROUTER": "true", **deciding}
    names = ["gateway", *(f"gateway-{number}" for number in range(2, options.gateways + 1))]
    gateways = [
        service("gateway", name, admin, **answering)
        for name, admin in zip(names, ports.gateways_admin, strict=True)
    ]
    choice = {"TOKENPLANE_TRANSFER__CHOICE": options.prefill}
    coordinators = [service("transfer", "transfer", ports.transfer_admin, **choice)]
    quick = {name: given.get(name, value) for name, value in PLANNER_PACE.items()}
    most = {"TOKENPLANE_PLANNER__MOST": str(max(options.engines, options.engines_max))}
    planners = [service("planner", "planner", ports.planner_admin, **quick, **most)]
    return [
        service("registry", "registry", ports.registry_admin),
        *(planners if options.planner else []),
        *(coordinators if options.disaggregated else []),
        *routers,
        *gateways,
        service(
            "console",
            "console",
            ports.console_admin,
            TOKENPLANE_CONSOLE__PORT=str(ports.console),
            TOKENPLANE_CONSOLE__SPANS_MAX="0" if options.otlp else SPANS_KEPT,
        ),
    ]


def model_argv(layout: Layout) -> tuple[str, ...]:
    """Writes the simulated model's tokenizer; to be run to its end before the engines."""
    return (sys.executable, "-m", "workers.sim.tokens", str(layout.model))


def engines(options: ClusterOptions, layout: Layout, ports: Ports) -> Iterator[Part]:
    """Each simulated engine and, after it, its agent."""
    for index, (mine, role) in enumerate(zip(ports.engines, options.engine_roles, strict=True)):
        yield from engine(options, layout, ports, Place(index, mine, role))


@dataclass(frozen=True)
class Place:
    """Of one engine in the cluster."""

    index: int
    ports: EnginePorts
    role: Role


def engine(
    options: ClusterOptions, layout: Layout, ports: Ports, place: Place
) -> tuple[Part, Part]:
    """A simulated engine and its agent."""
    mine = place.ports
    argv = _engine_argv(options, layout.model, mine, place.role)
    told = {
        "TOKENPLANE_AGENT__ENGINE": "sim",
        "TOKENPLANE_AGENT__HARDWARE": options.profile,
        "TOKENPLANE_AGENT__ACCELERATORS": "1" if options.profile == "laptop" else "8",
        **event_sockets(mine),
    }
    if options.planner:
        told["TOKENPLANE_DRAIN_S"] = f"{DRAIN_S:g}"
    return (
        Part(worker_id(place.index), argv, f"{LOOPBACK_URL}:{mine.http}/health", {}),
        agent(options, layout, ports, place, told),
    )


def agent(
    options: ClusterOptions, layout: Layout, ports: Ports, place: Place, told: Mapping[str, str]
) -> Part:
    """The agent of an engine; `told` is what its kind of engine does not tell."""
    mine = place.ports
    environment = {
        **_common_environment(options, layout, ports),
        "TOKENPLANE_ADMIN__PORT": str(mine.agent_admin),
        "TOKENPLANE_AGENT__WORKER": worker_id(place.index),
        "TOKENPLANE_AGENT__ROLE": place.role.value,
        "TOKENPLANE_AGENT__TOPOLOGY": json.dumps({"host": "local"}),
        "TOKENPLANE_AGENT__ENGINE_URL": f"{LOOPBACK_URL}:{mine.http}",
        **told,
    }
    argv = (sys.executable, "-m", "agents")
    return Part(
        f"agent-{place.index}", argv, f"{LOOPBACK_URL}:{mine.agent_admin}/ready", environment
    )


def event_sockets(ports: EnginePorts) -> dict[str, str]:
    """Where an agent follows an engine that publishes its KV events over ZeroMQ."""
    return {
        "TOKENPLANE_AGENT__EVENTS": f"tcp://127.0.0.1:{ports.events}",
        "TOKENPLANE_AGENT__REPLAY": f"tcp://127.0.0.1:{ports.replay}",
    }


def _engine_argv(
    options: ClusterOptions, model: Path, mine: EnginePorts, role: Role
) -> tuple[str, ...]:
    alone = role is Role.AGGREGATED and not options.moves
    moves = () if alone else ("--kv-port", str(mine.kv))
    return (
        *(sys.executable, "-m", "workers.sim", "--host", "127.0.0.1"),
        *("--port", str(mine.http)),
        *("--events-port", str(mine.events)),
        *("--replay-port", str(mine.replay)),
        *("--model", options.model, "--model-dir", str(model)),
        *("--profile", options.profile, "--speed", str(options.speed)),
        *(
            ("--speculative-config", options.speculative_config)
            if options.speculative_config
            else ()
        ),
        *("--hardware", *map(str, filter(None, (builtin_file(), options.hardware_file)))),
        *("--block-size", str(options.block_tokens or SIM_BLOCK_TOKENS)),
        *("--blocks", str(options.blocks)),
        *("--max-model-len", str(options.context_tokens or SIM_CONTEXT_TOKENS)),
        *moves,
    )


def traces_endpoint(options: ClusterOptions, ports: Ports) -> str:
    """Where spans go: to a collector, else to the console."""
    return options.otlp or f"{LOOPBACK_URL}:{ports.console}"


def _common_environment(options: ClusterOptions, layout: Layout, ports: Ports) -> dict[str, str]:
    environment = {
        "TOKENPLANE_CLUSTER": options.name,
        "TOKENPLANE_SECRET_FILE": str(layout.secret),
        "TOKENPLANE_NATS__SERVERS": json.dumps([f"nats://127.0.0.1:{ports.nats}"]),
        "TOKENPLANE_ETCD__ENDPOINTS": json.dumps([f"127.0.0.1:{ports.etcd}"]),
    }
    if options.hardware_file:
        environment["TOKENPLANE_HARDWARE_FILE"] = str(options.hardware_file)
    environment["TOKENPLANE_TELEMETRY__OTLP_ENDPOINT"] = traces_endpoint(options, ports)
    environment["TOKENPLANE_TELEMETRY__SAMPLE_RATIO"] = str(options.trace_share)
    return environment
