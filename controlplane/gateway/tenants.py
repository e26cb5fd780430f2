"""Who may ask, and what they may use: tenants and their API keys.

Keys are random and long, so a plain SHA-256 is all that is kept of one: whoever reads the file
cannot ask with it. A key is looked up by its hash and then compared in constant time, so answers
take equally long whatever is wrong with a key.

    [tenants.acme]
    keys = ["sha256:9f86d081..."]      # `tokenplane key acme` makes one
    tokens_per_minute = 1_000_000
    slo_class = "interactive"
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from controlplane.gateway.openai import ClientError
from controlplane.runtime.service import CannotServe
from proto.ids import check_name

KEY_PREFIX = "tp-"
KEY_BYTES = 32
BEARER = "bearer "

KeyHash = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


def _name(value: str) -> str:
    return check_name(value, "tenant")


class Tenant(BaseModel):
    """One customer of the cluster. A limit of None is none."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: Annotated[str, AfterValidator(_name)] = "anonymous"
    keys: tuple[KeyHash, ...] = ()
    slo_class: str = ""
    """What routers and the planner know its requests by; a request may not choose another."""
    priority: int = Field(default=0, ge=-100, le=100)
    """Greater goes first where requests must wait."""
    concurrent_max: int | None = Field(default=None, ge=1)
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Prompt and output tokens together."""
    session_requests_max: int | None = Field(default=None, ge=1)
    session_tokens_max: int | None = Field(default=None, ge=1)
    session_seconds_max: float | None = Field(default=None, gt=0)
    """What each session that a client names may take altogether."""
    private_cache: bool = False
    """Nobody else's requests may hit its KV blocks, nor its requests theirs."""
    tolerations: tuple[str, ...] = ()
    """Taints of workers that its requests may go to all the same."""
    pins: bool = False
    """Its requests may name the workers that they want."""

    @property
    def limits_sessions(self) -> bool:
        return (
            self.session_requests_max is not None
            or self.session_tokens_max is not None
            or self.session_seconds_max is not None
        )

    @property
    def sees_overlap(self) -> bool:
        """Whether answers may say how much of a prompt was cached: not where that may be what
        another tenant has asked before."""
        return self.private_cache or self is ANONYMOUS


ANONYMOUS = Tenant(pins=True)
"""Everybody, where no tenants are configured."""


class BadTenants(CannotServe):
    """The tenants' file cannot be used; says where and why."""


class Tenants:
    """Tenants by key."""

    def __init__(self, tenants: Mapping[str, Tenant]) -> None:
        """Raises `BadTenants` if two have one key."""
        self.by_name = dict(tenants)
        self._by_hash: dict[str, Tenant] = {}
        for tenant in tenants.values():
            for key in tenant.keys:
                other = self._by_hash.setdefault(key, tenant)
                if other is not tenant:
                    raise BadTenants(f"tenants {other.name} and {tenant.name} have the same key")

    def of(self, authorization: str) -> Tenant:
        """Whose key an `Authorization` header bears. Raises `ClientError` (401)."""
        if authorization[: len(BEARER)].lower() != BEARER:
            raise _unauthorised("no API key was given; send 'Authorization: Bearer KEY'")
        presented = key_hash(authorization[len(BEARER) :].strip())
        tenant = self._by_hash.get(presented)
        known = next((key for key in tenant.keys if key == presented), "") if tenant else ""
        if tenant is None or not hmac.compare_digest(known, presented):
            raise _unauthorised("this API key is not known here")
        return tenant


def read_tenants(path: Path) -> Tenants:
    """Tenants from a TOML file. Raises `BadTenants`."""
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadTenants(f"tenants cannot be read from {path}: {error}") from error
    tables = content.get("tenants")
    if not isinstance(tables, dict) or not tables:
        raise BadTenants(f"{path} has no [tenants.NAME] table")
    tenants = {}
    for name, table in tables.items():
        try:
            tenants[name] = Tenant.model_validate({**dict(table), "name": name})
        except (ValidationError, TypeError, ValueError) as error:
            raise BadTenants(f"{path}: tenants.{name}: {_first(error)}") from error
    if not any(tenant.keys for tenant in tenants.values()):
        raise BadTenants(f"no tenant in {path} has a key: nobody could ask; try `tokenplane key`")
    return Tenants(tenants)


def new_key() -> str:
    """A key to be shown once; keep its `key_hash`."""
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def key_hash(key: str) -> str:
    """What is kept of a key."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def _unauthorised(message: str) -> ClientError:
    return ClientError(401, message, code="invalid_api_key")


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)
