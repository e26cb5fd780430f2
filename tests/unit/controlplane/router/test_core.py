"""Decisions: who may be chosen, what is booked, and what is answered when nobody can."""

from __future__ import annotations

import random

import pytest

from controlplane.router.core import RouterCore
from controlplane.router.settings import RouterSettings
from proto.hashing import BlockHasher, Scope, pack
from proto.ids import RequestId, WorkerId
from proto.kv import KvBatch
from proto.load import LoadReport
from proto.progress import Phase, Progress
from proto.route import NO_WORKER, UNKNOWN_MODEL, Chosen, Rejected, RouteReply, RouteRequest
from proto.workers import Role, WorkerRecord, WorkerState

BLOCK = 16
PROMPT = list(range(320))


def record(name: str, **other: object) -> WorkerRecord:
    fields: dict[str, object] = {
        "worker": name,
        "incarnation": 1,
        "model": "m",
        "engine": "sim",
        "url": f"http://{name}",
        "state": WorkerState.READY,
        "block_tokens": BLOCK,
        "total_blocks": 1_000,
    }
    return WorkerRecord.model_validate({**fields, **other})


def router(*names: str, policy: str = "kv") -> RouterCore:
    core = RouterCore(RouterSettings(policy=policy), "r", random.Random(0))
    for name in names:
        core.worker_joined(record(name))
    return core


def names_of(tokens: list[int], scope: Scope | None = None) -> bytes:
    return pack(BlockHasher(b"k", scope or Scope("m"), BLOCK).names(tokens))


def ask(core: RouterCore, request: str = "1", **other: object) -> RouteReply:
    fields = {"model": "m", "prompt_tokens": len(PROMPT), "blocks": {BLOCK: names_of(PROMPT)}}
    return core.decide(RouteRequest(RequestId(request), **{**fields, **other}), 0.0)  # type: ignore[arg-type]


def chosen(reply: RouteReply) -> Chosen:
    assert isinstance(reply, Chosen)
    return reply


def test_the_holder_of_the_prefix_is_chosen_and_the_overlap_told() -> None:
    core = router("a", "b", "c")
    core.apply(KvBatch(WorkerId("b"), names_of(PROMPT)))
    reply = chosen(ask(core))
    assert (reply.worker, reply.overlap_blocks, reply.url) == ("b", 20, "http://b")


@pytest.mark.parametrize(
    "scope", [Scope("m", tenant="other"), Scope("m", adapter="lora"), Scope("other")]
)
def test_kr8_the_same_text_in_another_scope_is_not_the_same_blocks(scope: Scope) -> None:
    core = router("a", "b")
    core.apply(KvBatch(WorkerId("b"), names_of(PROMPT, scope)))
    assert chosen(ask(core)).overlap_blocks == 0


def test_a_burst_is_spread_before_any_load_report() -> None:
    core = router("a", "b", "c", "d")
    workers = [chosen(ask(core, str(i), blocks={})).worker for i in range(8)]
    assert sorted(workers) == sorted("aabbccdd")


def test_booked_work_goes_when_the_request_ends() -> None:
    core = router("a")
    ask(core)
    assert core.ledger.of(WorkerId("a")).requests == 1
    core.progress(Progress(RequestId("1"), WorkerId("a"), 1, Phase.ENDED), 1.0)
    assert core.ledger.of(WorkerId("a")).requests == 0


def test_reported_load_and_booked_load_are_not_added() -> None:
    core = router("a", policy="least_loaded")
    for i in range(3):
        ask(core, str(i))
    core.observe_load(LoadReport(WorkerId("a"), 2, 1, 0, 0, 0, 0, 0, 0, 0), 0.0)
    reply = chosen(ask(core, "x", explain=True))
    assert reply.terms[0].cost == 3


def test_load_that_came_by_another_way_counts() -> None:
    core = router("a", "b", policy="least_loaded")
    core.observe_load(LoadReport(WorkerId("a"), 9, 0, 0, 0, 0, 0, 0, 0, 0), 0.0)
    assert chosen(ask(core)).worker == "b"


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"state": WorkerState.DRAINING}, "draining"),
        ({"state": WorkerState.UNHEALTHY}, "unhealthy"),
        ({"state": WorkerState.STARTING}, "starting"),
        ({"role": Role.PREFILL}, "prefill_only"),
    ],
)
def test_kr15_who_cannot_serve_is_filtered_and_the_filter_named(
    other: dict[str, object], why: str
) -> None:
    core = router("good")
    core.worker_joined(record("bad", **other))
    reply = chosen(ask(core, explain=True))
    assert reply.worker == "good"
    assert [(t.worker, t.excluded) for t in reply.terms if t.excluded] == [("bad", why)]


def test_a_worker_that_has_just_failed_is_not_tried_again() -> None:
    core = router("a", "b")
    assert chosen(ask(core, exclude=(WorkerId("a"),))).worker == "b"


def test_nobody_to_choose_is_an_answer_with_its_reason() -> None:
    core = router("a")
    unknown = ask(core, model="other")
    assert isinstance(unknown, Rejected)
    assert unknown.reason == UNKNOWN_MODEL
    nobody = ask(core, exclude=(WorkerId("a"),))
    assert isinstance(nobody, Rejected)
    assert nobody.reason == NO_WORKER
    assert nobody.retry_after_s > 0
    assert "a is just_failed" in nobody.detail


def test_a_worker_that_leaves_is_forgotten_with_its_blocks() -> None:
    core = router("a", "b")
    core.apply(KvBatch(WorkerId("a"), names_of(PROMPT)))
    core.worker_left(WorkerId("a"))
    core.apply(KvBatch(WorkerId("a"), names_of(PROMPT)))
    core.worker_joined(record("a"))
    assert chosen(ask(core, exclude=(WorkerId("b"),))).overlap_blocks == 0


def test_a_request_may_choose_its_policy_and_a_wrong_one_is_refused() -> None:
    core = router("a", "b")
    assert chosen(ask(core, policy="round_robin")).policy == "round_robin"
    with pytest.raises(ValueError, match="there is no policy"):
        ask(core, policy="magic")


def test_equal_histories_give_equal_decisions() -> None:
    def run() -> list[str]:
        core = router("a", "b", "c", policy="random")
        return [chosen(ask(core, str(i))).worker for i in range(30)]

    assert run() == run()
