"""Words in the store become deeds, and what came of them is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pytest

from controlplane.planner.scalers.follow import ScalerService, ScalerTrouble
from proto.scaling import Desired, Reason, Scaled
from proto.subjects import Keys
from proto.wire.memory.store import MemoryEtcd
from proto.workers import Role
from tests.unit.agents.clocks import VIRTUAL
from tests.unit.agents.reader import wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", [VIRTUAL])]

KEYS = Keys("c")


def word(replicas: int, decision: str = "d1", **other: object) -> Desired:
    base = Desired(
        model="m",
        role=Role.AGGREGATED,
        hardware="h",
        replicas=replicas,
        decision=decision,
        reason=Reason.TTFT_AT_RISK,
        decided_s=0.0,
        planner="p",
    )
    return base.model_copy(update=other)


class Machines:
    """Does at once what is wanted, unless it is out of machines."""

    name = "machines"

    def __init__(self, most: int) -> None:
        self.most = most
        self.running = 0

    async def act(self, wanted: Desired) -> None:
        self.running = min(wanted.replicas, self.most)
        if wanted.replicas > self.most:
            raise ScalerTrouble("out of machines")

    async def observe(self, wanted: Desired) -> Scaled:
        return Scaled(
            model=wanted.model,
            role=wanted.role,
            hardware=wanted.hardware,
            decision=wanted.decision,
            replicas=self.running,
            scaler=self.name,
        )


async def _run(
    run: Callable[..., Awaitable[None]], *, task_status: anyio.abc.TaskStatus[None]
) -> None:
    await run(task_status=task_status)


async def test_words_are_acted_on_and_trouble_is_told_until_it_is_over(
    anyio_backend: object,
) -> None:
    etcd = MemoryEtcd()
    store = etcd.connect()
    machines = Machines(most=4)
    service = ScalerService(etcd.connect(), KEYS, machines)
    pool = word(1).pool.name

    def told() -> Scaled | None:
        entry = etcd.entries.get(KEYS.scaled_of(pool))
        return Scaled.model_validate_json(entry.value) if entry else None

    async def until(condition: Callable[[Scaled], bool]) -> None:
        def met() -> bool:
            now = told()
            return now is not None and condition(now)

        await wait_until(met, within_s=60)
        assert met()

    async with anyio.create_task_group() as tasks:
        await tasks.start(_run, service.run)
        await store.put(KEYS.desired_of(pool), word(3).model_dump_json().encode())
        await until(lambda now: (now.replicas, now.decision) == (3, "d1"))
        await store.put(KEYS.desired_of("other"), b"nonsense")
        await store.put(KEYS.desired_of(pool), word(6, "d2").model_dump_json().encode())
        await until(lambda now: now.trouble == "out of machines" and now.decision == "d2")
        machines.most = 8
        await until(lambda now: now.replicas == 6 and not now.trouble)
        machines.running = 1  # somebody stopped them
        await until(lambda now: machines.running == 6)
        tasks.cancel_scope.cancel()
