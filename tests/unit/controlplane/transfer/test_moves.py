"""Cached prefixes that are moved for their own sake: when that pays, and how it is carried out."""

from __future__ import annotations

import anyio
import msgspec
import pytest
import trio.testing

from controlplane.transfer.book import Book
from controlplane.transfer.cost import Rates
from controlplane.transfer.fleet import Fleet
from controlplane.transfer.movement import Route, Worth, route
from proto.ids import RequestId, WorkerId
from proto.load import StepSums
from proto.transfers import (
    Chain,
    CommandReply,
    Evacuate,
    Evacuated,
    Move,
    Moved,
    Outcome,
    Purpose,
    State,
    Stays,
    Verb,
)
from proto.workers import Role, WorkerRecord, WorkerState
from tests.unit.controlplane.transfer.world import MODEL, TRANSFER, World, load, record, world

pytestmark = pytest.mark.anyio

COPIES = TRANSFER.model_copy(update={"copies": True, "block_bytes": 1 << 16})
QUICK = StepSums(prefill_tokens=10_000, prompt_ms=1000.0)
WORTH = Worth()
OFFERED = CommandReply(Outcome.DONE, blocks=100, handle=b"where")
FETCHED = CommandReply(Outcome.DONE, kv_bytes=100 << 16, blocks=100)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


def worker(name: str, **changes: object) -> WorkerRecord:
    return record(name, Role.AGGREGATED, transfer=COPIES, total_blocks=4096, **changes)


def asked(
    purpose: Purpose = Purpose.FETCH, source: str = "a", target: str = "b", blocks: int = 100
) -> Move:
    return Move(RequestId("r"), MODEL, purpose, WorkerId(source), 4711, blocks, WorkerId(target))


# --- whether and where to


def weighed(move: Move, *records: WorkerRecord, **loads: int) -> Route | Stays:
    fleet, rates = Fleet({each.worker: each for each in records}), Rates()
    for each in records:
        fleet.loads[each.worker] = load(each.worker, **loads)
        rates.saw_steps(each.worker, QUICK)
    return route(move, fleet, Book(), rates, WORTH)


def reason(move: Move, *records: WorkerRecord, **loads: int) -> str:
    answer = weighed(move, *records, **loads)
    assert isinstance(answer, Stays), answer
    return answer.reason


def test_kr5_a_prefix_is_moved_where_that_beats_computing_it() -> None:
    way = weighed(asked(), worker("a"), worker("b"))
    assert isinstance(way, Route)
    assert (way.source.worker, way.target.worker, way.kv_bytes) == ("a", "b", 100 << 16)
    assert way.computing_s == pytest.approx(0.16) and way.moving_s < way.computing_s / 1.25


def test_a_short_prefix_is_computed_again() -> None:
    assert reason(asked(blocks=5), worker("a"), worker("b")) == "dearer"


def test_a_slow_link_is_not_used_and_what_is_ahead_on_it_counts() -> None:
    one, two = worker("a"), worker("b")
    fleet, rates = Fleet({"a": one, "b": two}), Rates()  # type: ignore[dict-item]
    rates.saw_steps("b", QUICK)
    assert isinstance(route(asked(), fleet, Book(), rates, WORTH), Route)
    rates.saw_transfer("host:a>b", 100 << 20, 1.0)
    told = route(asked(), fleet, Book(), rates, WORTH)
    assert isinstance(told, Route)  # 6.5 MB at 105 MB/s
    book = Book()
    book.link_bytes["host:a>b"] = 10 << 20
    told = route(asked(), fleet, book, rates, WORTH)
    assert isinstance(told, Stays) and told.reason == "dearer"


def test_who_cannot_or_must_not_take_part_is_left_out() -> None:
    one, two = worker("a"), worker("b")
    plain = record("b", Role.AGGREGATED)
    assert reason(asked(), plain.model_copy(update={"worker": "a"}), two) == "cannot"
    assert reason(asked(), one, plain) == "incompatible"
    other = worker("b", engine_version="2")
    assert reason(asked(), one, other) == "incompatible"
    assert reason(asked(), two) == "no_source"
    draining = worker("b", state=WorkerState.DRAINING)
    assert reason(asked(), one, draining) == "no_target"
    assert reason(asked(target=""), one) == "no_target"


def test_nothing_is_moved_before_it_is_known_how_fast_engines_compute() -> None:
    fleet = Fleet({"a": worker("a"), "b": worker("b")})  # type: ignore[dict-item]
    told = route(asked(), fleet, Book(), Rates(), WORTH)
    assert isinstance(told, Stays) and told.reason == "unknown"


def test_what_is_left_behind_takes_only_room_that_is_empty() -> None:
    full = {"live_blocks": 4000}
    assert isinstance(weighed(asked(), worker("a"), worker("b"), **full), Route)
    evacuated = asked(Purpose.EVACUATE)
    assert reason(evacuated, worker("a"), worker("b"), **full) == "no_room"
    busy = {"used_blocks": 3500}
    assert reason(asked(), worker("a"), worker("b"), **busy) == "no_room"


def test_without_a_name_it_goes_where_most_room_is_and_to_nobody_who_has_it() -> None:
    records = [worker("a"), worker("b"), worker("c")]
    fleet, rates = Fleet({each.worker: each for each in records}), Rates()
    rates.saw_steps("a", QUICK)
    fleet.loads[WorkerId("b")] = load("b", used_blocks=1000)
    way = route(asked(target=""), fleet, Book(), rates, WORTH)
    assert isinstance(way, Route) and way.target.worker == "c"
    move = msgspec.structs.replace(asked(target=""), exclude=(WorkerId("c"),))
    way = route(move, fleet, Book(), rates, WORTH)
    assert isinstance(way, Route) and way.target.worker == "b"


# --- carried out


async def ready(made: World, **more: float) -> None:
    made.agents.answers |= {Verb.OFFER: OFFERED, Verb.REPLICATE: FETCHED}
    made.agents.takes_s = more.get("takes_s", 0.01)
    reports = [msgspec.structs.replace(load(each), steps=QUICK) for each in ("a", "b", "c")]
    await made.tell(*reports)
    await anyio.sleep(0.1)


def states(made: World) -> list[State]:
    return [each.after for each in made.seen]


async def test_a_copy_goes_the_way_of_any_ticket() -> None:
    async with world(worker("a"), worker("b")) as made:
        await ready(made)
        reply = await made.asker.move(asked())
        assert isinstance(reply, Moved)
        assert (reply.target, reply.kv_bytes) == ("b", 100 << 16)
        assert made.agents.told == [("a", Verb.OFFER), ("b", Verb.REPLICATE)]
        await anyio.sleep(0.1)
        assert states(made) == [
            State.RESERVED,
            State.PREFILLING,
            State.STAGED,
            State.TRANSFERRING,
            State.LANDED,
            State.RELEASED,
        ]
        assert made.services[0].core.rates.links == pytest.approx({"host:a>b": (100 << 16) / 0.01})
        assert not any(made.services[0].core.book.sums().values())


async def test_a_request_waits_no_longer_than_it_would_take_to_compute() -> None:
    async with world(worker("a"), worker("b")) as made:
        await ready(made, takes_s=5.0)
        began_s = anyio.current_time()
        reply = await made.asker.move(asked())
        waited_s = anyio.current_time() - began_s
        assert 0.05 < waited_s < 0.16  # several times what was predicted; it takes 5 s
        assert reply == Stays("failed", "late")
        await anyio.sleep(1)
        assert states(made)[-1] is State.FAILED
        # Whoever fetches is told to stop, and whoever offers to let go.
        assert made.agents.told[2:] == [("b", Verb.ABORT_DECODE), ("a", Verb.RELEASE)]
        assert not any(made.services[0].core.book.sums().values())
        rates = made.services[0].core.rates
        assert rates.link_bytes_per_s("host:a>b") < (100 << 16) / waited_s
        again = await made.asker.move(asked())
        assert isinstance(again, Stays) and again.reason == "dearer"
        await anyio.sleep(60)
        assert rates.link_bytes_per_s("host:a>b") == 20e9  # it may be tried again


async def test_what_is_gone_at_its_source_is_computed() -> None:
    async with world(worker("a"), worker("b")) as made:
        await ready(made)
        made.agents.answers[Verb.OFFER] = CommandReply(Outcome.GONE)
        assert await made.asker.move(asked()) == Stays("failed", "offer_gone")
        await anyio.sleep(1)
        assert states(made)[-1] is State.FAILED
        assert made.agents.told == [("a", Verb.OFFER), ("a", Verb.ABORT_PREFILL)]


async def test_one_prefix_goes_to_one_worker_once() -> None:
    async with world(worker("a"), worker("b"), replicas=2) as made:
        await ready(made, takes_s=0.05)
        replies = []

        async def move() -> None:
            replies.append(await made.asker.move(asked(Purpose.REPLICATE)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(move)
            await anyio.sleep(0.02)
            tasks.start_soon(move)
        assert sorted(type(each).__name__ for each in replies) == ["Moved", "Stays"]
        assert Stays("under_way", "it is on its way to b") in replies


async def test_one_prefix_that_is_asked_for_twice_at_once_is_moved_once() -> None:
    async with world(worker("a"), worker("b")) as made:
        await ready(made)
        replies = []

        async def move() -> None:
            replies.append(await made.asker.move(asked(Purpose.REPLICATE)))

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(move)
        assert sum(isinstance(each, Moved) for each in replies) == 1
        assert made.agents.told == [("a", Verb.OFFER), ("b", Verb.REPLICATE)]


async def test_a_leaving_worker_leaves_what_belongs_together_to_one_other() -> None:
    async with world(worker("a", state=WorkerState.DRAINING), worker("b"), worker("c")) as made:
        await ready(made)
        chains = (
            Chain(1, 100, 100, 7),
            Chain(2, 120, 60, 7),
            Chain(3, 90, 90, 8),
            Chain(4, 3, 3, 9),
        )
        said = Evacuate(WorkerId("a"), 1, MODEL, chains)
        reply = await made.asker.evacuate(said)
        assert reply == Evacuated(3, 300 << 16)  # the last one is not worth it
        targets = [worker for worker, verb in made.agents.told if verb is Verb.REPLICATE]
        assert targets[0] == targets[1]


async def test_after_a_crash_nothing_stays_held() -> None:
    async with world(worker("a"), worker("b")) as made:
        await ready(made, takes_s=1e6)
        service = made.services[0]
        walk = service.core.move(
            asked(), service._new_id(), service._moves._name, anyio.current_time()
        )
        assert not isinstance(walk, Stays)
        await service._shelf.add(walk[0])  # its replica dies here, and another one reads it
        await anyio.sleep(6)
        assert states(made)[-1] is State.EXPIRED
        assert made.agents.told == [("a", Verb.ABORT_PREFILL)]
