"""The live view of the fleet that every service holds: fed by the store, kept while it is away."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

import anyio
from anyio.abc import TaskStatus

from controlplane.registry.membership import (
    BadRecord,
    Change,
    Joined,
    Left,
    Membership,
    ModelChanged,
    ModelGone,
    Updated,
)
from proto.ids import WorkerId
from proto.subjects import Keys
from proto.wire.ports import Deleted, Put, Stale, Store, Synced
from proto.workers import ModelCard, WorkerRecord

log = logging.getLogger(__name__)

REMIND_S = 5.0

Callback = Callable[[Change], None]
"""Told of each change as it is applied; must neither block nor raise."""


class RegistryView:
    """A service: follows workers and models, and serves them from memory.

    Ready after the first full read. While the store is away the last view stays, and
    `stale_since` says since when; nobody leaves because etcd did.
    """

    name = "registry-view"

    def __init__(self, store: Store, keys: Keys) -> None:
        self._store = store
        self._prefixes = (keys.workers, keys.models)
        self._membership = Membership(keys)
        self._callbacks: dict[int, Callback] = {}
        self._next_token = 0
        self._stale: dict[str, float] = {}
        self._trouble = "no answer yet"
        self.changes = 0
        """Seen since the start: what was made of the view holds for as long as they are as many."""
        self.bad_records: dict[str, str] = {}
        """Entries of the store that cannot be used, and why."""

    @property
    def workers(self) -> Mapping[WorkerId, WorkerRecord]:
        """Every known worker, in whatever state; read-only and always current."""
        return self._membership.workers

    @property
    def models(self) -> Mapping[str, ModelCard]:
        """Every known model by name; read-only and always current."""
        return self._membership.models

    @property
    def stale_since(self) -> float | None:
        """When the view stopped being fed (`anyio.current_time()`), None while it is live.

        From the start of `run` until the first full read the view is stale too.
        """
        return min(self._stale.values(), default=None)

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        """Call back on every change, first for every model and worker known already.

        Returns the function that ends it.
        """
        for card in self.models.values():
            callback(ModelChanged(card))
        for record in self.workers.values():
            callback(Joined(record))
        token = self._next_token
        self._next_token += 1
        self._callbacks[token] = callback

        def unsubscribe() -> None:
            self._callbacks.pop(token, None)

        return unsubscribe

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Follow the store until cancelled; an unreachable one is waited for, for ever."""
        synced = {prefix: anyio.Event() for prefix in self._prefixes}
        self._stale = dict.fromkeys(self._prefixes, anyio.current_time())
        async with anyio.create_task_group() as tasks:
            for prefix, event in synced.items():
                tasks.start_soon(self._follow, prefix, event)
            for prefix, event in synced.items():
                await self._wait_for(event, prefix)
            log.info("the registry knows %d workers", len(self.workers))
            task_status.started()

    async def drain(self) -> None:
        """Nothing to finish: a view only listens."""

    async def _wait_for(self, synced: anyio.Event, prefix: str) -> None:
        while True:
            with anyio.move_on_after(REMIND_S):
                await synced.wait()
                return
            log.warning("waiting for the store to tell what is under %s: %s", prefix, self._trouble)

    async def _follow(self, prefix: str, synced: anyio.Event) -> None:
        async with self._store.watch(prefix) as events:
            async for event in events:
                match event:
                    case Put(entry):
                        self._tell(entry.key, self._membership.put(entry.key, entry.value))
                    case Deleted(key):
                        self._tell(key, self._membership.delete(key))
                    case Stale(reason):
                        self._mark_stale(prefix, reason)
                    case Synced():
                        self._mark_live(prefix)
                        synced.set()

    def _mark_stale(self, prefix: str, reason: str) -> None:
        self._trouble = reason
        if prefix not in self._stale:
            self._stale[prefix] = anyio.current_time()
            log.warning("the store is away (%s); going on with the last view of %s", reason, prefix)

    def _mark_live(self, prefix: str) -> None:
        if self._stale.pop(prefix, None) is not None:
            log.info("the view of %s is live", prefix)

    def _tell(self, key: str, changes: Iterable[Change | BadRecord]) -> None:
        self.bad_records.pop(key, None)
        for change in changes:
            if isinstance(change, BadRecord):
                self.bad_records[key] = change.why
                log.warning("skipping the bad record under %s: %s", key, change.why)
                continue
            self.changes += 1
            _log_change(change)
            for token in tuple(self._callbacks):
                # A callback may end another's subscription.
                if callback := self._callbacks.get(token):
                    callback(change)


def _log_change(change: Change) -> None:
    match change:
        case Joined(record):
            log.info("worker %s joined: %s at %s", record.worker, record.state, record.url)
        case Updated(record, previous):
            log.info("worker %s: %s, was %s", record.worker, record.state, previous.state)
        case Left(record):
            log.info("worker %s left", record.worker)
        case ModelChanged(card):
            log.info("model %s is known", card.name)
        case ModelGone(card):
            log.info("model %s is gone", card.name)
