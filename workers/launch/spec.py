"""What is asked of an engine, and the command that comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class EngineKind(StrEnum):
    """The real engines; their names are those of `agent.engine`."""

    VLLM = "vllm"
    SGLANG = "sglang"
    TRTLLM = "trtllm"


class Phase(StrEnum):
    """Which part of a request an engine serves."""

    AGGREGATED = "aggregated"
    PREFILL = "prefill"
    DECODE = "decode"


class Connector(StrEnum):
    """What moves KV between two vLLMs."""

    NIXL = "nixl"
    SHARED = "shared"
    """A directory that both see: slow, without native parts, for tests."""


class CannotLaunch(Exception):
    """The engine cannot be started as asked; says what to do, in one line."""


@dataclass(frozen=True)
class EnginePorts:
    """Where an engine listens; each port belongs to it alone."""

    http: int
    events: int
    """KV events. Where there are several data-parallel ranks, each adds its rank to this."""
    replay: int
    """KV events again, from a number on; ranks as above."""
    side: int
    """Where prefill and decode engines meet: NIXL's side channel, SGLang's bootstrap server."""


@dataclass(frozen=True)
class EngineSpec:
    """One engine to start."""

    model: str
    """A directory, or a name that the engine can resolve."""
    served: str
    """What clients call it."""
    ports: EnginePorts
    phase: Phase = Phase.AGGREGATED
    host: str = "127.0.0.1"
    accelerated: bool = True
    """False: on a CPU, which of the three only vLLM can."""
    context_tokens: int | None = None
    block_tokens: int | None = None
    """None: as the engine likes it best."""
    kv_cache_bytes: int | None = None
    """Of one engine; None: as the engine likes it best."""
    ranks: int = 1
    """Data-parallel."""
    connector: Connector = Connector.NIXL
    shared_directory: Path | None = None
    lease_s: int | None = None
    """For how long blocks are kept for a decode engine; None: as the engine likes it best."""
    core: int | None = None
    """Keep the engine on this core: NIXL's progress thread spins, and two that share a core halt
    each other for seconds."""
    extra: tuple[str, ...] = ()
    """More of the engine's own words, last."""


@dataclass(frozen=True)
class Command:
    """What to run. `files` are to be written first; paths in them are absolute."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[Path, str] = field(default_factory=dict)
    health_path: str = "/health"
    """A GET of it answers 200 once the engine serves."""
    events: bool = True
    """It will publish KV events on its events and replay ports."""
