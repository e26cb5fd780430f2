"""Real engines on this machine: found before anything starts, then planned like all other parts."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from controlplane.local import plan
from controlplane.local.layout import Layout
from controlplane.local.options import ClusterOptions
from controlplane.local.plan import LOOPBACK_URL, EnginePorts, Part, Ports
from controlplane.runtime.service import CannotServe
from proto.workers import HandoffOrder, KvTransfer, Role
from workers.launch import spec as launch
from workers.launch.engines import command, find_program, has_accelerator
from workers.launch.spec import CannotLaunch, Command, Connector, EngineKind, EngineSpec, Phase

START_S = 900.0
"""Until an engine has loaded its model, which may be big, and the disk slow."""
CROWDED_S = 180.0
"""Until another part has started beside it."""
STOP_S = 20.0


class EngineMissing(CannotServe):
    """The engine cannot be started as asked; the text says what to do."""


@dataclass(frozen=True)
class Engine:
    """The real engine that this machine has, and what it is to serve."""

    kind: EngineKind
    program: str
    accelerated: bool
    model: str
    """A directory, or a name that the engine finds it by."""
    served: str
    """What clients call it."""
    cores: int


def find_engine(options: ClusterOptions) -> Engine | None:
    """None for simulated ones. Raises `EngineMissing`."""
    if options.engine == "sim":
        return None
    kind, directory = EngineKind(options.engine), Path(options.model).resolve()
    here = directory.is_dir()
    if kind is EngineKind.TRTLLM and options.context_tokens is None:
        raise EngineMissing(
            "TensorRT-LLM does not tell how much fits into its context: give --context-tokens"
        )
    try:
        program = find_program(kind, options.engine_program)
    except CannotLaunch as error:
        raise EngineMissing(str(error)) from error
    return Engine(
        kind=kind,
        program=program,
        accelerated=has_accelerator(),
        model=str(directory) if here else options.model,
        served=directory.name if here else options.model,
        cores=os.cpu_count() or 1,
    )


def parts(engine: Engine, options: ClusterOptions, layout: Layout, ports: Ports) -> Iterator[Part]:
    """Each engine and, after it, its agent. Raises `EngineMissing`."""
    for index, mine in enumerate(ports.engines):
        started = _command(engine, options, layout, ports, index)
        yield Part(
            plan.worker_id(index),
            started.argv,
            f"{LOOPBACK_URL}:{mine.http}{started.health_path}",
            started.environment,
            files=started.files,
            start_s=START_S,
            stop_s=STOP_S,
            family=True,
        )
        place = plan.Place(index, mine, options.engine_roles[index])
        told = {"TOKENPLANE_AGENT__ENGINE": engine.kind.value}
        if options.context_tokens is not None:
            told["TOKENPLANE_AGENT__CONTEXT_TOKENS"] = str(options.context_tokens)
        if started.events:
            told |= plan.event_sockets(mine)
        if place.role is not Role.AGGREGATED:
            told["TOKENPLANE_AGENT__KV_TRANSFER"] = _transfer(
                engine, options, mine
            ).model_dump_json()
        if Path(engine.model).is_absolute():
            told["TOKENPLANE_AGENT__MODEL_DIRECTORY"] = engine.model
        # It waits for its engine, as long as that takes.
        yield replace(plan.agent(options, layout, ports, place, told), start_s=START_S)


def _transfer(engine: Engine, options: ClusterOptions, ports: EnginePorts) -> KvTransfer:
    """How this engine's blocks go to another one, which engines do not tell."""
    match engine.kind:
        case EngineKind.VLLM:
            return KvTransfer(connector=options.connector)
        case EngineKind.TRTLLM:
            return KvTransfer(connector="cache_transceiver")
        case EngineKind.SGLANG:
            return KvTransfer(
                connector="nixl",
                order=HandoffOrder.OVERLAPPED,
                bootstrap=f"127.0.0.1:{ports.kv}",
            )


def _command(
    engine: Engine, options: ClusterOptions, layout: Layout, ports: Ports, index: int
) -> Command:
    role, mine = options.engine_roles[index], ports.engines[index]
    spins = role is not Role.AGGREGATED and options.connector == "nixl" and not engine.accelerated
    spec = EngineSpec(
        model=engine.model,
        served=engine.served,
        ports=launch.EnginePorts(mine.http, mine.events, mine.replay, mine.kv),
        phase=Phase(role.value),
        accelerated=engine.accelerated,
        context_tokens=options.context_tokens,
        block_tokens=options.block_tokens,
        kv_cache_bytes=options.kv_cache_mib << 20 if options.kv_cache_mib else None,
        connector=Connector(options.connector),
        shared_directory=layout.directory / "kv",
        core=index % engine.cores if spins else None,
        extra=tuple(shlex.split(options.engine_args)),
    )
    try:
        return command(engine.kind, engine.program, spec, layout.directory)
    except CannotLaunch as error:
        raise EngineMissing(str(error)) from error
