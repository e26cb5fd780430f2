"""From the planner's word to somebody who starts and stops workers: follow, act, tell.

An `Actuator` begins what a word asks for and comes back at once; starting and draining go on behind
it, for as long as they take. Words on the same pool are taken in order, the last one counts. What
has come of them is told in the store (`Scaled`), so that a planner's word and the state of things
are two things that can be compared (AS14).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import anyio
from anyio.abc import TaskStatus
from pydantic import ValidationError

from controlplane.planner.scalers.deeds import Deeds
from proto.scaling import Desired, Scaled
from proto.subjects import Keys
from proto.wire.errors import StoreError
from proto.wire.ports import Put, Store, Synced

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""Between looks at what has come of the last words."""


class ScalerTrouble(Exception):
    """What is wanted cannot be done for now; says why. It is tried again."""


class Actuator(Protocol):
    """Starts and stops workers of pools."""

    name: str

    async def act(self, word: Desired) -> None:
        """Begin to start what is missing, and to drain and stop what is too much; done again with
        the same word it changes nothing. Raises `ScalerTrouble`."""

    async def observe(self, word: Desired) -> Scaled:
        """What runs of the pool now. Raises `ScalerTrouble`."""


class ScalerService:
    """A service: has an actuator do what the planner wants."""

    name = "scaler"

    def __init__(
        self,
        store: Store,
        keys: Keys,
        actuator: Actuator,
        *,
        acts: Callable[[], bool] = lambda: True,
    ) -> None:
        """Of several that follow the same words, one `acts` at a time."""
        self._store = store
        self._keys = keys
        self._actuator = actuator
        self._acts = acts
        self._words: dict[str, Desired] = {}
        self._told: dict[str, Scaled] = {}
        self._deeds = Deeds()
        self._new: set[str] = set()
        """Pools with a word that nobody has acted on yet."""
        self._heard = anyio.Event()

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Follow what is wanted, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._act)
            async with self._store.watch(self._keys.desired) as events:
                task_status.started()
                known = False
                async for event in events:
                    if isinstance(event, Synced):
                        known = True
                    elif isinstance(event, Put):
                        self._hear(event.entry.key, event.entry.value, new=known)

    async def drain(self) -> None:
        """There is nothing to finish: workers stay as they are."""

    def _hear(self, key: str, value: bytes, *, new: bool) -> None:
        """A word; `new` if it was said just now, and not before we listened."""
        try:
            word = Desired.model_validate_json(value)
        except ValidationError as error:
            log.warning("skipping %s: %s", key, error.errors(include_input=False)[0]["msg"])
            return
        if self._keys.desired_of(word.pool.name) == key:
            if new and word != self._words.get(word.pool.name):
                self._new.add(word.pool.name)
            self._words[word.pool.name] = word
            self._heard.set()

    async def _act(self) -> None:
        """Act on every word, again and again: what died is missing, and is started anew."""
        while True:
            with anyio.move_on_after(LOOK_S):
                await self._heard.wait()
            self._heard = anyio.Event()
            for pool, word in list(self._words.items()) if self._acts() else ():
                if pool in self._new:
                    self._new.discard(pool)
                    self._deeds.begin(word)
                scaled = await self._one(word)
                self._deeds.saw(word, scaled)
                if scaled != self._told.get(pool):
                    await self._tell(pool, scaled)

    async def _one(self, word: Desired) -> Scaled:
        try:
            await self._actuator.act(word)
            return await self._actuator.observe(word)
        except ScalerTrouble as error:
            before = self._told.get(word.pool.name)
            if before is None or before.trouble != str(error):
                log.error("pool %s: %s", word.pool.name, error)
            return Scaled(
                model=word.model,
                role=word.role,
                hardware=word.hardware,
                decision=word.decision,
                replicas=before.replicas if before else 0,
                scaler=self._actuator.name,
                trouble=str(error),
            )

    async def _tell(self, pool: str, scaled: Scaled) -> None:
        try:
            await self._store.put(self._keys.scaled_of(pool), scaled.model_dump_json().encode())
            self._told[pool] = scaled
        except StoreError as error:
            log.debug("what came of it is told later: %s", error)
