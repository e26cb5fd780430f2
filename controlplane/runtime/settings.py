"""The settings every process has, and the one way to load any process's settings.

Precedence: flags > environment (`TOKENPLANE_...`, groups joined by `__`) > file (TOML, named by
`--config` or `TOKENPLANE_CONFIG`) > defaults. A process adds its own group:

    class RouterProcess(CommonSettings):
        router: RouterSettings = RouterSettings()

    settings = load(RouterProcess, argv, prog="tokenplane router")

Constructing a settings class in code reads nothing but its arguments; only `load` looks around.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from controlplane.runtime.sources import (
    SettingsError,
    explain,
    from_environment,
    from_file,
    from_flags,
    from_secret_file,
    merge,
    secret_files,
)
from proto.addresses import check_nats, check_no_login
from proto.ids import check_name

__all__ = [
    "AdminSettings",
    "BusSettings",
    "CommandSettings",
    "CommonSettings",
    "Group",
    "HttpSettings",
    "SettingsError",
    "StoreSettings",
    "TelemetrySettings",
    "load",
]

DEVELOPMENT_SECRET = "tokenplane-development"
SECRET_CHARS_MIN = 16


class Group(BaseModel):
    """A group of settings; every service's own group derives from this."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


NatsAddress = Annotated[str, AfterValidator(check_nats)]
EtcdAddress = Annotated[str, AfterValidator(check_no_login)]


class BusSettings(Group):
    """How to reach NATS."""

    servers: tuple[NatsAddress, ...] = Field(
        ("nats://127.0.0.1:4222",), min_length=1, description="NATS servers, URLs"
    )
    connect_s: float = Field(
        10.0,
        gt=0,
        description="seconds the first connection may take; later ones may take for ever",
    )
    replicas: int = Field(
        1,
        ge=1,
        le=5,
        description="servers of a NATS cluster that each durable stream and bucket is kept on",
    )
    user: str | None = Field(None, description="user name")
    password: SecretStr | None = Field(None, description="password; prefer the environment")
    password_file: Path | None = Field(None, description="file that holds the password")
    token: SecretStr | None = Field(None, description="token; prefer the environment")
    credentials: Path | None = Field(None, description="file with a user's JWT and seed")
    ca: Path | None = Field(None, description="PEM file of the authority that signed the servers")
    cert: Path | None = Field(None, description="PEM file of our own certificate, for mutual TLS")
    key: Path | None = Field(None, description="PEM file of our certificate's key")


class StoreSettings(Group):
    """How to reach etcd."""

    endpoints: tuple[EtcdAddress, ...] = Field(
        ("127.0.0.1:2379",), min_length=1, description="etcd endpoints, host:port"
    )
    call_s: float = Field(
        6.0, gt=0, description="seconds a call may take, over all endpoints and attempts"
    )
    user: str | None = Field(None, description="user name")
    password: SecretStr | None = Field(None, description="password; prefer the environment")
    password_file: Path | None = Field(None, description="file that holds the password")
    ca: Path | None = Field(None, description="PEM file of the authority that signed the servers")
    cert: Path | None = Field(None, description="PEM file of our own certificate, for mutual TLS")
    key: Path | None = Field(None, description="PEM file of our certificate's key")


class HttpSettings(Group):
    """How to reach engines whose URLs are https."""

    ca: Path | None = Field(None, description="PEM file of the authority that signed the engines")
    cert: Path | None = Field(None, description="PEM file of our own certificate, for mutual TLS")
    key: Path | None = Field(None, description="PEM file of our certificate's key")


class TelemetrySettings(Group):
    """Traces and logs."""

    otlp_endpoint: str | None = Field(
        None, description="OTLP/HTTP collector, such as http://127.0.0.1:4318; none: no traces"
    )
    sample_ratio: float = Field(
        1.0, ge=0, le=1, description="share of traces begun here that are recorded"
    )
    log_format: Literal["console", "json"] = Field("console", description="how logs are written")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the least severe that is logged"
    )


class AdminSettings(Group):
    """The HTTP port for probes and metrics."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(0, ge=0, le=65535, description="port to listen on; 0 takes a free one")


def _check_cluster(name: str) -> str:
    return check_name(name, "cluster")


ClusterName = Annotated[str, AfterValidator(_check_cluster)]
"""A name that can be part of subjects and keys."""


def _check_secret(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value()) < SECRET_CHARS_MIN:
        raise ValueError(f"the cluster secret needs at least {SECRET_CHARS_MIN} characters")
    return secret


class CommandSettings(BaseSettings):
    """What a command can be told; one that is no process of a cluster derives from this."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    config: Path | None = Field(None, description="TOML file with settings")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments only; `load` brings the other sources."""
        return (init_settings,)


class CommonSettings(CommandSettings):
    """What every process of a cluster must know."""

    cluster: ClusterName = Field(
        "local", description="name of the cluster; part of every subject and key"
    )
    secret: Annotated[SecretStr, AfterValidator(_check_secret)] = Field(
        SecretStr(DEVELOPMENT_SECRET),
        description="secret of the cluster, equal in all its processes; prefer the environment",
    )
    secret_file: Path | None = Field(None, description="file that holds the secret")
    hardware_file: Path | None = Field(
        None, description="TOML with accelerators and prices of your own (docs/hardware.md)"
    )
    nats: BusSettings = Field(BusSettings(), description="How to reach NATS")
    etcd: StoreSettings = Field(StoreSettings(), description="How to reach etcd")
    http: HttpSettings = Field(HttpSettings(), description="How to reach engines")
    telemetry: TelemetrySettings = Field(TelemetrySettings(), description="Traces and logs")
    admin: AdminSettings = Field(AdminSettings(), description="Probes and metrics")
    start_s: float = Field(60.0, gt=0, description="seconds a part may take until it is ready")
    drain_s: float = Field(10.0, ge=0, description="seconds a part may take to finish its work")

    @property
    def secret_bytes(self) -> bytes:
        """The cluster secret as block hashing wants it."""
        return self.secret.get_secret_value().encode()

    @property
    def asks_itself(self) -> bool:
        """True: several services in one process, that ask each other without the way over NATS."""
        return False

    @property
    def development_secret(self) -> bool:
        """True: nobody set a secret, and everybody knows the one in use."""
        return self.secret.get_secret_value() == DEVELOPMENT_SECRET

    @model_validator(mode="after")
    def _no_development_secret_abroad(self) -> CommonSettings:
        addresses = (*self.nats.servers, *self.etcd.endpoints)
        remote = [host_of(address) for address in addresses if not is_loopback(address)]
        if self.development_secret and remote:
            raise ValueError(
                f"no cluster secret is set, and {remote[0]!r} is another machine; "
                "set TOKENPLANE_SECRET or TOKENPLANE_SECRET_FILE, the same in every process"
            )
        return self


def host_of(address: str) -> str:
    """The host of `host:port` or a URL; user and password are no part of it."""
    return urlsplit(address if "://" in address else f"//{address}").hostname or ""


def port_of(address: str) -> int | None:
    """The port of `host:port` or a URL, where it names one."""
    return urlsplit(address if "://" in address else f"//{address}").port


def is_loopback(address: str) -> bool:
    """Whether `host:port` or a URL stays on this machine."""
    host = host_of(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


S = TypeVar("S", bound=CommandSettings)


def load(settings_type: type[S], argv: Sequence[str], *, prog: str = "tokenplane") -> S:
    """The settings of a process or command. Raises `SettingsError`; `--help` prints and exits."""
    flags = from_flags(settings_type, prog, argv)
    environment = from_environment(settings_type)
    sources = [flags, environment]
    path = flags.values.get("config") or environment.values.get("config")
    if path:
        sources.append(from_file(settings_type, path, prog))
    values = merge(sources)
    sources += [from_secret_file(values, place, prog) for place in secret_files(values)]
    try:
        return settings_type(**merge(sources))
    except ValidationError as error:
        # Not chained: the text below says all, and is careful about secrets.
        raise SettingsError(explain(error, settings_type, sources, prog)) from None
