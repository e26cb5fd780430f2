"""Tenants in the registry's store: the same for every gateway of a cluster, changed at once.

`/tp/<cluster>/tenants/<name>` holds what a table of the tenants' file would, as JSON. While the
store is away the last known tenants stay in force.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from anyio.abc import TaskStatus
from pydantic import ValidationError

from controlplane.gateway.tenants import BadTenants, Tenant, Tenants
from proto.subjects import Keys
from proto.wire.ports import Deleted, Put, Stale, Store, Synced

log = logging.getLogger(__name__)


class Directory:
    """Follows the store; gives every whole set of tenants to `use`."""

    def __init__(self, store: Store, keys: Keys, use: Callable[[Tenants], None]) -> None:
        self._store = store
        self._prefix = keys.tenants
        self._use = use
        self._known: dict[str, Tenant] = {}
        self._told: dict[str, Tenant] = {}

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Follow until cancelled; ready once all tenants are known."""
        live = started = False
        async with self._store.watch(self._prefix) as events:
            async for event in events:
                match event:
                    case Put(entry):
                        self._put(entry.key.removeprefix(self._prefix), entry.value)
                    case Deleted(key):
                        self._known.pop(key.removeprefix(self._prefix), None)
                    case Stale(reason):
                        live = False
                        log.warning("the store is away (%s); tenants stay as they were", reason)
                    case Synced():
                        live = True
                if live:
                    self._tell()
                    if not started:
                        started = True
                        log.info("%d tenants are known", len(self._known))
                        task_status.started()

    def _put(self, name: str, value: bytes) -> None:
        """A tenant that cannot be read stays as it was; one that never could, is not let in."""
        try:
            tenant = Tenant.model_validate_json(value)
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            log.error("tenant %s in the store cannot be used: %s: %s", name, where, first["msg"])
        else:
            self._known[name] = tenant.model_copy(update={"name": name})

    def _tell(self) -> None:
        """Whatever is wrong with some of them, who is no longer to be let in is not."""
        try:
            tenants = Tenants(self._known)
        except BadTenants as error:
            log.error("neither tenants nor keys are added until this is put right: %s", error)
            tenants = Tenants(_of_both(self._told, self._known))
        self._told = tenants.by_name
        self._use(tenants)


def _of_both(before: Mapping[str, Tenant], now: Mapping[str, Tenant]) -> dict[str, Tenant]:
    """Tenants as they are now, with those of their keys that they had before."""
    return {
        name: tenant.model_copy(
            update={"keys": tuple(key for key in tenant.keys if key in before[name].keys)}
        )
        for name, tenant in now.items()
        if name in before
    }
