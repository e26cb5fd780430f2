"""Live settings: those that may change while a process runs, followed in the store.

A group marks them (`json_schema_extra=LIVE`), and a process gives the groups that it has:

    live = LiveSettings("router-7f3a", store, bus, keys, subjects, clock)
    live.follow("router", settings.router, core.adopt)

What is in the store under `/tp/<cluster>/config/router.policy` wins over what the process was
started with, for as long as it is there. A value that does not validate, alone or together with
the others, is refused and told, and the process goes on as before.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import anyio
from anyio.abc import TaskStatus
from pydantic import ValidationError
from pydantic.config import JsonDict

from controlplane.runtime.settings import Group
from controlplane.runtime.version import VERSION
from proto.codec import Producer, Reader, Unreadable
from proto.ids import ServiceId, new_incarnation
from proto.live import SettingsQuestion, SettingsTold
from proto.subjects import Keys, Subjects
from proto.wire.errors import BusError
from proto.wire.ports import (
    Bus,
    Deleted,
    Endpoint,
    Message,
    Put,
    ServiceInfo,
    Stale,
    Store,
    Synced,
)

log = logging.getLogger(__name__)

LIVE: JsonDict = {"live": True}
"""`json_schema_extra` of a setting that a running process can change."""

G = TypeVar("G", bound=Group)


class BadSetting(Exception):
    """A live setting cannot be what it was to be; says which, why, and what to do."""


def live_names(group: type[Group]) -> list[str]:
    """Settings of a group that may change while a process runs."""
    return [name for name, field in group.model_fields.items() if field.json_schema_extra == LIVE]


def layered(base: G, said: Mapping[str, bytes]) -> tuple[G, dict[str, str]]:
    """`base` with what the store says over it, in the order of names; and what of it was refused,
    and why."""
    wanted, changes, refused = base, dict[str, Any](), dict[str, str]()
    for name, value in sorted(said.items()):
        try:
            if name not in live_names(type(base)):
                raise BadSetting("this process cannot change it while it runs")
            changes[name] = json.loads(value)
            wanted = _changed(base, changes)
        except (BadSetting, ValueError) as error:
            changes.pop(name, None)
            refused[name] = str(error)
    return wanted, refused


def _changed(base: G, changes: Mapping[str, Any]) -> G:
    try:
        return type(base).model_validate({**base.model_dump(), **changes})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BadSetting(first["msg"].removeprefix("Value error, ")) from None


class _Followed(Generic[G]):
    """One group of a process."""

    def __init__(self, group: str, base: G, adopt: Callable[[G], None]) -> None:
        self.group = group
        self.base = base
        self.current = base
        self.refused: dict[str, str] = {}
        self._adopt = adopt
        self._said: dict[str, bytes] = {}

    def put(self, name: str, value: bytes) -> None:
        """The store says what a setting is to be."""
        self._said[name] = value
        self._apply()

    def delete(self, name: str) -> None:
        """The store says nothing of it any more."""
        self._said.pop(name, None)
        self._apply()

    @property
    def overridden(self) -> list[str]:
        """What is on because the store says so."""
        return sorted(self._said.keys() - self.refused.keys())

    def values(self) -> dict[str, str]:
        """All live settings as they are on, as JSON."""
        on = self.current.model_dump(mode="json")
        return {
            f"{self.group}.{name}": json.dumps(on[name]) for name in live_names(type(self.base))
        }

    def _apply(self) -> None:
        wanted, refused = layered(self.base, self._said)
        for name in refused.keys() - self.refused.keys():
            log.warning("refusing the live setting %s.%s: %s", self.group, name, refused[name])
        self.refused = refused
        if wanted != self.current:
            self._tell(wanted)
            self.current = wanted
            self._adopt(wanted)

    def _tell(self, wanted: G) -> None:
        for name in live_names(type(self.base)):
            before, after = getattr(self.current, name), getattr(wanted, name)
            if before != after:
                log.info("%s.%s is %r now, was %r", self.group, name, after, before)


class LiveSettings:
    """A service: follows the store, and answers which settings are on.

    Ready after the first full read, so that nothing is decided by settings that have been replaced.
    """

    name = "live-settings"

    def __init__(
        self,
        service: ServiceId,
        store: Store,
        bus: Bus,
        keys: Keys,
        subjects: Subjects,
        clock: Callable[[], float],
        *,
        kind: str = "",
    ) -> None:
        """`kind` names the process in `nats micro ls`, where it has no other endpoint."""
        self._service = service
        self._kind = kind
        self._store = store
        self._bus = bus
        self._prefix = keys.config
        self._subjects = subjects
        self._groups: dict[str, _Followed[Any]] = {}
        self._producer = Producer(service, new_incarnation(clock()), clock)

    def follow(self, group: str, base: G, adopt: Callable[[G], None]) -> None:
        """Call `adopt` with the whole group whenever one of its live settings has changed."""
        self._groups[group] = _Followed(group, base, adopt)

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Follow and answer until cancelled. A store that is away changes nothing."""
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._answer)
            if self._kind:
                await tasks.start(self._be_known)
            known = False
            async with self._store.watch(self._prefix) as events:
                async for event in events:
                    match event:
                        case Put(entry):
                            if found := self._group(entry.key):
                                found[0].put(found[1], entry.value)
                        case Deleted(key):
                            if found := self._group(key):
                                found[0].delete(found[1])
                        case Synced():
                            if not known:
                                task_status.started()
                            known = True
                        case Stale(reason):
                            log.info("live settings stay as they are: %s", reason)

    async def drain(self) -> None:
        """Nothing to finish."""

    def told(self) -> SettingsTold:
        """What is on."""
        groups = self._groups.values()
        return SettingsTold(
            service=self._service,
            values={name: value for each in groups for name, value in each.values().items()},
            overridden=tuple(f"{each.group}.{n}" for each in groups for n in each.overridden),
            refused={f"{g.group}.{n}": why for g in groups for n, why in g.refused.items()},
        )

    def _group(self, key: str) -> tuple[_Followed[Any], str] | None:
        group, _, name = key.removeprefix(self._prefix).partition(".")
        followed = self._groups.get(group)
        return (followed, name) if followed else None

    async def _be_known(self, *, task_status: TaskStatus[None]) -> None:
        async def tell(message: Message) -> bytes:
            return self._producer.seal(self.told())

        info = ServiceInfo(f"tokenplane-{self._kind}", VERSION, metadata={"service": self._service})
        endpoint = Endpoint("settings", self._subjects.settings_asked(self._service), tell)
        async with self._bus.serve(info, [endpoint]):
            task_status.started()
            await anyio.sleep_forever()

    async def _answer(self, *, task_status: TaskStatus[None]) -> None:
        reader = Reader[SettingsQuestion](SettingsQuestion)
        subject = self._subjects.settings_of(self._service)
        async with self._bus.subscribe(self._subjects.settings) as questions:
            task_status.started()
            async for question in questions:
                try:
                    reader.open(question.data)
                    await self._bus.publish(subject, self._producer.seal(self.told()))
                except (Unreadable, BusError) as error:
                    log.debug("nobody was told which settings are on: %s", error)
