"""Being in the registry: a worker's record under a lease, and the card of its model.

The record lives as long as its lease, the lease as long as this process renews it. Whatever
happens to the store the agent goes on: a lost lease is taken anew, a store that is away is tried
again, each after a jittered wait, so that a fleet does not come back in one moment. Every now and
then the record is looked at, and put back if somebody has deleted it.
"""

from __future__ import annotations

import logging
import random

import anyio
from pydantic import ValidationError

from agents.metrics import AgentMetrics
from proto.ids import WorkerId
from proto.subjects import Keys
from proto.wire.errors import LeaseLost, StoreError
from proto.wire.ports import Entry, Lease, Store
from proto.workers import ModelCard, WorkerRecord

log = logging.getLogger(__name__)

LEASE_S = 12
"""A worker whose agent died is gone from the registry after this long."""
RETRY_S, RETRY_S_MAX = 0.5, 10.0
LOOK_S = 30.0
LEAVE_S = 3.0
PAST_S = 3.0
"""How long an agent that starts asks for what is registered under its id."""


class Presence:
    """Keeps the registry at the last record it was told."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        worker: WorkerId,
        metrics: AgentMetrics,
        rng: random.Random,
    ) -> None:
        self._store = store
        self._keys = keys
        self._key = keys.worker(worker)
        self._metrics = metrics
        self._rng = rng
        self._wanted: tuple[WorkerRecord, ModelCard] | None = None
        self._told = anyio.Event()
        self._staying = anyio.CancelScope()
        self._lease: Lease | None = None
        self.registered = False
        """The registry holds the record we were last told, as far as we know."""

    async def past(self) -> int:
        """The incarnation that is registered now; 0 if there is none, or no answer in time."""
        with anyio.move_on_after(PAST_S):
            try:
                entry = await self._store.get(self._key)
                return _incarnation_of(entry) if entry else 0
            except StoreError as error:
                log.warning("cannot see who was registered before: %s", error)
        return 0

    def tell(self, record: WorkerRecord, card: ModelCard) -> None:
        """What should be in the registry from now on."""
        if self._wanted != (record, card):
            self._wanted = record, card
            self.registered = False
            self._told.set()

    async def run(self) -> None:
        """Register and stay registered; ends by `leave`, which a cancellation brings about too."""
        try:
            with self._staying:
                await self._told.wait()
                while True:
                    await self._take_lease()
                    await self._live()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(LEAVE_S):
                await self.leave()

    async def leave(self) -> None:
        """Deregister; there is no way back."""
        self._staying.cancel()
        self.registered = False
        lease, self._lease = self._lease, None
        if lease is None:
            return
        try:
            await self._store.revoke(lease)
        except StoreError as error:
            log.warning("could not deregister, so the lease must run out: %s", error)

    async def _take_lease(self) -> None:
        retry_s = RETRY_S
        while True:
            try:
                self._lease = await self._store.grant(LEASE_S)
            except StoreError as error:
                log.warning("cannot register: %s", error)
                retry_s = await self._wait_before_retry(retry_s)
            else:
                self._metrics.registrations.inc()
                return

    async def _live(self) -> None:
        """Until the lease is lost."""
        assert self._lease is not None
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._store.keep_alive, self._lease)
                await self._keep_written(self._lease)
        except* LeaseLost:
            log.warning("the lease is lost; registering anew")
        self.registered = False
        await self._wait_before_retry(RETRY_S)

    async def _keep_written(self, lease: Lease) -> None:
        """Raises `LeaseLost`; any other trouble of the store is waited out."""
        retry_s = RETRY_S
        while True:
            assert self._wanted is not None
            record, card = self._wanted
            self._told = anyio.Event()
            try:
                await self._write_card(card)
                self.registered = await self._write_record(record, lease)
                retry_s = RETRY_S
                with anyio.move_on_after(LOOK_S):
                    await self._told.wait()
            except LeaseLost:
                raise
            except StoreError as error:
                log.warning("cannot write to the registry: %s", error)
                retry_s = await self._wait_before_retry(retry_s)

    async def _write_record(self, record: WorkerRecord, lease: Lease) -> bool:
        """Write if need be; False if a later life of this worker is there already."""
        value = record.model_dump_json().encode()
        present = await self._store.get(self._key)
        if present and (present.value, present.lease) == (value, lease.id):
            return True
        if present and _incarnation_of(present) > record.incarnation:
            log.error(
                "worker %s is registered by a later agent; two agents must not share a worker id",
                record.worker,
            )
            return False
        await self._store.put(self._key, value, lease=lease)
        log.info("registered as %s: %s", record.worker, record.state)
        return True

    async def _write_card(self, card: ModelCard) -> None:
        key, value = self._keys.model(card.name), card.model_dump_json().encode()
        present = await self._store.get(key)
        if present and present.value == value:
            return
        if present:
            log.warning(
                "the card of model %s differs from what its other workers wrote: do all of them "
                "serve the same model, with the same tokenizer and context length?",
                card.name,
            )
        await self._store.put_if(key, value, expected_revision=present.revision if present else 0)

    async def _wait_before_retry(self, retry_s: float) -> float:
        """Returns how long to wait next time."""
        await anyio.sleep(self._rng.uniform(0.5, 1.0) * retry_s)
        return min(2 * retry_s, RETRY_S_MAX)


def _incarnation_of(entry: Entry) -> int:
    try:
        return WorkerRecord.model_validate_json(entry.value).incarnation
    except ValidationError:
        return 0
