"""Lifecycle: order, deadlines, failures."""

from __future__ import annotations

import anyio
import pytest
from anyio.abc import TaskStatus

from controlplane.runtime.service import Phase, StartupTimeout, serve

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]

TINY_S = 0.01


class Part:
    """A service that writes down what happens to it."""

    def __init__(self, name: str, story: list[str]) -> None:
        self.name = name
        self.story = story

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        try:
            await self.start()
            self.story.append(f"{self.name} ready")
            task_status.started()
            await self.work()
        finally:
            self.story.append(f"{self.name} gone")

    async def start(self) -> None: ...

    async def work(self) -> None:
        await anyio.sleep_forever()

    async def drain(self) -> None:
        self.story.append(f"{self.name} drained")


class NeverReady(Part):
    async def start(self) -> None:
        await anyio.sleep_forever()


class NeverDrained(Part):
    async def drain(self) -> None:
        await anyio.sleep_forever()


class BadDrain(Part):
    async def drain(self) -> None:
        raise ValueError("cannot drain")


class Failing(Part):
    async def work(self) -> None:
        raise ValueError("broken")


class EndsByItself(Part):
    async def work(self) -> None: ...


class EndsWhenDrained(Part):
    def __init__(self, name: str, story: list[str]) -> None:
        super().__init__(name, story)
        self.end = anyio.Event()

    async def work(self) -> None:
        await self.end.wait()

    async def drain(self) -> None:
        self.end.set()
        await anyio.lowlevel.checkpoint()


@pytest.fixture
def story() -> list[str]:
    return []


class StopWhenReady:
    """Observes; stops once the last part is ready."""

    def __init__(self, last: str) -> None:
        self.stop = anyio.Event()
        self.last = last
        self.phases: list[tuple[str, Phase]] = []

    def __call__(self, name: str, phase: Phase) -> None:
        self.phases.append((name, phase))
        if (name, phase) == (self.last, Phase.READY):
            self.stop.set()


async def test_parts_start_in_order_and_drain_in_reverse(story: list[str]) -> None:
    parts = [Part("a", story), Part("b", story), Part("c", story)]
    observer = StopWhenReady("c")
    await serve(parts, observer.stop, observe=observer)
    assert story[:6] == ["a ready", "b ready", "c ready", "c drained", "b drained", "a drained"]
    assert sorted(story[6:]) == ["a gone", "b gone", "c gone"]
    assert observer.phases == [
        *((name, phase) for name in "abc" for phase in (Phase.STARTING, Phase.READY)),
        *((name, Phase.DRAINING) for name in "cba"),
    ]


async def test_a_part_that_fails_takes_the_others_down_with_its_error(story: list[str]) -> None:
    parts = [Part("a", story), Failing("b", story)]
    with pytest.raises(ExceptionGroup) as caught:
        await serve(parts, anyio.Event())
    assert caught.group_contains(ValueError, match="broken")
    assert "a gone" in story


async def test_a_part_that_fails_to_start_takes_the_others_down(story: list[str]) -> None:
    class BadStart(Part):
        async def start(self) -> None:
            raise ValueError("no start")

    with pytest.raises(ExceptionGroup) as caught:
        await serve([Part("a", story), BadStart("b", story), Part("c", story)], anyio.Event())
    assert caught.group_contains(ValueError, match="no start")
    assert story == ["a ready", "b gone", "a gone"]


async def test_a_part_that_ends_by_itself_is_an_error(story: list[str]) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await serve([EndsByItself("a", story)], anyio.Event())
    assert caught.group_contains(RuntimeError, match="a ended by itself")


async def test_a_part_may_end_once_it_is_drained(story: list[str]) -> None:
    parts = [Part("a", story), EndsWhenDrained("b", story)]
    observer = StopWhenReady("b")
    await serve(parts, observer.stop, observe=observer)
    assert "a drained" in story


async def test_a_part_that_is_never_ready_is_named(story: list[str]) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await serve([Part("a", story), NeverReady("b", story)], anyio.Event(), start_s=TINY_S)
    assert caught.group_contains(StartupTimeout, match="b was not ready within 0.01 s")
    assert story == ["a ready", "b gone", "a gone"]


@pytest.mark.parametrize("stuck", [NeverDrained, BadDrain])
async def test_a_part_that_cannot_drain_does_not_keep_the_others_from_it(
    stuck: type[Part], story: list[str]
) -> None:
    parts = [Part("a", story), stuck("b", story)]
    observer = StopWhenReady("b")
    await serve(parts, observer.stop, drain_s=TINY_S, observe=observer)
    assert story[:3] == ["a ready", "b ready", "a drained"]


async def test_a_stop_during_the_start_drains_what_has_started(story: list[str]) -> None:
    parts = [Part("a", story), NeverReady("b", story), Part("c", story)]
    stop = anyio.Event()

    def stop_when_b_starts(name: str, phase: Phase) -> None:
        if (name, phase) == ("b", Phase.STARTING):
            stop.set()

    await serve(parts, stop, observe=stop_when_b_starts)
    assert story == ["a ready", "b gone", "a drained", "a gone"]


async def test_cancelling_leaves_nothing_behind(story: list[str]) -> None:
    async with anyio.create_task_group() as tasks:
        ready = StopWhenReady("b")
        tasks.start_soon(lambda: serve(parts(story), anyio.Event(), observe=ready))
        await ready.stop.wait()
        tasks.cancel_scope.cancel()
    assert sorted(story) == ["a gone", "a ready", "b gone", "b ready"]


def parts(story: list[str]) -> list[Part]:
    return [Part("a", story), Part("b", story)]
