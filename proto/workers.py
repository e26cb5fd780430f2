"""Registry records: what etcd holds about workers and models. Read by people too, hence JSON."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from proto.ids import WorkerId
from proto.numbers import COUNT_MAX, SPAN_MAX, Count, Life, Span

Text = Annotated[str, StringConstraints(min_length=1, max_length=512)]

PROBE_PROMPT = "Are you there?"
"""What a worker is asked to see whether it answers. Of more tokens than one: vLLM with its example
of a KV connector dies of those that have one."""


class Role(StrEnum):
    """Which phase a worker serves."""

    AGGREGATED = "aggregated"
    PREFILL = "prefill"
    DECODE = "decode"


class HandoffOrder(StrEnum):
    """How a prefill engine passes its blocks on."""

    PREFILL_FIRST = "prefill_first"
    """It prefills, says where the blocks lie and keeps them; the decode engine is asked then, and
    fetches them (vLLM, TensorRT-LLM)."""
    OVERLAPPED = "overlapped"
    """Both are asked at once and meet by themselves (SGLang)."""


class WorkerState(StrEnum):
    """Only `READY` workers are chosen; a draining one finishes what it has."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    UNHEALTHY = "unhealthy"


class Record(BaseModel):
    """Unknown fields are ignored, so that newer writers and older readers get along."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Hardware(Record):
    """What the worker runs on; labels steer pairing and capacity, never a hard-coded table."""

    profile: Text = "unknown"
    """For example `h100-sxm`; the key of capacity models and prices."""
    accelerators: Count = 1
    topology: dict[str, str] = {}
    """Labels from wide to narrow, such as zone, rack, host, nvlink_domain."""
    precision: str = ""
    """What the engine multiplies in, such as `bf16` or `fp8`."""
    memory_gb: Span = 0.0
    """Of one accelerator, as are the next; 0: not known."""
    bandwidth_gb_s: Span = 0.0
    """To its own memory."""
    nvlink_accelerators: int = Field(default=1, ge=1, le=COUNT_MAX)
    """How many share its NVLink domain, which the label `nvlink_domain` names."""
    moe: bool = False
    """The deployment spreads the experts of a mixture over its accelerators."""
    weights_gb: Span = 0.0
    """Of all accelerators' memory, what the model takes; 0: not known."""
    price_per_hour: Span | None = None
    """Dollars for all its accelerators; None: nobody said."""


class KvTransfer(Record):
    """How an engine's KV blocks can go to another engine, as its agent declares it.

    Two engines that differ in any of the first five cannot pass blocks to each other.
    """

    connector: Text
    """What moves the bytes, such as `nixl`."""
    order: HandoffOrder = HandoffOrder.PREFILL_FIRST
    dtype: Text = "auto"
    """Of the KV cache."""
    layout: Text = "default"
    tensor_parallel: int = Field(default=1, ge=1, le=COUNT_MAX)
    transforms_parallelism: bool = False
    """It can read blocks of an engine with another degree of tensor parallelism."""
    block_bytes: Count = 0
    """Of one block, over all layers and ranks; 0: not known."""
    lease_s: float = Field(default=30.0, gt=0, le=SPAN_MAX)
    """For how long it keeps blocks that nobody has fetched yet."""
    bootstrap: str = ""
    """`host:port` where a decode engine meets it, where both run at once."""
    copies: bool = False
    """It can be told to offer what it caches to another engine, and to fetch such an offer."""


class WorkerRecord(Record):
    """One routing target, registered by its agent under the agent's lease."""

    worker: WorkerId
    incarnation: Life
    """Of the agent; its KV batches and load reports carry the same."""
    model: Text
    engine: Text
    """`vllm`, `sglang`, `trtllm` or `sim`."""
    engine_version: str = ""
    url: Text
    """Where a gateway reaches the engine, for example `http://10.0.0.7:8000`."""
    role: Role = Role.AGGREGATED
    state: WorkerState = WorkerState.STARTING
    block_tokens: int = Field(ge=1, le=1024)
    total_blocks: Count
    max_batched_tokens: int = Field(default=8192, ge=1, le=COUNT_MAX)
    max_running: int = Field(default=256, ge=1, le=COUNT_MAX)
    kv_events: bool = True
    """False: the engine tells nothing of its cache; a router may only guess from its own words."""
    hardware: Hardware = Hardware()
    taints: tuple[str, ...] = ()
    """Only requests that tolerate all of these come here."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters of the model that the engine has, by the names that it serves them by."""
    loads_adapters: bool = False
    """The engine loads an adapter that it does not have when it is asked for it."""
    capabilities: tuple[str, ...] = ()
    """What the engine can do that others cannot, such as `guided_decoding`, as declared."""
    transfer: KvTransfer | None = None
    """None: its KV blocks stay where they are."""
    agent_version: str = ""
    secret_mark: str = ""
    """`proto.hashing.secret_mark` of the agent's cluster secret."""


class WorkersRequest(Record):
    """Who is there? Empty fields match everything."""

    model: str = ""


class WorkersReply(Record):
    """The registry's present view; `stale` when the store is out of reach."""

    workers: tuple[WorkerRecord, ...]
    stale: bool = False


class ModelCard(Record):
    """What a gateway must know to speak for a model; every agent of the model writes the same."""

    name: Text
    context_tokens: int = Field(ge=1, le=COUNT_MAX)
    tokenizer_json: str | None = None
    """The Hugging Face tokenizer itself, where it is small enough for the registry."""
    tokenizer_path: str | None = None
    """Else the file, which the gateway must be able to read."""
    chat_template: str | None = None
    special_tokens: dict[str, str] = {}
    """`bos_token`, `eos_token` and the like, as the chat template expects them."""
