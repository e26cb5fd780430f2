"""What a user may choose of a cluster of one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from controlplane.runtime.settings import ClusterName, CommandSettings
from proto.roles import parse_roles
from proto.workers import Role

SIM_BLOCK_TOKENS, SIM_CONTEXT_TOKENS = 16, 32_768


class ClusterOptions(CommandSettings):
    """What a user may choose of a local cluster."""

    model_config = SettingsConfigDict(cli_kebab_case=True, cli_shortcuts={"engines": "n"})

    name: ClusterName = Field(
        "local", description="name of the cluster; two names can run side by side"
    )
    engine: Literal["sim", "vllm", "sglang", "trtllm"] = Field(
        "sim", description="simulated engines, or real ones (docs/engines.md)"
    )
    engines: int = Field(4, ge=1, le=64, description="how many engines")
    roles: str | None = Field(
        None,
        description="engines by what they do, such as 2P2D: two that prefill, two that decode; A is"
        " for engines that do both; replaces --engines",
    )
    prefill: Literal["cost", "bounds", "remote", "local"] = Field(
        "cost", description="of a split fleet: when another engine prefills, or none does"
    )
    moves: bool = Field(
        False,
        description="let simulated engines that do both parts copy cached prefixes from each other"
        " (docs/transfer.md); those of a split fleet always do",
    )
    planner: bool = Field(
        False, description="let a planner decide how many engines there are, by their latencies"
    )
    engines_max: int = Field(8, ge=1, le=64, description="with --planner: engines, at most")
    routers: int = Field(
        1,
        ge=0,
        le=16,
        description="how many router replicas; 0: each gateway process has a router of its own",
    )
    gateways: int = Field(
        1, ge=1, le=16, description="how many gateway processes share the gateway's port"
    )
    port: int = Field(8000, ge=0, le=65535, description="the gateway's port; 0 takes a free one")
    console_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="the console's port; else the one after the gateway's, or a free one",
    )
    model: str = Field(
        "sim",
        description="simulated engines: the model name that clients ask for; real ones: the "
        "model's directory, or a name that the engine finds it by",
    )
    profile: str = Field(
        "laptop", description="timing of the simulated engines, such as h100 or h200"
    )
    hardware_file: Path | None = Field(
        None, description="TOML with accelerators of your own (docs/hardware.md)"
    )
    speculative_config: str | None = Field(
        None, description="speculative decoding of simulated engines, as JSON (docs/speculation.md)"
    )
    speed: float = Field(1.0, gt=0, description="how many times faster than the profile they run")
    block_tokens: int | None = Field(
        None,
        ge=1,
        le=512,
        description=f"tokens in a KV block; {SIM_BLOCK_TOKENS} for simulated engines, and for real "
        "ones as they like it",
    )
    blocks: int = Field(4096, ge=16, description="KV blocks of each simulated engine")
    context_tokens: int | None = Field(
        None,
        ge=256,
        description=f"longest prompt and answer, in tokens; {SIM_CONTEXT_TOKENS} for simulated "
        "engines, and for real ones the model's",
    )
    engine_program: str | None = Field(
        None, description="what starts a real engine, where it is not on PATH"
    )
    engine_args: str = Field("", description="more words for a real engine's command line")
    kv_cache_mib: int | None = Field(
        None, ge=1, description="KV cache of each real engine, if not as large as it likes"
    )
    connector: Literal["nixl", "shared"] = Field(
        "nixl", description="what moves KV between vLLMs: NIXL, or files in a shared directory"
    )
    policy: str = Field("kv", description="the router's policy")
    decisions_share: float = Field(
        1.0, ge=0, le=1, description="share of the router's decisions that the console is told of"
    )
    otlp: str | None = Field(
        None, description="send traces to this OTLP/HTTP endpoint; else the console keeps the last"
    )
    trace_share: float = Field(1.0, ge=0, le=1, description="share of requests that are traced")
    keep_data: bool = Field(False, description="keep NATS and etcd data of the run before")

    @model_validator(mode="before")
    @classmethod
    def _engines_by_roles(cls, given: dict[str, object]) -> dict[str, object]:
        if not given.get("roles"):
            return given
        count = len(parse_roles(str(given["roles"])))
        if str(given.get("engines", count)) != str(count):
            raise ValueError(f"roles {given['roles']} are {count} engines; leave out --engines")
        return {**given, "engines": count}

    @property
    def engine_roles(self) -> tuple[Role, ...]:
        """What each engine does."""
        if self.roles is None:
            return (Role.AGGREGATED,) * self.engines
        return parse_roles(self.roles)

    @property
    def disaggregated(self) -> bool:
        """Whether blocks go from engine to engine."""
        return self.moves or Role.PREFILL in self.engine_roles

    @model_validator(mode="after")
    def _name_a_model(self) -> ClusterOptions:
        if self.engine != "sim" and self.model == "sim":
            raise ValueError(
                f"--engine {self.engine} needs --model: the model's directory, or a name that the "
                "engine finds it by"
            )
        if self.engine != "sim" and self.planner:
            raise ValueError(
                "--planner starts and stops simulated engines only; plan real ones with"
                " `tokenplane planner` and a scaler of your own"
            )
        return self
