"""A whole agent under random schedules of faults, in virtual time.

Whatever happened to the engine, to its event stream, to the bus, the store and the agent itself:
once it is quiet, a reader holds exactly what a look-up in the engine's cache can find.
"""

from __future__ import annotations

import anyio
import hypothesis.strategies as st
import trio.testing
from anyio.abc import TaskGroup
from hypothesis import given, settings

from proto.workers import WorkerState
from tests.unit.agents.world import World

QUIET_S = 120.0
"""Longer than any retry, lease or check takes."""

PROMPTS = [
    [tenant, *range(length)] for tenant in (1, 2, 3) for length in (7, 11, 15, 23)
]  # of one tenant each is a prefix of the next, apart from a partial block

prompts = st.sampled_from(PROMPTS)
steps = st.one_of(
    st.tuples(st.just("serve"), prompts),
    st.tuples(st.just("copy"), prompts),
    st.tuples(st.just("evict"), prompts),
    st.tuples(st.just("sleep"), st.sampled_from([0.0, 0.01, 0.1, 3.0, 30.0])),
    *(
        st.tuples(st.just(fault), st.none())
        for fault in (
            *("reset", "restart", "deaf", "hear", "away", "back"),
            *("cut_bus", "mend_bus", "cut_store", "mend_store", "new_agent"),
        )
    ),
)


class Schedule:
    """A world, and the agent that runs in it now."""

    def __init__(self, tasks: TaskGroup) -> None:
        self.world = World(load_interval_s=0.5, retry_s=0.5)
        self._tasks = tasks
        self._life = anyio.CancelScope()

    async def begin(self) -> None:
        await self._tasks.start(self.world.reader.run)
        await self._start_agent()

    async def take(self, step: str, argument: object) -> None:
        world, engine = self.world, self.world.engine
        match step, argument:
            case "serve", list(prompt):
                engine.serve(prompt)
            case "copy", list(prompt):
                engine.serve(prompt, copy_from=0)
            case "evict", list(prompt):
                if engine.caches(prompt):
                    engine.evict(prompt)
            case "sleep", float(seconds):
                await anyio.sleep(seconds)
            case "reset", _:
                engine.reset()
            case "restart", _:
                engine.restart()
            case "deaf" | "hear", _:
                engine.deaf = step == "deaf"
            case "away" | "back", _:
                engine.reachable = step == "back"
            case "cut_bus", _:
                world.bus.cut()
            case "mend_bus", _:
                world.bus.mend()
            case "cut_store", _:
                world.store.cut()
            case "mend_store", _:
                world.store.mend()
            case "new_agent", _:
                self._life.cancel()
                world.bus.mend()  # a process does not start without its bus
                await anyio.sleep(5.0)
                world.agent = world.new_agent()
                await self._start_agent()

    async def _start_agent(self) -> None:
        self._life = anyio.CancelScope()
        await self._tasks.start(self._live, self._life)

    async def _live(
        self, life: anyio.CancelScope, *, task_status: anyio.abc.TaskStatus[None]
    ) -> None:
        with life:
            await self.world.agent.run(task_status=task_status)

    async def mend_everything(self) -> None:
        for step in ("hear", "back", "mend_bus", "mend_store"):
            await self.take(step, None)
        self.world.engine.publish()
        await anyio.sleep(QUIET_S)


async def play(schedule: list[tuple[str, object]]) -> None:
    async with anyio.create_task_group() as tasks:
        world_of = Schedule(tasks)
        world = world_of.world
        with world.engine.replaying():
            await world_of.begin()
            for step, argument in schedule:
                await world_of.take(step, argument)
            await world_of.mend_everything()
            assert world.reader.names == world.engine.names(world.settings.secret_bytes)
            assert world.state() is WorkerState.READY
            tasks.cancel_scope.cancel()


@given(st.lists(steps, max_size=30))
@settings(max_examples=60, deadline=None)
def test_once_it_is_quiet_a_reader_holds_what_the_engine_caches(
    schedule: list[tuple[str, object]],
) -> None:
    clock = trio.testing.MockClock(autojump_threshold=0)
    anyio.run(play, schedule, backend="trio", backend_options={"clock": clock})
