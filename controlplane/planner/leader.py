"""One planner decides; others stand by.

Who holds the leader's key, which lives under a lease, is in office. One that loses its lease has
lost it for good: it stops, and stands for election anew. Until it has noticed, another may be in
office already, so what a leader writes is guarded besides (`service`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import anyio

from proto.wire.errors import LeaseLost, StoreError
from proto.wire.ports import Deleted, Lease, Store

log = logging.getLogger(__name__)

RETRY_S = 1.0
LOOK_S = 30.0
RESIGN_S = 3.0


class Leadership:
    """Stands for election, again and again."""

    def __init__(self, store: Store, key: str, name: str, lease_s: int) -> None:
        self._store = store
        self._key = key
        self._name = name
        self._lease_s = lease_s
        self.leads = False

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Whenever in office, do `work` until it ends or the office is lost; until cancelled."""
        while True:
            try:
                await self._one_term(work)
            except* StoreError as errors:
                log.warning("out of office: %s", errors.exceptions[0])
                await anyio.sleep(RETRY_S)

    async def _one_term(self, work: Callable[[], Awaitable[None]]) -> None:
        lease = await self._store.grant(self._lease_s)
        try:
            won = await self._store.put_if(
                self._key, self._name.encode(), expected_revision=0, lease=lease
            )
            if won is None:
                await self._until_vacant()
                return
            log.info("%s is in office", self._name)
            self.leads = True
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._store.keep_alive, lease)
                    await work()
                    tasks.cancel_scope.cancel()
            except* LeaseLost:
                log.warning("%s has lost its office", self._name)
        finally:
            self.leads = False
            with anyio.CancelScope(shield=True), anyio.move_on_after(RESIGN_S):
                await self._resign(lease)

    async def _resign(self, lease: Lease) -> None:
        try:
            await self._store.revoke(lease)
        except StoreError as error:
            log.debug("the lease must run out: %s", error)

    async def _until_vacant(self) -> None:
        """Somebody else is in office; wait until the key goes, and look now and then anyway."""
        with anyio.move_on_after(LOOK_S):
            async with self._store.watch(self._key) as events:
                if await self._store.get(self._key) is None:
                    return
                async for event in events:
                    if isinstance(event, Deleted):
                        return
