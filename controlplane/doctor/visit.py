"""A visit to a cluster: ask everybody, and say what is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import anyio
from pydantic import ValidationError

from controlplane.doctor.findings import Finding, Level, find
from controlplane.doctor.fleet import REGISTRY, SERVICES, Fleet, examine
from controlplane.doctor.servers import answers, ask_bus, ask_store, other_clusters
from controlplane.registry.membership import Membership
from controlplane.runtime.settings import CommonSettings
from controlplane.runtime.version import VERSION
from proto.codec import Reader, Unreadable
from proto.hashing import secret_mark
from proto.ids import WorkerId
from proto.load import LoadReport
from proto.scaling import Desired, Scaled
from proto.subjects import Keys, Subjects
from proto.wire.errors import BusError, StoreError
from proto.wire.ports import Bus, Store
from proto.workers import Record, WorkersReply

R = TypeVar("R", bound=Record)

ASK_S = 2.0


@dataclass
class Visit:
    """What was found so far."""

    settings: CommonSettings
    listen_s: float
    clock: Callable[[], float] = time.time
    findings: list[Finding] = field(default_factory=list)

    async def fleet(self, bus: Bus, store: Store) -> None:
        """Everything that needs both; where one does not work, the servers' findings say why."""
        keys, subjects = Keys(self.settings.cluster), Subjects(self.settings.cluster)
        self.findings += await ask_store(store, keys, self.settings.etcd.user)
        self.findings += await ask_bus(bus)
        if any(each.level is Level.ERROR for each in self.findings):
            return
        members = Membership(keys)
        try:
            heard = await self._listen(bus, subjects)
            for prefix in (keys.workers, keys.models):
                for entry in await store.list(prefix):
                    members.put(entry.key, entry.value)
            desired = await _records(store, keys.desired, Desired)
            scaled = await _records(store, keys.scaled, Scaled)
        except (BusError, StoreError) as error:
            raise Interrupted(str(error)) from error
        if not members.workers and not members.models and not heard:
            self.findings += await self._elsewhere(store, keys)
        services = frozenset([each for each in SERVICES if await answers(bus, each)])
        mark = secret_mark(self.settings.secret_bytes)
        fleet = Fleet(
            members.workers,
            members.models,
            heard,
            services,
            VERSION,
            mark,
            desired,
            scaled,
            self.clock(),
        )
        self.findings += examine(fleet)
        if REGISTRY in services:
            self.findings += await self._registry(bus, subjects)

    async def _listen(self, bus: Bus, subjects: Subjects) -> dict[WorkerId, float]:
        """Who reports its load, and how far its clock is behind."""
        heard: dict[WorkerId, float] = {}
        reader = Reader[LoadReport](LoadReport)
        async with bus.subscribe(subjects.every_load) as reports:
            with anyio.move_on_after(self.listen_s):
                async for message in reports:
                    try:
                        said = reader.open(message.data)
                    except Unreadable:
                        continue
                    behind_s = self.clock() - said.time_s
                    known_s = heard.get(said.body.worker, behind_s)
                    heard[said.body.worker] = min(known_s, behind_s, key=abs)
        return heard

    async def _elsewhere(self, store: Store, keys: Keys) -> list[Finding]:
        try:
            found = [entry.key for entry in await store.list(keys.every_cluster)]
        except StoreError:
            return []  # we may only read our own
        others = other_clusters(found, self.settings.cluster)
        if not others:
            return []
        what = f"cluster {self.settings.cluster} is empty, and etcd knows {', '.join(others)}"
        return [find("wrong-cluster", what)]

    async def _registry(self, bus: Bus, subjects: Subjects) -> list[Finding]:
        try:
            answer = await bus.request(subjects.registry_workers, b"{}", timeout_s=ASK_S)
            stale = WorkersReply.model_validate_json(answer.data).stale
        except (BusError, ValueError):
            return []
        return [find("registry-stale", "the registry answers from an old view")] if stale else []


async def _records(store: Store, prefix: str, kind: type[R]) -> tuple[R, ...]:
    """Those below a prefix that can be read."""
    found = []
    for entry in await store.list(prefix):
        with suppress(ValidationError):
            found.append(kind.model_validate_json(entry.value))
    return tuple(found)


class Interrupted(Exception):
    """A server went away in the middle of it."""
