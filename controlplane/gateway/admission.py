"""The door: whose request this is, and whether that tenant may have it served now."""

from __future__ import annotations

import hashlib
import ipaddress
import logging
from collections.abc import Callable
from pathlib import Path

import anyio

from controlplane.gateway.allowance import Allowance, Reservation
from controlplane.gateway.sessions import Sessions
from controlplane.gateway.settings import GatewaySettings
from controlplane.gateway.tenants import ANONYMOUS, BadTenants, Tenant, Tenants, read_tenants
from controlplane.runtime.service import CannotServe

log = logging.getLogger(__name__)

SALT_BYTES = 16
LOOK_S = 2.0
"""How often the tenants' file is looked at for changes."""


class OpenToAll(CannotServe):
    """Without keys a gateway listens on loopback only, unless it is told that this is meant."""


class Admission:
    """Tenants, as their file says at this moment, and what each has left in this process."""

    def __init__(
        self, settings: GatewaySettings, secret: bytes, now_s: Callable[[], float]
    ) -> None:
        """`secret` is the cluster's. Raises `BadTenants` and `OpenToAll`."""
        self._secret = secret
        self._path = settings.tenants
        self._now_s = now_s
        self._tenants: Tenants | None = None
        self._sessions = Sessions()
        self._allowances: dict[str, Allowance] = {}
        if self._path is not None and settings.tenants_in_store:
            raise BadTenants(
                "tenants are in a file or in the store: set one of gateway.tenants and "
                "gateway.tenants_in_store"
            )
        if self._path is not None:
            self._tenants = read_tenants(self._path)
        elif settings.tenants_in_store:
            self._tenants = Tenants({})
        elif not settings.open and not _is_loopback(settings.host):
            raise OpenToAll(
                f"anybody who reaches {settings.host} could use this cluster: give the tenants' "
                "keys with --gateway.tenants FILE or --gateway.tenants_in_store (see `tokenplane "
                "key`), listen on 127.0.0.1, or say --gateway.open if something before the "
                "gateway checks who asks"
            )
        else:
            log.warning("no API keys are configured: whoever reaches %s may ask", settings.host)

    def use(self, tenants: Tenants) -> None:
        """These are the tenants from now on; who has a request under way keeps it."""
        self._tenants = tenants

    def tenant(self, authorization: str) -> Tenant:
        """Whose request it is. Raises `ClientError` (401)."""
        return ANONYMOUS if self._tenants is None else self._tenants.of(authorization)

    def salt(self, tenant: Tenant) -> str:
        """What keeps the tenant's KV blocks apart from all others', "" if they may be shared.

        It cannot be guessed: who sends another's name as his own `cache_salt` hits nothing."""
        if not tenant.private_cache:
            return ""
        key = hashlib.blake2b(self._secret, digest_size=32).digest()
        purpose = f"cache:{tenant.name}".encode()
        return hashlib.blake2b(purpose, key=key, digest_size=SALT_BYTES).hexdigest()

    def reserve(self, tenant: Tenant, tokens: int, session: str = "") -> Reservation:
        """Admit a request that may take so many tokens. Raises `ClientError` (400, 403, 429)."""
        now_s = self._now_s()
        known = self._sessions.admit(tenant, session, tokens, now_s)
        return self._allowance(tenant).reserve(tokens, now_s, known)

    def settle(self, tenant: Tenant, reservation: Reservation, used_tokens: int) -> None:
        """An admitted request has ended and took so many."""
        self._allowances[tenant.name].settle(reservation, used_tokens)

    async def follow(self) -> None:
        """Take over what changes in the file, until cancelled. A file that cannot be used is
        reported, and what was read before stays in force."""
        if self._path is None:
            return
        seen = await _signature(self._path)
        while True:
            await anyio.sleep(LOOK_S)
            found = await _signature(self._path)
            if found == seen:
                continue
            seen = found
            try:
                self._tenants = await anyio.to_thread.run_sync(read_tenants, self._path)
            except BadTenants as error:
                log.error("the tenants stay as they were: %s", error)
            else:
                log.info("%d tenants are known now", len(self._tenants.by_name))

    def _allowance(self, tenant: Tenant) -> Allowance:
        """A tenant's, by its limits as they are now."""
        now_s = self._now_s()
        allowance = self._allowances.get(tenant.name)
        if allowance is None:
            allowance = self._allowances[tenant.name] = Allowance(tenant, now_s)
        allowance.adopt(tenant, now_s)
        return allowance


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _signature(path: Path) -> tuple[float, int]:
    try:
        found = await anyio.Path(path).stat()
    except OSError:
        return (0.0, 0)
    return (found.st_mtime, found.st_size)
