"""What an agent says of its engine, whatever happens to either."""

from __future__ import annotations

import json

import anyio
import pytest

from controlplane.client.cluster import Cluster, NotThere
from proto.codec import Producer
from proto.ids import Incarnation, RequestId
from proto.progress import Phase, Progress
from proto.transfers import Evacuated
from proto.wire.errors import RequestRefused
from proto.wire.memory import store
from proto.wire.ports import Endpoint, Message, ServiceInfo
from proto.workers import KvTransfer, ModelCard, WorkerState
from tests.unit.agents.clocks import VIRTUAL
from tests.unit.agents.engine import MODEL, MemoryEngine
from tests.unit.agents.reader import wait_until
from tests.unit.agents.world import KEYS, SUBJECTS, WORKER, World, running

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", VIRTUAL], ids=["asyncio", "virtual"]),
]

PROMPT = list(range(100, 140))  # ten blocks of four
OTHER = list(range(900, 940))


async def test_engine_cache_reaches_a_reader() -> None:
    async with running(World()) as (world, _):
        await world.is_registered_as(WorkerState.READY)
        world.engine.serve(PROMPT)
        world.engine.serve(PROMPT[:20] + OTHER)
        await world.agrees()
        world.engine.evict(PROMPT)
        await world.agrees()
        await world.reader.has_report(live_blocks=19, healthy=True, draining=False)
        assert len(world.reader.names) == 19
        assert world.agent.serving


async def test_the_record_and_the_card_tell_what_the_engine_is() -> None:
    settings = {
        "topology": {"rack": "r1"},
        "taints": ("slow",),
        "public_url": "http://outside:1/",
        "hardware": "h200-sxm",
        "accelerators": 2,
        "capabilities": ("guided_decoding",),
    }
    async with running(World(**settings)) as (world, _):
        await world.is_registered_as(WorkerState.READY)
        record = world.record()
        assert record is not None
        assert record.model_dump(
            include={"model", "engine", "engine_version", "url", "taints"}
        ) == {
            "model": MODEL,
            "engine": "sim",
            "engine_version": "0.32.0",
            "url": "http://outside:1",
            "taints": ("slow",),
        }
        assert (record.block_tokens, record.total_blocks, record.kv_events) == (4, 64, True)
        assert record.incarnation == world.agent.incarnation
        assert record.hardware.topology == {"rack": "r1"}
        assert (record.hardware.memory_gb, record.hardware.price_per_hour) == (141, 8.0)  # HW2
        assert record.capabilities == ("guided_decoding",)
        card = ModelCard.model_validate_json(world.etcd.entries[KEYS.model(MODEL)].value)
        assert card == ModelCard(name=MODEL, context_tokens=2048)


async def test_adapters_come_and_go_while_the_engine_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.adapters.vllm.ADAPTERS_S", 0.0)

    def serve(world: World, *names: str) -> None:
        base = {"id": MODEL, "max_model_len": 2048}
        lora = [{"id": name, "parent": MODEL} for name in names]
        world.engine.answers["/v1/models"] = json.dumps({"data": [base, *lora]})

    async def told(world: World, *names: str) -> None:
        def registered() -> tuple[str, ...]:
            record = world.record()
            return record.adapters if record else ()

        await wait_until(lambda: registered() == names)
        assert registered() == names

    async with running(World(loads_adapters=True)) as (world, _):
        await world.is_registered_as(WorkerState.READY)
        for names in (("jurist", "poet"), ("poet",), ()):
            serve(world, *names)
            await told(world, *names)
        record = world.record()
        assert record is not None and record.loads_adapters


async def test_an_agent_that_comes_late_learns_the_past() -> None:
    world = World()
    world.engine.serve(PROMPT)
    world.engine.serve(OTHER)
    async with running(world):
        await world.agrees()
        assert len(world.reader.names) == 20


async def test_blocks_with_several_copies_live_until_the_last_is_gone() -> None:
    async with running(World()) as (world, _):
        world.engine.serve(PROMPT)
        world.engine.serve(PROMPT, copy_from=9)
        world.engine.evict(PROMPT)
        world.engine.serve(PROMPT, copy_from=9)
        await world.agrees()
        assert len(world.reader.names) == 10


async def test_a_reset_is_told_with_the_next_batch() -> None:
    async with running(World()) as (world, _):
        world.engine.serve(PROMPT)
        await world.agrees()
        world.engine.reset()
        world.engine.serve(OTHER)
        await world.agrees()
        assert len(world.reader.names) == 10


async def test_a_restarted_engine_that_speaks_at_once() -> None:
    """Its numbers begin at 0 again; nothing of the former life stays, nothing new is ignored."""
    async with running(World()) as (world, _):
        world.engine.serve(PROMPT)
        await world.agrees()
        world.engine.restart()
        world.engine.serve(OTHER)
        await world.agrees()
        await anyio.sleep(0.1)  # and the poll that notices the new life takes nothing away
        await world.agrees()
        await world.is_registered_as(WorkerState.READY)


async def test_a_restarted_engine_that_is_silent() -> None:
    """No event tells, but the metrics do."""
    async with running(World()) as (world, _):
        world.engine.serve(PROMPT)
        await world.agrees()
        world.engine.restart()
        await world.agrees()
        assert world.reader.names == set()


async def test_a_restarted_engine_that_is_silent_and_tells_no_start() -> None:
    """It was away for a moment, and does not remember its last batch."""
    world = World()
    world.engine.tells_start = False
    async with running(world):
        world.engine.serve(PROMPT)
        world.engine.queried_tokens = 0  # no counter falls either
        await world.agrees()
        world.engine.reachable = False
        await world.is_registered_as(WorkerState.UNHEALTHY)
        world.engine.restart()
        world.engine.reachable = True
        await world.is_registered_as(WorkerState.READY)
        await world.agrees()
        assert world.reader.names == set()


async def test_a_restarted_engine_whose_numbers_have_caught_up() -> None:
    """What arrives looks like a hole in the former life, and the replay fills it."""
    async with running(World()) as (world, _):
        world.engine.serve(PROMPT)
        await world.agrees()
        world.engine.restart()
        world.engine.deaf = True
        world.engine.serve(OTHER[:8])
        world.engine.serve(OTHER[:16])
        world.engine.deaf = False
        world.engine.serve(OTHER)
        await world.agrees()


async def test_a_restart_without_a_replay_socket_keeps_what_was_heard() -> None:
    async with running(World(replay=None)) as (world, _):
        await world.is_registered_as(WorkerState.READY)
        world.engine.serve(PROMPT)
        await world.agrees()
        world.engine.restart()
        world.engine.serve(OTHER)
        await world.agrees()
        await anyio.sleep(0.1)
        await world.agrees()


async def test_a_silent_restart_without_a_replay_socket_is_seen_in_the_metrics() -> None:
    async with running(World(replay=None)) as (world, _):
        await world.is_registered_as(WorkerState.READY)
        world.engine.serve(PROMPT)
        await world.agrees()
        world.engine.restart()
        await world.agrees()
        assert world.reader.names == set()


async def test_an_agent_whose_clock_was_set_back_outranks_its_past_all_the_same() -> None:
    """Killed, it has left its record behind, which lives as long as its lease."""
    world = World()
    async with running(world):
        world.engine.serve(PROMPT)
        await world.agrees()
        left, former = world.etcd.entries[KEYS.worker(WORKER)], world.agent.incarnation
    await world.store.put(left.key, left.value)
    world.agent = world.new_agent(clock=lambda: anyio.current_time() - 3600.0)
    assert world.agent.incarnation < former
    world.engine.evict(PROMPT)
    async with running(world):
        await wait_until(lambda: (r := world.record()) is not None and r.incarnation > former)
        await wait_until(lambda: world.reader.incarnation == world.agent.incarnation > former)
        await world.agrees()


async def test_an_engine_that_comes_back_with_other_blocks_is_attached_to_anew() -> None:
    async with running(World()) as (world, _):
        world.engine.serve(PROMPT)
        await world.agrees()
        world.engine.restart(block_tokens=8)
        world.engine.serve(PROMPT)
        await world.agrees()
        await wait_until(lambda: (r := world.record()) is not None and r.block_tokens == 8)
        await world.is_registered_as(WorkerState.READY)
        assert len(world.reader.names) == 5


async def test_a_restarted_agent_outranks_its_past() -> None:
    world = World()
    async with running(world):
        world.engine.serve(PROMPT)
        await world.agrees()
    assert world.state() is None
    await anyio.sleep(0.01)  # incarnations are milliseconds
    former, world.agent = world.agent.incarnation, world.new_agent()
    world.engine.evict(PROMPT)
    async with running(world):
        await world.agrees()
        await wait_until(lambda: world.reader.incarnation == world.agent.incarnation)
        assert world.reader.incarnation == world.agent.incarnation > former
        await world.agrees()


async def test_events_that_no_replay_brings_back_leave_only_what_is_certain() -> None:
    async with running(World()) as (world, _):
        world.engine.serve(PROMPT)
        await world.agrees()
        world.engine.deaf = True
        world.engine.evict(PROMPT)
        world.engine.deaf = False
        world.engine.kept.clear()
        world.engine.serve(OTHER)
        await world.reader.holds(world_names(world, OTHER))
        world.engine.serve(PROMPT[:36] + OTHER[:4])  # stored behind nine blocks that must be there
        await world.agrees()
        assert len(world.reader.names) == 20


async def test_an_engine_that_does_not_answer_is_unhealthy_until_it_does() -> None:
    async with running(World()) as (world, _):
        world.engine.serve(PROMPT)
        await world.agrees()
        fetched = len(world.reader.fetched)
        world.engine.reachable = False
        await world.is_registered_as(WorkerState.UNHEALTHY)
        await world.reader.has_report(healthy=False)
        assert not world.agent.serving
        world.engine.reachable = True
        await world.is_registered_as(WorkerState.READY)
        await world.reader.has_report(healthy=True)
        await world.agrees()
        assert len(world.reader.fetched) == fetched


async def test_an_engine_whose_core_has_died_is_unhealthy() -> None:
    """Its HTTP server and metrics go on."""
    async with running(World()) as (world, _):
        await world.is_registered_as(WorkerState.READY)
        world.engine.answers["/health"] = None
        await world.is_registered_as(WorkerState.UNHEALTHY)


async def test_an_engine_that_comes_after_its_agent() -> None:
    world = World()
    world.engine.reachable = False
    async with running(world):
        await anyio.sleep(0.1)
        assert world.state() is None
        world.engine.reachable = True
        await world.is_registered_as(WorkerState.READY)
        world.engine.serve(PROMPT)
        await world.agrees()


async def test_blocks_of_another_size_than_said_are_refused_aloud(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    world.engine.told_block_tokens = 8
    async with running(world):
        await world.is_registered_as(WorkerState.READY)
        world.engine.serve(PROMPT)
        await world.is_registered_as(WorkerState.UNHEALTHY)
        await world.reader.has_report(healthy=False, live_blocks=0)
        assert "THIS ENGINE MAY NOT SERVE" in caplog.text
        assert "8 tokens" in caplog.text
        await anyio.sleep(0.1)
        assert world.state() is WorkerState.UNHEALTHY
        world.engine.told_block_tokens = None
        world.engine.restart()
        world.engine.serve(PROMPT)
        await world.is_registered_as(WorkerState.READY)
        await world.agrees()


async def test_an_engine_without_kv_events_is_served_with_a_loud_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(World(events=None, replay=None)) as (world, _):
        await world.is_registered_as(WorkerState.READY)
        record = world.record()
        assert record is not None
        assert not record.kv_events
        assert "NO KV EVENTS" in caplog.text
        world.engine.running = 3
        await world.reader.has_report(running=3, live_blocks=0)


async def test_a_drain_waits_for_the_requests_and_then_leaves() -> None:
    async with running(World()) as (world, tasks):
        await world.is_registered_as(WorkerState.READY)
        world.engine.running = 1
        await world.reader.has_report(running=1)
        tasks.start_soon(world.agent.drain)
        await world.is_registered_as(WorkerState.DRAINING)
        await world.reader.has_report(draining=True)
        await anyio.sleep(0.2)
        assert world.state() is WorkerState.DRAINING
        world.engine.running = 0
        await world.is_registered_as(None)


async def test_a_drain_waits_for_requests_that_are_on_their_way() -> None:
    async with running(World()) as (world, tasks):
        await world.is_registered_as(WorkerState.READY)
        gateway, producer = world.hub.connect("gateway"), _producer()

        async def say(phase: Phase) -> None:
            step = Progress(RequestId("r"), WORKER, 1, phase, outcome="completed")
            await gateway.publish(SUBJECTS.progress(WORKER), producer.seal(step))

        await say(Phase.DISPATCHED)
        tasks.start_soon(world.agent.drain)
        await world.is_registered_as(WorkerState.DRAINING)
        await anyio.sleep(0.2)
        assert world.state() is WorkerState.DRAINING
        await say(Phase.ENDED)
        await world.is_registered_as(None)


@pytest.mark.parametrize("fetched", [True, False], ids=["fetched", "lease over"])
async def test_cp9_a_drain_waits_until_staged_blocks_are_fetched_or_their_lease_is_over(
    fetched: bool,
) -> None:
    """The leg has ended with the prefill's answer, and the engine has no request left."""
    lease_s = 1000.0 if fetched else 1.0
    transfer = KvTransfer(connector="sim-tcp", lease_s=lease_s)
    async with running(World(role="prefill", kv_transfer=transfer)) as (world, tasks):
        await world.is_registered_as(WorkerState.READY)
        gateway, producer = world.hub.connect("gateway"), _producer()
        for phase in (Phase.DISPATCHED, Phase.ENDED):
            step = Progress(RequestId("r"), WORKER, 1, phase, outcome="completed")
            await gateway.publish(SUBJECTS.progress(WORKER), producer.seal(step))
        world.engine.used_blocks = 3
        operator = Cluster(world.hub.connect("operator"), world.etcd.connect(), "test")
        assert (await operator.drain(WORKER)).left == 1  # though it was last polled before
        await world.reader.has_report(draining=True)
        assert (await operator.drain(WORKER)).left == 1
        tasks.start_soon(world.agent.drain)
        await anyio.sleep(0.2)
        assert world.state() is WorkerState.DRAINING
        if fetched:
            world.engine.used_blocks = 0
        await world.is_registered_as(None)


async def test_a_drain_does_not_wait_for_an_engine_that_is_gone() -> None:
    async with running(World()) as (world, _):
        await world.is_registered_as(WorkerState.READY)
        world.engine.running = 1
        await world.reader.has_report(running=1)
        world.engine.reachable = False
        with anyio.fail_after(10):
            await world.agent.drain()
        assert world.state() is None


async def test_what_the_bus_lost_is_made_up_for() -> None:
    async with running(World()) as (world, _):
        world.engine.serve(PROMPT)
        await world.agrees()
        world.bus.cut()
        for end in range(4, 41, 4):
            world.engine.serve(OTHER[:end])
            await anyio.sleep(0.02)
        world.bus.mend()
        await world.agrees()


async def test_without_a_store_the_cache_is_told_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store, "CALL_S", 0.1)
    world = World()
    world.store.cut()
    async with running(world):
        world.engine.serve(PROMPT)
        await world.agrees()
        assert not world.agent.serving
        world.store.mend()
        await world.is_registered_as(WorkerState.READY)


def world_names(world: World, prompt: list[int]) -> set[int]:
    engine = MemoryEngine()
    engine.serve(prompt)
    return engine.names(world.settings.secret_bytes)


def _producer() -> Producer:
    return Producer("gateway-1", Incarnation(1), anyio.current_time)


async def test_a_worker_is_drained_on_demand_and_serves_again() -> None:
    async with running(World()) as (world, _):
        await world.is_registered_as(WorkerState.READY)
        operator = Cluster(world.hub.connect("operator"), world.etcd.connect(), "test")
        reply = await operator.drain(WORKER)
        assert (reply.draining, reply.left) == (True, 0)
        await world.is_registered_as(WorkerState.DRAINING)
        assert not (await operator.drain(WORKER, undo=True)).draining
        await world.is_registered_as(WorkerState.READY)
        with pytest.raises(NotThere, match="nobody"):
            await operator.drain("nobody")
        await world.agent.drain()
        with pytest.raises(RequestRefused, match="stopping"):
            await operator.drain(WORKER, undo=True)


async def test_a_drain_after_one_that_was_undone_moves_what_is_cached_again() -> None:
    """Undone while the first was still under way, which goes on to its end."""
    transfer = KvTransfer(connector="sim-tcp", copies=True)
    asked: list[Message] = []
    moved = anyio.Event()

    async def move(message: Message) -> bytes:
        asked.append(message)
        await moved.wait()
        return _producer().seal(Evacuated(1, 1))

    async with running(World(kv_transfer=transfer)) as (world, _):
        world.engine.serve(PROMPT)
        await world.agrees()
        chains = {"chains": [{"block_hash": world.engine.tail(PROMPT)}]}
        world.engine.answers["/kv_chains?limit=512"] = json.dumps(chains)
        operator = Cluster(world.hub.connect("operator"), world.etcd.connect(), "test")
        endpoint = Endpoint("evacuate", SUBJECTS.transfer("evacuate"), move)
        info = ServiceInfo("coordinator", "1.0.0", "Moves what a worker caches")
        async with world.hub.connect("coordinator").serve(info, [endpoint]):
            await operator.drain(WORKER)
            await wait_until(lambda: len(asked) == 1)
            reply = await operator.drain(WORKER, undo=True)
            assert reply.evacuating
            moved.set()
            with anyio.fail_after(10):
                while reply.evacuating:
                    reply = await operator.drain(WORKER, undo=True)
            await operator.drain(WORKER)
            await wait_until(lambda: len(asked) == 2)
            assert len(asked) == 2
