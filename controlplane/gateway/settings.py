"""The gateway's own settings."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from controlplane.runtime.live import LIVE
from controlplane.runtime.settings import Group
from proto.engine_choice import DEFAULT_RULES, EngineRule


class GatewaySettings(Group):
    """Where the gateway listens and how long it waits for whom."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    shared: bool = Field(
        False, description="share the port with other gateway processes that say so, too"
    )
    own_router: bool = Field(
        False,
        description="decide in this process, with a router of its own that also answers others,"
        " instead of asking one over NATS",
    )
    cert: Path | None = Field(None, description="PEM file of our certificate: HTTPS, not HTTP")
    key: Path | None = Field(None, description="PEM file of our certificate's key")
    client_ca: Path | None = Field(
        None, description="PEM file of an authority; only clients whom it signed may connect"
    )
    tenants: Path | None = Field(
        None, description="TOML file of tenants and the hashes of their keys; none: whoever asks"
    )
    tenants_in_store: bool = Field(
        False, description="tenants and the hashes of their keys are in etcd, for all gateways"
    )
    open: bool = Field(
        False, description="serve without keys on other addresses than loopback, too"
    )
    body_bytes_max: int = Field(
        32 << 20, ge=1024, description="longest request body; longer ones get a 413"
    )
    route_s: float = Field(
        2.0,
        gt=0,
        json_schema_extra=LIVE,
        description="how long routers may take to answer: after half of it another one is asked,"
        " after all of it the gateway chooses by itself",
    )
    blind_s: float = Field(
        3_600.0,
        ge=0,
        json_schema_extra=LIVE,
        description="how long the gateway chooses by itself from a view that the registry does not"
        " feed; after that requests are refused until a router or the registry is back",
    )
    engine_rules: tuple[EngineRule, ...] = Field(
        DEFAULT_RULES,
        description="which engine for which work while no router answers, as JSON: as in"
        " router.engine_rules (docs/router.md)",
    )
    queue_s: float = Field(
        30.0,
        ge=0,
        json_schema_extra=LIVE,
        description="how long a request may wait for a worker that is not busy",
    )
    ticket_s: float = Field(
        3.0,
        gt=0,
        description="how long the transfer coordinator may take to grant a ticket; then the decode"
        " worker prefills by itself",
    )
    fetch_s: float = Field(
        2.0,
        ge=0,
        description="how long a request may wait for its worker to fetch some of the prompt from"
        " another one, where that is predicted to be quicker than computing it; 0: not at all",
    )
    connect_s: float = Field(
        2.0, gt=0, json_schema_extra=LIVE, description="how long an engine may take to accept"
    )
    first_token_s: float = Field(
        120.0,
        gt=0,
        json_schema_extra=LIVE,
        description="how long an engine may take to its first byte",
    )
    gap_s: float = Field(
        30.0,
        gt=0,
        json_schema_extra=LIVE,
        description="how long an engine may be silent in the middle of an answer",
    )
    total_s: float = Field(
        1800.0, gt=0, json_schema_extra=LIVE, description="how long a request may take altogether"
    )
    stuck_s: float = Field(
        10.0,
        gt=0,
        json_schema_extra=LIVE,
        description="a worker none of whose streams moves for so long is probed, and gets nothing"
        " new until it answers",
    )
    probe_s: float = Field(
        5.0,
        gt=0,
        json_schema_extra=LIVE,
        description="how long a worker may take to answer a probe",
    )
    stall_s: float = Field(
        30.0, gt=0, description="how long a client may not read; then its request is cancelled"
    )
    attempts_max: int = Field(
        3,
        ge=1,
        json_schema_extra=LIVE,
        description="workers tried for one request, before its first byte",
    )
    pool_requests_max: int = Field(
        4096,
        ge=1,
        json_schema_extra=LIVE,
        description="requests of one model under way at once in this process",
    )
    retry_share: float = Field(
        0.2,
        ge=0,
        le=1,
        json_schema_extra=LIVE,
        description="retries allowed, as a share of requests: more would double"
        " the load of a fleet that is failing already",
    )
    migrations_max: int = Field(
        2,
        ge=0,
        json_schema_extra=LIVE,
        description="times a started answer may go on with another engine; 0: never",
    )
    migration_tokens_max: int = Field(
        8192,
        ge=1,
        json_schema_extra=LIVE,
        description="longer answers than this are not remembered, and cannot go on",
    )
    inhibit_s: float = Field(
        5.0,
        ge=0,
        json_schema_extra=LIVE,
        description="a worker that failed a request is left alone for so long",
    )
    alive_s: float = Field(
        5.0,
        gt=0,
        json_schema_extra=LIVE,
        description="how often routers are told that a long answer still runs",
    )
    answers_kept_s: float = Field(
        300.0, ge=0, description="how long an answer may be had again by its idempotency key"
    )
    answers_bytes_max: int = Field(
        64 << 20, ge=0, description="memory for such answers; the oldest go first"
    )
    records_waiting_max: int = Field(
        4096, ge=1, description="request records that may wait to be stored; then they are dropped"
    )
