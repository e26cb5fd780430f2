"""The settings of an agent."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from agents.adapters.vllm import MAX_BATCHED_TOKENS, MAX_RUNNING
from agents.canary import CanaryPolicy
from agents.speculation import DraftPolicy
from controlplane.runtime.settings import CommonSettings, Group
from proto.ids import WorkerId, check_name
from proto.numbers import COUNT_MAX, SPAN_MAX
from proto.workers import KvTransfer


def _check_worker(name: str) -> WorkerId:
    return WorkerId(check_name(name, "worker"))


def _check_url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError("an engine's URL begins with http:// or https://")
    return url.rstrip("/")


def _check_endpoint(endpoint: str) -> str:
    if "://" not in endpoint or "*" in endpoint:
        raise ValueError(
            f"{endpoint} is not an address to connect to, such as tcp://127.0.0.1:5557"
            " (with tcp://*:5557 an engine listens on every address)"
        )
    return endpoint


Url = Annotated[str, AfterValidator(_check_url)]
Endpoint = Annotated[str, AfterValidator(_check_endpoint)]
"""A ZeroMQ socket of the engine."""


class AgentSettings(Group):
    """One engine, and how its agent follows it."""

    worker: Annotated[str, AfterValidator(_check_worker)] = Field(
        description="name of this worker, unique in the cluster and the same after a restart"
    )
    engine: Literal["vllm", "sglang", "trtllm", "sim"] = Field(
        "vllm", description="which engine it is; the simulated one speaks vLLM's dialect"
    )
    engine_url: Url = Field(description="where the agent reaches the engine over HTTP")
    public_url: Url | None = Field(
        None, description="where gateways reach it, if that is not engine_url"
    )
    events: Endpoint | None = Field(
        None,
        description="ZeroMQ endpoint of the engine's KV events, such as tcp://127.0.0.1:5557; "
        "without it routers can only guess what the engine caches",
    )
    replay: Endpoint | None = Field(
        None,
        description="ZeroMQ endpoint where the engine replays KV events; without it whatever was "
        "cached before the agent came, or was lost on the way, stays unknown",
    )
    kv_events: bool = Field(True, description="follow the engine's KV events, where it has any")
    trust_version: bool = Field(
        False,
        description="follow the KV events of a release of the engine that is not among those"
        " known (docs/engines.md)",
    )
    rank: int | None = Field(
        None, ge=0, description="data-parallel rank this worker stands for, if there are several"
    )
    role: Literal["aggregated", "prefill", "decode"] = Field(
        "aggregated", description="which phase the engine serves"
    )
    kv_transfer: KvTransfer | None = Field(
        None,
        description="how the engine's KV connector was set up, as JSON: connector, dtype, layout,"
        " tensor_parallel, block_bytes, lease_s; without it its blocks stay where they are (the"
        " simulated engine tells by itself)",
    )
    model_directory: str | None = Field(
        None, description="where the tokenizer lies, if not where the engine says its model is"
    )
    context_tokens: int | None = Field(
        None,
        ge=1,
        le=COUNT_MAX,
        description="longest prompt and answer; only TensorRT-LLM does not tell it",
    )
    max_batched_tokens: int = Field(
        MAX_BATCHED_TOKENS,
        ge=1,
        le=COUNT_MAX,
        description="tokens of one engine step, as the engine was started",
    )
    max_running: int = Field(
        MAX_RUNNING,
        ge=1,
        le=COUNT_MAX,
        description="requests the engine runs at once, as it was started",
    )
    hardware: str = Field(
        "unknown",
        description="hardware profile, such as h100 or h100-pcie: the key of capacity models; what"
        " is known of an accelerator of that name is registered, too (docs/hardware.md)",
    )
    precision: str = Field("", description="what the engine multiplies in, such as bf16 or fp8")
    moe: bool = Field(False, description="the engine spreads experts over its accelerators")
    weights_gb: float = Field(
        0.0,
        ge=0,
        le=SPAN_MAX,
        description="what the model takes of all accelerators' memory; 0: not known",
    )
    price_per_hour: float | None = Field(
        None,
        ge=0,
        le=SPAN_MAX,
        description="dollars for all its accelerators, if not as the catalogue has it",
    )
    accelerators: int = Field(
        1, ge=0, le=COUNT_MAX, description="how many accelerators the engine uses"
    )
    topology: dict[str, str] = Field(
        {}, description="labels from wide to narrow, such as zone, rack, host"
    )
    taints: tuple[str, ...] = Field((), description="only requests that tolerate these come here")
    loads_adapters: bool = Field(
        False,
        description="the engine loads a LoRA adapter that it does not have when it is asked for"
        " it, as vLLM does with a LoRA resolver plug-in",
    )
    capabilities: tuple[str, ...] = Field(
        (),
        description="what the engine can do that rules of routers may need, such as"
        " guided_decoding",
    )
    draft_acceptance_min: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of speculative drafts kept, below which they are not worth it",
    )
    draft_batch_max: float = Field(
        128.0,
        ge=0,
        description="sequences decoded in a step above which drafts are not worth it; 0: no limit",
    )
    draft_retry_s: float = Field(
        60.0,
        gt=0,
        description="seconds until drafts that were poor are tried again; doubles each time",
    )
    draft_cost: float = Field(
        0.08, ge=0, description="what a draft's step takes of the engine's, for what is expected"
    )
    draft_trial_s: float = Field(
        0.0,
        ge=0,
        description="try drafts: on and off in turn, for so many seconds each, and then keep them"
        " or give them up (docs/speculation.md); 0: no trial",
    )
    draft_switch: bool = Field(
        True,
        description="switch drafts off and on where the engine allows it; else only say so",
    )
    load_interval_s: float = Field(
        0.25,
        gt=0,
        le=10,
        description="seconds between load reports; longer leaves routers to their own guesses, "
        "shorter costs the engine a scrape of its metrics each time",
    )
    misses_max: int = Field(
        4, ge=1, description="unanswered polls in a row after which the engine counts as unhealthy"
    )
    evacuate_s: float = Field(
        30.0,
        ge=0,
        description="how long a worker that drains stays for what it caches to be moved to others,"
        " where its engine can do that; 0: it is not moved",
    )
    retry_s: float = Field(
        1.0, gt=0, description="seconds between attempts to reach an engine that is not there"
    )

    @property
    def draft_policy(self) -> DraftPolicy:
        """When drafts are worth it."""
        return DraftPolicy(
            self.draft_acceptance_min, self.draft_batch_max, self.draft_retry_s, self.draft_cost
        )

    @property
    def canary_policy(self) -> CanaryPolicy:
        """How drafts are tried."""
        return CanaryPolicy(self.draft_trial_s)


class AgentProcess(CommonSettings):
    """All settings of an agent's process."""

    # An empty default is refused like an empty group: naming each setting that must be there.
    agent: AgentSettings = Field(
        default_factory=dict,
        validate_default=True,
        description="One engine, and how its agent follows it",
    )
