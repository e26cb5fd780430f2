"""Live settings: what is written is checked, what is followed taken up, what is wrong told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from controlplane.cli.config import ConfigCommand, Refused, do
from controlplane.client.config import Change, Config, named, parsed
from controlplane.router.settings import RouterSettings
from controlplane.runtime.live import BadSetting, LiveSettings
from proto.ids import ServiceId
from proto.subjects import Keys, Subjects
from proto.wire.memory.bus import MemoryHub
from proto.wire.memory.store import MemoryEtcd

pytestmark = pytest.mark.anyio
CLUSTER = "test"
KEYS, SUBJECTS = Keys(CLUSTER), Subjects(CLUSTER)
HEARD_S = 5.0


class Router:
    """A process that follows its settings, and remembers them."""

    def __init__(self, started_with: RouterSettings) -> None:
        self.settings = started_with
        self._changed = anyio.Event()

    def adopt(self, settings: RouterSettings) -> None:
        self.settings = settings
        self._changed.set()
        self._changed = anyio.Event()

    async def next(self) -> RouterSettings:
        with anyio.fail_after(HEARD_S):
            await self._changed.wait()
        return self.settings


class Stand:
    """A router on live settings, and somebody who changes them."""

    def __init__(self, hub: MemoryHub, etcd: MemoryEtcd, started_with: RouterSettings) -> None:
        self.store = etcd.connect()
        self.link = etcd.connect()
        self.router = Router(started_with)
        self.live = LiveSettings(
            ServiceId("router-1"), self.link, hub.connect("r"), KEYS, SUBJECTS, lambda: 1.0
        )
        self.live.follow("router", started_with, self.router.adopt)
        self.config = Config(hub.connect("cli"), self.store, CLUSTER)


@asynccontextmanager
async def stand(started_with: RouterSettings | None = None) -> AsyncIterator[Stand]:
    hub, etcd = MemoryHub(), MemoryEtcd()
    made = Stand(hub, etcd, started_with or RouterSettings())
    async with hub, anyio.create_task_group() as tasks:
        await tasks.start(lambda *, task_status: made.live.run(task_status=task_status))
        yield made
        tasks.cancel_scope.cancel()


async def test_what_is_no_json_is_not_written() -> None:
    async with stand() as here:
        for text in ("Infinity", "1e999", "NaN"):
            with pytest.raises(BadSetting, match=r"planner\.ttft_ms cannot be"):
                await here.config.set("planner.ttft_ms", parsed(text))
        assert await here.config.all() == {}


async def test_a_setting_that_is_not_set_is_told_as_such(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with stand() as here:
        get = ConfigCommand(action="get", words=["router.policy"])
        with pytest.raises(Refused, match=r"router\.policy is not set"):
            await do(get, here.config)
        await here.config.set("router.policy", "slo")
        await do(get, here.config)
    assert capsys.readouterr().out == '"slo"\n'


async def test_a_setting_is_taken_up_while_the_process_runs_and_given_back() -> None:
    async with stand(RouterSettings(policy="kv", temperature=0.5)) as here:
        await here.config.set("router.policy", "slo")
        assert (await here.router.next()).policy == "slo"
        assert here.router.settings.temperature == 0.5
        assert await here.config.all() == {"router.policy": '"slo"'}
        assert await here.config.unset("router.policy")
        assert (await here.router.next()).policy == "kv"
        assert not await here.config.unset("router.policy")


async def test_a_process_that_starts_later_starts_with_what_is_set() -> None:
    hub, etcd = MemoryHub(), MemoryEtcd()
    await Config(hub.connect("cli"), etcd.connect(), CLUSTER).set("router.prefill_weight", 3)
    made = Stand(hub, etcd, RouterSettings())
    async with hub, anyio.create_task_group() as tasks:
        await tasks.start(lambda *, task_status: made.live.run(task_status=task_status))
        assert made.router.settings.prefill_weight == 3.0
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("router.policy", "fastest", "fastest"),
        ("router.prefill_weight", -1, "greater than or equal to 0"),
        ("router.prefill_weight", "much", "valid number"),
        ("router.polcy", "kv", "did you mean router.policy"),
        ("router.decisions_bytes", 1, "where the process is started"),
        ("planet.size", 1, "no live setting"),
    ],
)
async def test_what_makes_no_sense_is_refused_and_not_written(
    name: str, value: object, why: str
) -> None:
    async with stand() as here:
        with pytest.raises(BadSetting, match=why):
            await here.config.set(name, value)
        assert await here.config.all() == {}


async def test_a_process_refuses_what_somebody_wrote_by_hand_and_says_so() -> None:
    async with stand() as here:
        await here.store.put(KEYS.config_of("router.temperature"), b"-3")
        await here.store.put(KEYS.config_of("router.secret"), b"1")
        await here.store.put(KEYS.config_of("router.slo_ttft_ms"), b"{")
        await here.store.put(KEYS.config_of("gateway.gap_s"), b"7")
        await here.config.set("router.prefill_weight", 2)
        assert (await here.router.next()).prefill_weight == 2.0
        assert here.router.settings.temperature == 0.0
        (told,) = await here.config.told()
        assert told.service == "router-1"
        assert told.overridden == ("router.prefill_weight",)
        assert set(told.refused) == {
            "router.temperature",
            "router.secret",
            "router.slo_ttft_ms",
        }
        assert json.loads(told.values["router.prefill_weight"]) == 2.0
        assert "router.decisions_bytes" not in told.values


async def test_a_store_that_is_away_changes_nothing_and_is_caught_up_with() -> None:
    async with stand() as here:
        await here.config.set("router.prefill_weight", 2)
        await here.router.next()
        here.link.cut()
        await here.config.set("router.prefill_weight", 5)
        assert here.router.settings.prefill_weight == 2.0
        here.link.mend()
        assert (await here.router.next()).prefill_weight == 5.0


async def test_changes_are_watched() -> None:
    async with stand() as here:
        await here.config.set("router.prefill_weight", 2)
        async with here.config.changes() as changes:
            with anyio.fail_after(HEARD_S):
                assert await anext(changes) == Change("router.prefill_weight", "2.0")
                await here.config.unset("router.prefill_weight")
                assert await anext(changes) == Change("router.prefill_weight", None)


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("kv", "kv"), ('"kv"', "kv"), ("true", True)]
)
def test_values_are_json_or_words(text: str, value: object) -> None:
    assert parsed(text) == value


def test_a_live_setting_is_named_by_group_and_name() -> None:
    assert named("router.policy") == ("router", "policy")
