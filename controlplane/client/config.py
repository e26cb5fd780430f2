"""Live settings of a cluster: read, changed, and watched."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from difflib import get_close_matches

from controlplane.gateway.settings import GatewaySettings
from controlplane.planner.settings import PlannerSettings
from controlplane.router.settings import RouterSettings
from controlplane.runtime.asking import ask_settings
from controlplane.runtime.live import BadSetting, layered, live_names
from controlplane.runtime.settings import Group
from controlplane.transfer.settings import TransferSettings
from proto.live import SettingsTold
from proto.subjects import Keys, Subjects
from proto.wire.ports import Bus, Deleted, Put, Store

GROUPS: Mapping[str, Group] = {
    "gateway": GatewaySettings(),
    "planner": PlannerSettings(),
    "router": RouterSettings(),
    "transfer": TransferSettings(),
}
"""Groups of which some settings may change while a process runs."""


@dataclass(frozen=True)
class Change:
    """A live setting has been set, or (None) is no longer."""

    name: str
    value: str | None
    """JSON."""


class Config:
    """What `tokenplane config` does."""

    def __init__(self, bus: Bus, store: Store, cluster: str) -> None:
        self._bus = bus
        self._store = store
        self._keys = Keys(cluster)
        self._subjects = Subjects(cluster)

    async def all(self) -> dict[str, str]:
        """What is set, as JSON by name; everything else is as each process was started."""
        entries = await self._store.list(self._keys.config)
        return {e.key.removeprefix(self._keys.config): e.value.decode() for e in entries}

    async def get(self, name: str) -> str | None:
        """One of these. Raises `BadSetting` if there is no such live setting."""
        _, _ = named(name)
        entry = await self._store.get(self._keys.config_of(name))
        return entry.value.decode() if entry else None

    async def set(self, name: str, value: object) -> None:
        """Change a setting in every process that has it, now and for those that start later.
        Raises `BadSetting`, and writes nothing, if it would make no sense to them."""
        group, setting = named(name)
        prefix = self._keys.config_of(f"{group}.")
        said = {e.key.removeprefix(prefix): e.value for e in await self._store.list(prefix)}
        changed, refused = layered(GROUPS[group], {**said, setting: json.dumps(value).encode()})
        if setting in refused:
            raise BadSetting(f"{name} cannot be {value!r}: {refused[setting]}")
        kept = changed.model_dump(mode="json")[setting]
        try:
            told = json.dumps(kept, allow_nan=False)
        except ValueError:
            raise BadSetting(f"{name} cannot be {value!r}: it must be a number") from None
        await self._store.put(self._keys.config_of(name), told.encode())

    async def unset(self, name: str) -> bool:
        """Let every process go back to what it was started with; False if it was not set."""
        named(name)
        return await self._store.delete(self._keys.config_of(name))

    async def told(self, wait_s: float = 0.5) -> list[SettingsTold]:
        """What each process says is on."""
        return await ask_settings(self._bus, self._subjects, wait_s)

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[AsyncIterator[Change]]:
        """What is set, then every change."""
        async with self._store.watch(self._keys.config) as events:

            async def each() -> AsyncIterator[Change]:
                async for event in events:
                    match event:
                        case Put(entry):
                            name = entry.key.removeprefix(self._keys.config)
                            yield Change(name, entry.value.decode())
                        case Deleted(key):
                            yield Change(key.removeprefix(self._keys.config), None)

            yield each()


def named(name: str) -> tuple[str, str]:
    """Group and setting. Raises `BadSetting` if there is no such live setting."""
    group, _, setting = name.partition(".")
    if group in GROUPS and setting in live_names(type(GROUPS[group])):
        return group, setting
    if group in GROUPS and setting in type(GROUPS[group]).model_fields:
        raise BadSetting(
            f"{name} cannot change while a process runs: set it where the process is started, and"
            " restart it"
        )
    known = [f"{g}.{n}" for g, base in GROUPS.items() for n in live_names(type(base))]
    close = get_close_matches(name, known, n=1)
    meant = f"; did you mean {close[0]}?" if close else ""
    raise BadSetting(f"{name} is no live setting{meant} `tokenplane config list --all` has them")


def parsed(text: str) -> object:
    """A value as people type it: JSON, or else just a word."""
    try:
        value: object = json.loads(text)
    except ValueError:
        return text
    return value
