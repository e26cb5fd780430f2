"""Decisions remembered: as they were made, bounded, and told to who asks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import anyio
import numpy as np
import pytest
from anyio import wait_all_tasks_blocked
from rich.console import Console

from controlplane.cli.explain import headline, table
from controlplane.cli.main import main
from controlplane.router.core import RouterCore
from controlplane.router.explain import (
    DECISION_BYTES,
    WORKER_BYTES,
    Decisions,
    Made,
    attributes_of,
    in_a_line,
)
from controlplane.router.settings import RouterSettings
from controlplane.router.teller import TOLD_BYTES_MAX, Teller
from controlplane.runtime.asking import ask_routers
from proto.codec import Producer, Reader
from proto.decisions import Decision, Explained, ExplainRequest
from proto.ids import Incarnation, RequestId, WorkerId
from proto.kv import KvBatch
from proto.progress import Phase, Progress
from proto.route import Rejected
from proto.subjects import Subjects
from proto.wire.memory.bus import MemoryHub
from proto.wire.nats import NatsBus, NatsSettings
from proto.workers import WorkerState
from tests.support.nats_server import nats_server
from tests.support.router_core import (
    PROMPT,
    ask,
    chosen,
    names_of,
    question,
    record,
    router,
)

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
    core, kept = router("a", "b"), Decisions(3 * (DECISION_BYTES + 2 * WORKER_BYTES))
    for nth in range(5):
        ask(core, str(nth))
        assert core.decisions.last is not None
        kept.keep(core.decisions.last)
    assert len(kept) == 3
    assert not list(kept.of(RequestId("1")))
    assert list(kept.of(RequestId("4")))


def test_those_who_were_out_of_the_question_count_too() -> None:
    """Else many requests that could go to one worker only would be remembered with all others."""
    core, kept = (
        router(*(f"w{i}" for i in range(10))),
        Decisions(2 * (DECISION_BYTES + 10 * WORKER_BYTES)),
    )
    for nth in range(5):
        ask(core, str(nth), exclude=tuple(WorkerId(f"w{i}") for i in range(9)))
        assert core.decisions.last is not None
        kept.keep(core.decisions.last)
    assert len(kept) == 2


def test_one_made_anew_takes_the_place_of_the_first() -> None:
    core, kept = router("a", "b"), Decisions(2 * (DECISION_BYTES + 2 * WORKER_BYTES))
    for request in ("1", "2", "1", "1"):
        ask(core, request)
        assert core.decisions.last is not None
        kept.keep(core.decisions.last)
    assert len(kept) == 2
    assert len(kept.of(RequestId("1"))) == 1
    assert len(kept.of(RequestId("2"))) == 1


@pytest.mark.parametrize(
    ("other", "reason", "excluded"),
    [
        ({"model": "other"}, "unknown_model", []),
        ({"exclude": (WorkerId("a"),)}, "no_worker", [("a", "just_failed")]),
    ],
)
def test_who_was_turned_away_is_told_why(
    other: dict[str, object], reason: str, excluded: list[tuple[str, str]]
) -> None:
    core = router("a")
    verdict = ask(core, "1", 0.0, **other)
    assert isinstance(verdict, Rejected)
    [made] = decided(core, "1")
    told = made.told("r", 12.0)
    assert (told.worker, told.reason) == (None, reason)
    assert [(term.worker, term.excluded) for term in told.terms] == excluded
    span = attributes_of(question("1"), verdict, made)
    assert span["tokenplane.rejected"] == reason
    assert headline(told).plain.endswith(f"turned away, {reason}")


def test_a_span_tells_of_so_many_candidates_and_no_more() -> None:
    core = router(*(f"w{i}" for i in range(200)))
    verdict = chosen(ask(core, "1"))
    span = attributes_of(question("1"), verdict, decided(core, "1")[0])
    assert span["tokenplane.worker"] == verdict.worker
    lines = span["tokenplane.candidates"]
    assert isinstance(lines, list)
    assert len(lines) == 64


def test_an_id_that_cannot_be_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "a b"]) == 2
    assert "request 'a b' must be" in capsys.readouterr().err


def printed(core: RouterCore, request: str, columns: int = 120) -> str:
    console = Console(file=io.StringIO(), width=columns, color_system=None)
    for made in decided(core, request):
        told = made.told("r", 12.0)
        console.print(headline(told), table(told))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_decision_fits_on_a_screen_however_large_the_fleet() -> None:
    core = router(*(f"w{i}" for i in range(100)))
    for i in range(50):
        core.worker_joined(record(f"w{i}", taints=("[red]",)))
    worker = chosen(ask(core, "1")).worker
    lines = printed(core, "1").splitlines()
    assert len(lines) < 50
    assert max(map(len, lines)) <= 120
    assert lines[0].endswith(f"320 prompt tokens of m to {worker}, policy kv")
    assert any(line.split() == ["w0", "tainted"] for line in lines)
    assert any("and 30 dearer ones" in line for line in lines)
    assert any("and 30 more excluded" in line for line in lines)


def test_so_many_candidates_are_told_of_the_chosen_one_among_them() -> None:
    core = router(*(f"w{i}" for i in range(6)))
    for i in (0, 1):
        core.worker_joined(record(f"w{i}", taints=("spot",)))
    ask(core, "1")
    [made] = decided(core, "1")
    made = replace(made, chosen=3)
    for most, weighed, excluded, left_out in (
        (6, 4, 2, 0),
        (5, 4, 1, 1),
        (2, 2, 0, 4),
        (0, 0, 0, 6),
    ):
        told = made.told("r", 0.0, most)
        assert sum(not term.excluded for term in told.terms) == weighed
        assert sum(bool(term.excluded) for term in told.terms) == excluded
        assert told.left_out == left_out
        assert not most or made.worker in {term.worker for term in told.terms}
    lines = io.StringIO()
    Console(file=lines, width=120).print(table(made.told("r", 0.0, 2)))
    assert "and 4 more that are not told of" in lines.getvalue()


@pytest.mark.anyio
async def test_an_explanation_fits_into_a_message_however_large_the_fleet() -> None:
    core = router(*(f"{i:0128}" for i in range(3_000)))
    for attempt in range(1, 6):
        ask(core, "q", attempt=attempt)
    async with MemoryHub() as hub, anyio.create_task_group() as tasks:
        producer = Producer("r", Incarnation(1), lambda: 0.0)
        settings = RouterSettings(decisions_share=1.0)
        teller = Teller(settings, hub.connect("r"), SUBJECTS, core, producer, lambda: 0.0)
        tasks.start_soon(teller.run)
        async with (
            hub.connect("spy").subscribe(SUBJECTS.decisions) as decisions,
            hub.connect("cli").subscribe(SUBJECTS.explained(RequestId("q"))) as answers,
        ):
            await wait_all_tasks_blocked()
            assert core.decisions.last is not None
            teller.note(core.decisions.last)
            question = producer.seal(ExplainRequest(RequestId("q")))
            await hub.connect("cli").publish(SUBJECTS.explain, question)
            with anyio.fail_after(10):
                decision, answer = await anext(aiter(decisions)), await anext(aiter(answers))
        tasks.cancel_scope.cancel()
    assert max(len(decision.data), len(answer.data)) <= TOLD_BYTES_MAX
    told = [
        Reader[Decision](Decision).open(decision.data).body,
        *Reader[Explained](Explained).open(answer.data).body.decisions,
    ]
    assert len(told) == 6
    assert all(len(each.terms) > 100 for each in told)
    assert all(len(each.terms) + each.left_out == 3_000 for each in told)


@pytest.mark.anyio
async def test_a_decision_that_fits_into_no_message_ends_nobody(tmp_path: Path) -> None:
    core = router("a")
    ask(core, "large", model="x" * (1 << 20))
    ask(core, "small")
    producer = Producer("r", Incarnation(1), lambda: 0.0)
    with nats_server(tmp_path) as server:
        async with (
            NatsBus(NatsSettings(servers=(server.url,))) as bus,
            NatsBus(NatsSettings(servers=(server.url,))) as cli,
            cli.subscribe(SUBJECTS.explained(RequestId("small"))) as answers,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(Teller(RouterSettings(), bus, SUBJECTS, core, producer, float).run)

            async def go_on_asking() -> None:
                while True:
                    for request in ("large", "small"):
                        question = producer.seal(ExplainRequest(RequestId(request)))
                        await cli.publish(SUBJECTS.explain, question)
                    await anyio.sleep(0.01)

            tasks.start_soon(go_on_asking)
            with anyio.fail_after(10):
                for _ in range(2):
                    await anext(aiter(answers))
            tasks.cancel_scope.cancel()


def test_what_a_policy_says_and_slower_tiers_have_columns_where_there_are_any() -> None:
    core = router("a")
    ask(core, "1")
    assert "disk" not in printed(core, "1")
    [made] = decided(core, "1")
    one, none = np.ones(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    overlap = made.overlap._replace(held_tokens=48 * one, disk_tokens=16 * one, host_tokens=none)
    told = replace(made, overlap=overlap, values={"harm_ms": 1.5 * np.ones(1)}).told(
        "r", 0.0, 1_000
    )
    columns = {str(column.header): list(column.cells) for column in table(told).columns}
    assert columns["overlap blocks"] == ["3"]
    assert columns["on disk"] == ["1"]
    assert columns["harm_ms"] == ["1.5"]
    assert "in host memory" not in columns


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
