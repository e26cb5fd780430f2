"""Decisions remembered: as they were made, bounded, and told to who asks."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from controlplane.cli.explain import ask_routers
from controlplane.router.core import RouterCore
from controlplane.router.explain import Decisions, Made, in_a_line
from controlplane.router.settings import RouterSettings
from controlplane.router.teller import Teller
from proto.codec import Producer, Reader
from proto.decisions import Decision
from proto.ids import Incarnation, RequestId, WorkerId
from proto.kv import KvBatch
from proto.progress import Phase, Progress
from proto.subjects import Subjects
from proto.wire.memory.bus import MemoryHub
from proto.workers import WorkerState
from tests.unit.controlplane.router.test_core import PROMPT, ask, chosen, names_of, record, router

SUBJECTS = Subjects("c")


def decided(core: RouterCore, request: str) -> Sequence[Made]:
    return list(core.decisions.of(RequestId(request)))


def test_every_candidate_is_told_with_its_terms_the_cheapest_first() -> None:
    core = router("a", "b", "c")
    core.worker_joined(record("c", state=WorkerState.DRAINING))
    core.apply(KvBatch(WorkerId("b"), names_of(PROMPT)))
    answer = chosen(ask(core, "1"))
    [made] = decided(core, "1")
    told = made.told("r", 12.0)
    assert (told.worker, told.policy, told.time_s) == (answer.worker, "kv", 12.0)
    assert [(term.worker, term.overlap_blocks) for term in told.terms] == [
        ("b", 20), ("a", 0), ("c", 0),
    ]  # fmt: skip
    assert told.terms[0].cost < told.terms[1].cost
    assert told.terms[2].excluded == "draining"


def test_what_happens_later_does_not_change_what_was_seen() -> None:
    core = router("a", "b")
    first = chosen(ask(core, "1"))
    before = decided(core, "1")[0].terms()
    for nth in range(2, 9):
        ask(core, str(nth))
    core.progress(Progress(RequestId("1"), first.worker, 1, Phase.ENDED), 1.0)
    assert decided(core, "1")[0].terms() == before
    assert all(term.requests == 0 for term in before)


def test_attempts_of_one_request_are_told_in_order() -> None:
    core = router("a", "b")
    first = chosen(ask(core, "1"))
    second = chosen(ask(core, "1", attempt=2, exclude=(first.worker,)))
    made = [each.told("r", 0.0) for each in decided(core, "1")]
    assert [(each.attempt, each.worker) for each in made] == [
        (1, first.worker), (2, second.worker),
    ]  # fmt: skip
    assert made[1].terms[-1].excluded == "just_failed"


def test_the_oldest_are_forgotten_when_there_are_too_many_candidates() -> None:
    core, kept = router("a", "b"), Decisions(rows_max=6)
    for nth in range(5):
        ask(core, str(nth))
        assert core.decisions.last is not None
        kept.keep(core.decisions.last)
    assert len(kept) == 3
    assert not list(kept.of(RequestId("1")))
    assert list(kept.of(RequestId("4")))


def test_a_policys_own_terms_are_in_the_line_for_traces() -> None:
    core = router("a")
    ask(core, "1")
    [term] = decided(core, "1")[0].terms()
    assert in_a_line(term).startswith("a cost=")
    assert "requests=0" in in_a_line(term)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_who_remembers_answers_and_a_sample_is_published(anyio_backend: str) -> None:
    settings = RouterSettings(decisions_share=1.0)
    heard: list[Decision] = []
    async with MemoryHub() as hub, anyio.create_task_group() as tasks:
        replicas = [router("a"), router("a")]
        for nth, core in enumerate(replicas):
            core.name = f"r{nth}"
            producer = Producer(core.name, Incarnation(1), lambda: 0.0)
            teller = Teller(
                settings, hub.connect(core.name), SUBJECTS, core, producer, lambda: 50.0
            )
            tasks.start_soon(teller.run)
            if nth == 0:
                ask(core, "q")
                assert core.decisions.last is not None
                first = teller
                made = core.decisions.last

        async def listen() -> None:
            reader = Reader[Decision](Decision)
            async with hub.connect("spy").subscribe(SUBJECTS.decisions) as messages:
                heard.append(reader.open((await anext(aiter(messages))).data).body)

        tasks.start_soon(listen)
        await wait_all_tasks_blocked()
        first.note(made)
        found = await ask_routers(hub.connect("cli"), SUBJECTS, RequestId("q"), 0.2)
        nobody = await ask_routers(hub.connect("cli2"), SUBJECTS, RequestId("other"), 0.1)
        tasks.cancel_scope.cancel()
    assert [(each.router, each.worker) for each in found] == [("r0", "a")]
    assert [each.request for each in heard] == ["q"]
    assert nobody == []
