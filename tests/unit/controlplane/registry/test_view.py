"""The live view: full reads, changes, outages, bad records, subscribers."""

from __future__ import annotations

import logging

import anyio
import pytest

from controlplane.registry import view as view_module
from controlplane.registry.membership import (
    Change,
    Joined,
    Left,
    ModelChanged,
    ModelGone,
    Updated,
)
from controlplane.registry.view import RegistryView
from proto.workers import WorkerState
from tests.unit.controlplane.registry.fleet import Ears, Fleet, running
from tests.unit.controlplane.registry.records import KEYS, card, worker

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]

W1, W2, W3 = worker("w1"), worker("w2"), worker("w3")
CARD = card()


async def test_the_view_is_ready_once_it_has_read_everything() -> None:
    fleet = Fleet()
    await fleet.put(W1, W2, CARD)
    async with running(fleet) as view:
        assert view.workers == {"w1": W1, "w2": W2}
        assert view.models == {"sim": CARD}
        assert view.stale_since is None


async def test_until_the_first_full_read_the_view_is_stale() -> None:
    fleet = Fleet()
    await fleet.put(W1)
    view = RegistryView(fleet.link, KEYS)
    stale: list[bool] = []
    view.subscribe(lambda _: stale.append(view.stale_since is not None))
    async with anyio.create_task_group() as tasks:
        await tasks.start(lambda *, task_status: view.run(task_status=task_status))
        assert stale == [True]
        assert view.stale_since is None
        tasks.cancel_scope.cancel()


async def test_subscribers_hear_every_change_in_order() -> None:
    fleet = Fleet()
    draining = worker("w1", state=WorkerState.DRAINING)
    async with running(fleet) as view:
        ears = Ears(view)
        await fleet.put(W1, draining)
        await fleet.delete(draining)
        assert await ears.hear(3) == [Joined(W1), Updated(draining, W1), Left(draining)]
        await fleet.put(CARD)
        await fleet.delete(CARD)
        assert await ears.hear(2) == [ModelChanged(CARD), ModelGone(CARD)]
        assert view.workers == {}
        assert view.models == {}


async def test_a_worker_leaves_with_its_lease() -> None:
    fleet = Fleet()
    lease = await fleet.agents.grant(30)
    await fleet.put(W1, lease=lease)
    async with running(fleet) as view:
        ears = Ears(view)
        await fleet.agents.revoke(lease)
        assert await ears.hear(2) == [Joined(W1), Left(W1)]


async def test_a_new_subscriber_first_hears_what_is_known() -> None:
    fleet = Fleet()
    await fleet.put(W1, W2, CARD)
    async with running(fleet) as view:
        heard: list[Change] = []
        view.subscribe(heard.append)
        assert heard == [ModelChanged(CARD), Joined(W1), Joined(W2)]


async def test_who_has_unsubscribed_hears_nothing() -> None:
    fleet = Fleet()
    async with running(fleet) as view:
        deaf, ears = Ears(view), Ears(view)
        deaf.unsubscribe()
        deaf.unsubscribe()
        await fleet.put(W1)
        await ears.hear(1)
        assert deaf.nothing()


async def test_a_callback_may_end_anothers_subscription() -> None:
    fleet = Fleet()
    async with running(fleet) as view:
        view.subscribe(lambda _: victim.unsubscribe())
        victim = Ears(view)
        last = Ears(view)
        await fleet.put(W1)
        await last.hear(1)
        assert victim.nothing()


async def test_while_the_store_is_away_the_last_view_stays() -> None:
    fleet = Fleet()
    await fleet.put(W1, W2, CARD)
    async with running(fleet) as view:
        ears = Ears(view)
        await ears.hear(3)
        before_s = anyio.current_time()
        fleet.link.cut()
        await anyio.wait_all_tasks_blocked()
        assert view.stale_since is not None
        assert before_s <= view.stale_since <= anyio.current_time()
        await fleet.put(W3)
        await fleet.delete(W1)
        await anyio.wait_all_tasks_blocked()
        assert view.workers == {"w1": W1, "w2": W2}
        assert ears.nothing()
        fleet.link.mend()
        assert await ears.hear(2) == [Joined(W3), Left(W1)]
        await anyio.wait_all_tasks_blocked()
        assert view.stale_since is None
        assert view.workers == {"w2": W2, "w3": W3}


async def test_a_store_that_is_away_at_the_start_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(view_module, "REMIND_S", 0.01)
    fleet = Fleet()
    await fleet.put(W1)
    fleet.link.cut()
    view = RegistryView(fleet.link, KEYS)
    reminded, ready = Reminded(2), anyio.Event()
    view_module.log.addHandler(reminded)

    async def run() -> None:
        async with anyio.create_task_group() as parts:
            await parts.start(lambda *, task_status: view.run(task_status=task_status))
            ready.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        with anyio.fail_after(5):
            await reminded.enough.wait()
        assert "the link to the store is cut" in caplog.text
        assert not ready.is_set()
        assert view.stale_since is not None
        fleet.link.mend()
        with anyio.fail_after(5):
            await ready.wait()
        assert view.workers == {"w1": W1}
        assert view.stale_since is None
        tasks.cancel_scope.cancel()
    view_module.log.removeHandler(reminded)


class Reminded(logging.Handler):
    """Tells when the log has warned a number of times."""

    def __init__(self, times: int) -> None:
        super().__init__(logging.WARNING)
        self.enough = anyio.Event()
        self._left = times

    def emit(self, record: logging.LogRecord) -> None:
        self._left -= 1
        if self._left == 0:
            self.enough.set()


async def test_a_bad_record_is_skipped_and_named_until_it_is_good(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fleet = Fleet()
    await fleet.put(W2)
    key = await fleet.garble(W1)
    async with running(fleet) as view:
        assert view.workers == {"w2": W2}
        assert list(view.bad_records) == [key]
        assert f"skipping the bad record under {key}: value: Invalid JSON" in caplog.text
        ears = Ears(view)
        await fleet.put(W1)
        assert await ears.hear(2) == [Joined(W2), Joined(W1)]
        assert view.bad_records == {}
        await fleet.garble(W1)
        assert await ears.hear(1) == [Left(W1)]
        assert list(view.bad_records) == [key]
        await fleet.delete(W1)
        await fleet.put(W3)
        await ears.hear(1)
        assert view.bad_records == {}


async def test_draining_a_view_is_nothing() -> None:
    async with running(Fleet()) as view:
        await view.drain()
        assert view.stale_since is None
