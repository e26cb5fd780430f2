"""What has survived is not looked at again, and what dies young is still found."""

from __future__ import annotations

import gc
import weakref

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from controlplane.runtime.garbage import collect_in_short_pauses

pytestmark = pytest.mark.anyio


class Knot:
    """Garbage that only a collector can find."""

    def __init__(self) -> None:
        self.me = self


async def test_survivors_are_frozen_and_all_is_as_before_afterwards() -> None:
    before, frozen_before = gc.get_threshold(), gc.get_freeze_count()
    async with anyio.create_task_group() as tasks:
        knot = weakref.ref(Knot())
        tasks.start_soon(collect_in_short_pauses)
        await wait_all_tasks_blocked()
        assert knot() is None
        assert gc.get_freeze_count() > frozen_before
        assert gc.get_threshold()[2] > before[2]
        tasks.cancel_scope.cancel()
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)
