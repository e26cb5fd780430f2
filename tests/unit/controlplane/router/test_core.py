"""Decisions: who may be chosen, what is booked, and what is answered when nobody can."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from controlplane.capacity import Capacities
from controlplane.router.busy import BusyLimits
from controlplane.router.core import RouterCore
from controlplane.router.fleet import ADMISSIONS_MAX, Fleet
from controlplane.router.ledger import Ledger
from controlplane.router.policies.catalog import Catalog
from controlplane.router.requests import booking_of, check
from controlplane.router.settings import RouterSettings
from proto.constraints import Constraints
from proto.hashing import BlockHasher, Scope, pack
from proto.ids import RequestId, WorkerId
from proto.kv import KvBatch, Tier
from proto.load import StepSums
from proto.numbers import COUNT_MAX
from proto.progress import Booking, Phase, Progress, Withdrawn
from proto.route import NO_WORKER, UNKNOWN_MODEL, Chosen, Rejected, RouteLeg
from proto.workers import Role, WorkerState
from tests.support.router_core import (
    BLOCK,
    PROMPT,
    ask,
    chosen,
    names_of,
    question,
    record,
    report,
    router,
)


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


def test_blocks_in_slower_tiers_count_in_part() -> None:
    """Of 20 blocks: a holds 8 in the GPU, b 4 there, 8 in host memory and 5 on disk."""
    core, names = router("a", "b"), names_of(PROMPT)
    core.apply(KvBatch(WorkerId("a"), names[: 8 * 8]))
    core.apply(KvBatch(WorkerId("b"), names[: 4 * 8]))
    core.apply(KvBatch(WorkerId("b"), names[: 12 * 8], tier=Tier.HOST))
    core.apply(KvBatch(WorkerId("b"), names[12 * 8 : 17 * 8], tier=Tier.DISK))
    request = question(explain=True)
    reply = chosen(core.decide(request, 0.0))
    overlaps = {t.worker: (t.overlap_blocks, t.host_blocks, t.disk_blocks) for t in reply.terms}
    assert overlaps == {"a": (8, 0, 0), "b": (17, 8, 5)}
    assert (reply.worker, reply.overlap_blocks) == ("b", 17)
    saved = (4 + 8 * 0.8 + 5 * 0.5) * BLOCK
    assert booking_of(request, reply).new_prefill_tokens == len(PROMPT) - int(saved)


def test_a_long_run_on_disk_loses_against_a_shorter_one_in_the_gpu() -> None:
    core, names = router("a", "b"), names_of(PROMPT)
    core.apply(KvBatch(WorkerId("a"), names[: 11 * 8]))
    core.apply(KvBatch(WorkerId("b"), names, tier=Tier.DISK))
    assert chosen(ask(core)).worker == "a"


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


def load_of(core: RouterCore, now_s: float = 0.0) -> float:
    """What the next request would find: requests in flight on the one worker there is."""
    reply = chosen(ask(core, "probe", now_s, policy="least_loaded", explain=True))
    core.progress(Progress(RequestId("probe"), reply.worker, 99, Phase.ENDED), now_s)
    return reply.terms[0].cost


def test_reported_load_and_booked_load_are_not_added() -> None:
    core = router("a")
    for i in range(3):
        ask(core, str(i))
    for _ in range(2):
        core.observe_load(report(running=2, waiting=1), 0.0)
        assert load_of(core) == 3


def test_load_that_came_by_another_way_counts_on_top_of_what_we_book() -> None:
    core = router("a")
    core.observe_load(report(running=9), 0.0)
    assert load_of(core) == 9
    ask(core, "1")
    ask(core, "2")
    assert load_of(core) == 11
    core.observe_load(report(running=11), 0.1)
    assert load_of(core) == 11


def test_work_that_ended_while_its_report_was_on_the_way_does_not_count_again() -> None:
    core = router("a")
    core.observe_load(report(), 0.0)
    ask(core, "1")
    core.progress(Progress(RequestId("1"), WorkerId("a"), 1, Phase.ENDED), 1.0)
    core.observe_load(report(running=1), 1.0)
    assert load_of(core, 1.0) == 0


def test_a_report_that_is_too_old_no_longer_counts() -> None:
    core = router("a")
    core.observe_load(report(running=9), 0.0)
    assert load_of(core, 4.9) == 9
    assert load_of(core, 5.1) == 0


def queued_tokens(core: RouterCore, now_s: float) -> int:
    """What the next request would find queued on the one worker there is."""
    reply = chosen(ask(core, "probe", now_s, explain=True))
    core.progress(Progress(RequestId("probe"), reply.worker, 99, Phase.ENDED), now_s)
    return reply.terms[0].queued_prefill_tokens


def test_kr12_prompts_that_two_reports_show_to_be_computed_are_owed_no_longer() -> None:
    """Of an answer that is not streamed nobody says when its first token came."""
    core = router("a")
    ask(core, "1", 0.0)
    core.observe_load(report(running=1), 0.5)
    ask(core, "2", 0.6, blocks={})
    core.observe_load(report(running=2, waiting=1), 0.75)
    core.observe_load(report(running=2), 1.0)
    assert queued_tokens(core, 1.0) == 2 * len(PROMPT)  # only the last one shows nothing queued
    ask(core, "3", 1.1, blocks={})
    core.observe_load(report(running=3), 1.25)
    assert queued_tokens(core, 1.25) == len(PROMPT)  # the third may have come after the first
    core.observe_load(report(running=3), 1.5)
    assert queued_tokens(core, 1.5) == 0
    assert core.ledger.of(WorkerId("a")).requests == 3


def test_reports_that_come_late_and_together_say_nothing_of_what_was_just_booked() -> None:
    core = router("a")
    core.observe_load(report(), 0.0)
    ask(core, "1", 1.0)
    for late_s in (0.001, 0.002, 0.003):
        core.observe_load(report(), 1.0 + late_s)
    assert queued_tokens(core, 1.0) == len(PROMPT)


def test_reports_that_are_too_old_are_no_two_in_a_row() -> None:
    core = router("a")
    core.observe_load(report(), 0.0)
    ask(core, "1", 0.0)
    core.observe_load(report(), 0.25)
    ask(core, "2", 0.3, blocks={})
    assert queued_tokens(core, 6.0) == 2 * len(PROMPT)
    core.observe_load(report(), 6.1)
    assert queued_tokens(core, 6.1) == 2 * len(PROMPT)


def test_a_long_prompt_is_not_taken_for_computed_where_its_engine_does_not_count_it() -> None:
    """vLLM tells how many wait, and not what it is computing."""
    core = router("a")
    for number in range(200):
        step = StepSums(1, number, 0.1 * number, 1, 1_000, 10.0)
        core.observe_load(report(steps=step), 0.25 * number)
    ask(core, "1", 50.0, prompt_tokens=100_000, blocks={})  # at 0.1 ms a token
    for tenth in range(1, 100):
        core.observe_load(report(running=1), 50.0 + tenth / 10)
        assert queued_tokens(core, 50.0 + tenth / 10) == 100_000
    for tenth in range(100, 210):
        core.observe_load(report(running=1), 50.0 + tenth / 10)
    assert queued_tokens(core, 71.0) == 0


@pytest.mark.parametrize("policy", sorted(Catalog().policies))
def test_work_beyond_64_bits_is_very_much_work_and_nobodys_end(policy: str) -> None:
    core = RouterCore(RouterSettings(policy=policy), "r", random.Random(0))
    core.worker_joined(record("a", block_tokens=1_024, total_blocks=COUNT_MAX))
    for number in range((1 << 13) + 1):
        booking = Booking(RequestId(f"{number}"), WorkerId("a"), COUNT_MAX, COUNT_MAX)
        core.booked_elsewhere(booking, 0.0)
    everything = report(waiting=COUNT_MAX, running=COUNT_MAX, queued_prefill_tokens=COUNT_MAX)
    core.observe_load(everything, 0.0)
    assert isinstance(ask(core, blocks={}), Rejected)
    core.adopt(RouterSettings(policy=policy, busy_prefill_batches=0, busy_decode_share=0))
    assert chosen(ask(core, blocks={})).worker == "a"


def test_reports_of_workers_we_do_not_know_are_ignored() -> None:
    core = router("a")
    core.observe_load(report("stranger", running=9), 0.0)
    assert load_of(core) == 0


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


@pytest.mark.parametrize(
    ("other", "why"), [({"draining": True}, "draining"), ({"healthy": False}, "unhealthy")]
)
def test_an_agents_word_on_its_engine_counts_before_the_registrys(
    other: dict[str, object], why: str
) -> None:
    core = router("good", "bad")
    core.observe_load(report("bad", **other), 0.0)
    reply = chosen(ask(core, explain=True))
    assert [(t.worker, t.excluded) for t in reply.terms if t.excluded] == [("bad", why)]
    assert len(chosen(ask(core, "2", 100.0, explain=True)).terms) == 2  # the word has grown old


PLACED = {"hardware": {"topology": {"zone": "b", "rack": "7"}}}


@pytest.mark.parametrize(
    ("other", "constraints", "why"),
    [
        ({}, Constraints(only=(WorkerId("good"), WorkerId("gone"))), "not_allowed"),
        ({"taints": ("spot",)}, Constraints(), "tainted"),
        ({"taints": ("spot", "acme")}, Constraints(tolerations=("spot",)), "tainted"),
        ({}, Constraints(topology=(("zone", "b"), ("rack", "7"))), "topology"),
        (PLACED, Constraints(topology=(("zone", "a"),)), "topology"),
        ({}, Constraints(adapter="poet"), "no_adapter"),
        ({"adapters": ("poet",)}, Constraints(adapter="jurist"), "no_adapter"),
    ],
)
def test_kr15_what_a_request_demands_is_kept(
    other: dict[str, object], constraints: Constraints, why: str
) -> None:
    """`good` meets everything that is asked; the other one does not."""
    core = RouterCore(RouterSettings(), "r", random.Random(0))
    labels = dict(constraints.topology)
    meets = {"adapters": (constraints.adapter,), "hardware": {"topology": labels}}
    core.worker_joined(record("good", **meets))
    core.worker_joined(record("bad", **other))
    reply = chosen(ask(core, constraints=constraints, explain=True))
    assert reply.worker == "good"
    assert [(t.worker, t.excluded) for t in reply.terms if t.excluded] == [("bad", why)]
    alone = ask(core, "2", constraints=constraints, exclude=(WorkerId("good"),))
    assert isinstance(alone, Rejected)
    assert alone.reason == NO_WORKER
    assert f"bad is {why}" in alone.detail


@pytest.mark.parametrize(
    ("other", "constraints"),
    [
        ({}, Constraints(only=(WorkerId("w"),))),
        ({"taints": ("spot", "acme")}, Constraints(tolerations=("acme", "spot", "more"))),
        (PLACED, Constraints(topology=(("zone", "b"),))),
        ({"adapters": ("jurist", "poet")}, Constraints(adapter="poet")),
        ({"loads_adapters": True}, Constraints(adapter="poet")),
    ],
)
def test_kr15_who_meets_a_demand_may_serve(
    other: dict[str, object], constraints: Constraints
) -> None:
    core = RouterCore(RouterSettings(), "r", random.Random(0))
    core.worker_joined(record("w", **other))
    assert chosen(ask(core, constraints=constraints)).worker == "w"


def test_what_came_of_a_demand_does_not_outlive_the_record_it_came_of() -> None:
    core, pinned = router("a", "b"), Constraints(topology=(("zone", "b"),))
    assert isinstance(ask(core, "1", constraints=pinned), Rejected)
    core.worker_joined(record("b", **PLACED))
    assert chosen(ask(core, "2", constraints=pinned)).worker == "b"
    core.observe_load(report("b", healthy=False), 0.0)
    refused = ask(core, "3", constraints=pinned)
    assert isinstance(refused, Rejected)
    assert "b is unhealthy" in refused.detail
    core.observe_load(report("b"), 0.0)
    assert chosen(ask(core, "4", constraints=pinned)).worker == "b"
    core.worker_left(WorkerId("a"))
    assert chosen(ask(core, "5", constraints=pinned)).worker == "b"
    core.worker_joined(record("b"))
    assert isinstance(ask(core, "6", constraints=pinned), Rejected)


def test_any_number_of_different_demands_is_answered_right() -> None:
    core = router("a", "b")
    for nth in range(2 * ADMISSIONS_MAX):
        name = "ab"[nth % 2]
        only = Constraints(only=(WorkerId(name),), tolerations=(f"{nth}",))
        assert chosen(ask(core, f"{nth}", constraints=only)).worker == name


def test_a_worker_whose_block_size_was_not_named_is_passed_over() -> None:
    core = router("a")
    core.worker_joined(record("b", block_tokens=64))
    reply = chosen(ask(core, explain=True))
    assert [(t.worker, t.excluded) for t in reply.terms if t.excluded] == [("b", "block_size")]
    anywhere = chosen(ask(core, "2", blocks={}, explain=True))
    assert not [term for term in anywhere.terms if term.excluded]


def test_workers_of_several_block_sizes_are_compared_by_tokens() -> None:
    """Equal work, counted in blocks of 16 on one worker and of 64 on the other."""
    core = router("small")
    core.worker_joined(record("large", block_tokens=64))
    blocks = {BLOCK: names_of(PROMPT), 64: b""}
    reply = chosen(ask(core, blocks=blocks, explain=True))
    small, large = reply.terms
    assert small.cost == pytest.approx(large.cost, rel=0.05)


def test_each_worker_is_matched_in_blocks_of_its_own_size() -> None:
    core = router("small")
    core.worker_joined(record("large", block_tokens=64))
    of_64 = pack(BlockHasher(b"k", Scope("m"), 64).names(PROMPT))
    core.apply(KvBatch(WorkerId("small"), names_of(PROMPT[: 4 * BLOCK])))
    core.apply(KvBatch(WorkerId("large"), of_64[: 3 * 8]))
    blocks = {BLOCK: names_of(PROMPT), 64: of_64}
    reply = chosen(ask(core, blocks=blocks, explain=True))
    assert {term.worker: term.overlap_blocks for term in reply.terms} == {"small": 4, "large": 3}
    assert (reply.worker, reply.new_prefill_tokens) == ("large", len(PROMPT) - 3 * 64)


def test_each_model_has_its_own_turns() -> None:
    core = router("a", "b", policy="round_robin")
    core.worker_joined(record("x", model="other"))
    workers = []
    for i in range(4):
        workers.append(chosen(ask(core, f"m{i}")).worker)
        ask(core, f"o{i}", model="other")
    assert workers == ["a", "b", "a", "b"]


def test_a_worker_that_changes_its_model_serves_the_new_one_only() -> None:
    core = router("a", "b")
    core.worker_joined(record("b", model="other"))
    assert Counter(chosen(ask(core, str(i))).worker for i in range(6)) == {"a": 6}
    assert chosen(ask(core, "x", model="other")).worker == "b"


def test_a_worker_that_has_just_failed_is_not_tried_again() -> None:
    core = router("a", "b")
    assert chosen(ask(core, exclude=(WorkerId("a"),))).worker == "b"


def failed(name: str) -> Progress:
    return Progress(
        RequestId("x"), WorkerId(name), 1, Phase.ENDED, outcome="engine_lost", worker_failed=True
    )


def fresh(sibling: int) -> dict[int, bytes]:
    """Named prompts of 8,192 tokens with 512 more of each one's own."""
    own = range(100_000 * (sibling + 1), 100_000 * (sibling + 1) + 512)
    return {BLOCK: names_of([*range(8_192), *own])}


@pytest.mark.parametrize(("coming_s", "cold"), [(10.0, 4), (0.0, 20)])
def test_a_burst_of_siblings_has_its_prefix_computed_once_a_worker(
    coming_s: float, cold: int
) -> None:
    core = RouterCore(RouterSettings(policy="kv", coming_s=coming_s), "r", random.Random(0))
    for name in "abcd":
        core.worker_joined(record(name))
    replies = [
        chosen(ask(core, str(i), i * 2.5e-4, blocks=fresh(i), prompt_tokens=8_704))
        for i in range(20)
    ]
    assert sum(not reply.overlap_blocks for reply in replies) == cold
    computed = sum(reply.new_prefill_tokens for reply in replies)
    assert computed == cold * 8_192 + 20 * 512


def overlap_of(core: RouterCore, now_s: float, name: str = "a") -> int:
    terms = chosen(ask(core, "probe", now_s, explain=True)).terms
    core.progress(Progress(RequestId("probe"), WorkerId(name), 1, Phase.ENDED), now_s)
    return next(term.overlap_blocks for term in terms if term.worker == name)


def test_a_prompt_that_was_never_computed_is_not_expected() -> None:
    core = router("a")
    ask(core)
    core.progress(Progress(RequestId("1"), WorkerId("a"), 1, Phase.DISPATCHED), 0.1)
    assert chosen(ask(core, "2")).overlap_blocks == len(PROMPT) // BLOCK
    for request in ("1", "2"):
        core.progress(Progress(RequestId(request), WorkerId("a"), 1, Phase.ENDED), 0.2)
    assert overlap_of(core, 0.3) == 0


def test_a_prefill_for_another_worker_is_computed_although_it_gives_no_tokens() -> None:
    core = RouterCore(RouterSettings(), "r", random.Random(0))
    core.worker_joined(record("a", role=Role.PREFILL))
    for outcome, overlap in (("cancelled", 0), ("completed", len(PROMPT) // BLOCK)):
        ask(core, outcome, leg=RouteLeg.PREFILL)
        for phase in (Phase.DISPATCHED, Phase.ENDED):
            word = Progress(RequestId(outcome), WorkerId("a"), 1, phase, 0, outcome)
            core.progress(word, 0.5)
        assert chosen(ask(core, "probe", leg=RouteLeg.PREFILL)).overlap_blocks == overlap
        core.progress(Progress(RequestId("probe"), WorkerId("a"), 1, Phase.ENDED), 1.0)


def test_a_request_that_is_cancelled_takes_nothing_back_that_others_have_computed() -> None:
    core = router("a")
    compute(core, "1", 0.0)
    ask(core, "2", 1.0)
    core.progress(Progress(RequestId("2"), WorkerId("a"), 1, Phase.ENDED), 1.1)
    assert overlap_of(core, 1.2) == len(PROMPT) // BLOCK


@pytest.mark.parametrize(("kept", "overlap"), [("a", len(PROMPT) // BLOCK), ("b", 0), ("", 0)])
def test_what_is_withdrawn_is_not_expected_where_nobody_wants_it(kept: str, overlap: int) -> None:
    core = router("a")
    ask(core)
    core.withdraw(Withdrawn(RequestId("1"), 1, kept=WorkerId(kept)), 0.1)
    assert overlap_of(core, 0.2) == overlap


@pytest.mark.parametrize("kv_events", [True, False])
def test_a_worker_that_begins_anew_holds_nothing_and_has_said_nothing(kv_events: bool) -> None:
    core = RouterCore(RouterSettings(), "r", random.Random(0))
    core.worker_joined(record("a", kv_events=kv_events))
    compute(core, "1", 0.0)
    core.observe_load(report(running=9, draining=True), 0.0)
    core.worker_joined(record("a", kv_events=kv_events, incarnation=2))
    assert overlap_of(core, 1.0) == 0
    assert load_of(core, 1.0) == 1  # its gateway will say how that one fared


def test_a_worker_that_begins_anew_warms_up_again() -> None:
    capacities, slow = Capacities(), StepSums(1, 100, 4_000.0, 1, 100, 1_000.0)
    fleet = Fleet(Ledger(60.0), capacities, 5.0, BusyLimits(0, 0))
    fleet.put(record("a"))
    fleet.observe(report(), 0.0)
    fleet.put(record("a", incarnation=2))
    for tenth in range(20):
        fleet.observe(report(steps=slow), 100.0 + tenth / 10)
    assert capacities.curve(record("a")) is None
    for tenth in range(50, 70):
        fleet.observe(report(steps=slow), 100.0 + tenth / 10)
    assert capacities.curve(record("a")) is not None


def test_a_prompt_that_was_computed_is_expected_until_events_must_have_come() -> None:
    core = router("a")
    ask(core)
    for phase in (Phase.FIRST_TOKEN, Phase.ENDED):
        core.progress(Progress(RequestId("1"), WorkerId("a"), 1, phase), 0.2)
    assert overlap_of(core, 9.9) == len(PROMPT) // BLOCK
    assert overlap_of(core, 10.1) == 0


def compute(core: RouterCore, request: str, now_s: float) -> None:
    ask(core, request, now_s)
    core.progress(Progress(RequestId(request), WorkerId("a"), 1, Phase.FIRST_TOKEN), now_s)


def test_kr14_a_worker_without_events_is_routed_by_memory() -> None:
    core = RouterCore(RouterSettings(), "r", random.Random(0))
    core.worker_joined(record("a", kv_events=False))
    compute(core, "1", 0.0)
    core.observe_load(report(), 60.0)
    assert overlap_of(core, 119.0) == len(PROMPT) // BLOCK
    assert overlap_of(core, 120.1) == 0


def test_cp6_a_worker_whose_agent_is_silent_is_routed_by_memory_until_it_speaks() -> None:
    core = router("a")
    core.observe_load(report(), 0.0)
    compute(core, "1", 6.0)  # no report for 6 seconds
    assert overlap_of(core, 100.0) == len(PROMPT) // BLOCK
    core.observe_load(report(), 100.0)
    assert overlap_of(core, 100.0) == 0


def test_kr19_a_worker_that_failed_somebody_is_left_alone_for_a_while() -> None:
    core = router("a", "b")
    core.progress(failed("a"), 10.0)
    for i in range(4):
        assert chosen(ask(core, str(i), 14.9)).worker == "b"
    assert chosen(ask(core, "later", 15.1)).worker == "a"


def test_kr19_nobody_is_left_without_a_worker_by_it() -> None:
    core = router("a", "b")
    core.progress(failed("a"), 10.0)
    assert chosen(ask(core, exclude=(WorkerId("b"),), now_s=11.0)).worker == "a"


def test_kr19_the_registry_has_the_last_word() -> None:
    core = router("a", "b")
    core.progress(failed("a"), 10.0)
    core.progress(failed("stranger"), 10.0)
    core.worker_joined(record("b", state=WorkerState.DRAINING))
    assert chosen(ask(core, "1", 11.0)).worker == "a"
    core.worker_joined(record("b"))
    assert chosen(ask(core, "2", 11.0)).worker == "b"
    core.worker_joined(record("a", incarnation=2))  # another life
    assert chosen(ask(core, "3", 11.0, explain=True)).terms[-1].excluded == ""


def test_a_worker_passed_over_for_its_failure_is_explained() -> None:
    core = router("a", "b")
    core.failed([WorkerId("a")], 10.0)
    terms = chosen(ask(core, now_s=11.0, explain=True)).terms
    assert [(t.worker, t.excluded) for t in terms if t.excluded] == [("a", "inhibited")]


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


def test_a_long_list_of_refusals_is_cut_short() -> None:
    core = router(*(f"w{i}" for i in range(100)))
    nobody = ask(core, exclude=tuple(core.workers))
    assert isinstance(nobody, Rejected)
    assert len(nobody.detail) < 500
    assert "and 92 more" in nobody.detail


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"prompt_tokens": 0, "blocks": {}}, "empty prompt"),
        ({"expected_output_tokens": -1}, "negative"),
        ({"blocks": {BLOCK: b"1234567"}}, "whole number"),
        ({"blocks": {0: b""}}, "whole number"),
        ({"blocks": {BLOCK: names_of([*PROMPT, *PROMPT])}}, "more tokens"),
        ({"policy": "magic"}, "no policy"),
    ],
)
def test_a_request_that_makes_no_sense_is_told_why(
    other: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        check(question("1", **other), Catalog())


def test_a_request_that_makes_sense_passes() -> None:
    check(question(), Catalog())
    check(question(blocks={}), Catalog())
    check(question(prompt_tokens=1, blocks={BLOCK: b""}, policy="random"), Catalog())


def test_what_is_booked_is_what_is_not_cached_and_at_least_one_token() -> None:
    core = router("a")
    core.apply(KvBatch(WorkerId("a"), names_of(PROMPT)))
    request = question(prompt_tokens=330)
    assert booking_of(request, chosen(core.decide(request, 0.0))).new_prefill_tokens == 10
    whole = question("2")
    assert booking_of(whole, chosen(core.decide(whole, 0.0))).new_prefill_tokens == 1


def test_a_batch_with_broken_names_changes_nothing() -> None:
    core = router("a")
    core.apply(KvBatch(WorkerId("a"), names_of(PROMPT)))
    with pytest.raises(ValueError, match="whole number"):
        core.apply(KvBatch(WorkerId("a"), b"12345", cleared=True))
    assert core.index.count(WorkerId("a")) == 20


def test_a_request_may_choose_its_policy_and_a_wrong_one_is_refused() -> None:
    core = router("a", "b")
    assert chosen(ask(core, policy="round_robin")).policy == "round_robin"
    with pytest.raises(ValueError, match="there is no policy"):
        ask(core, policy="magic")


def test_kr4_a_session_stays_until_its_worker_is_overloaded() -> None:
    core = router("a", "b")
    home = chosen(ask(core, "0", session="s", blocks={}, policy="random")).worker
    core.progress(Progress(RequestId("0"), home, 1, Phase.ENDED), 0.0)
    for i in range(1, 9):
        assert chosen(ask(core, str(i), session="s", blocks={})).worker == home
        core.progress(Progress(RequestId(str(i)), home, 1, Phase.ENDED), 0.0)
    for _ in range(2):
        core.observe_load(report(home, running=9, decode_kv_tokens=9_000), 0.0)
    assert chosen(ask(core, "x", session="s", blocks={})).worker != home


def test_kr4_replicas_know_where_a_session_is() -> None:
    ours, theirs = router("a", "b"), router("a", "b")
    request = question("1", session="s")
    home = chosen(ours.decide(request, 0.0))
    theirs.booked_elsewhere(booking_of(request, home), 0.0)
    theirs.progress(Progress(RequestId("1"), home.worker, 1, Phase.ENDED), 0.0)
    for i in range(6):
        reply = chosen(ask(theirs, f"t{i}", session="s", blocks={}))
        assert reply.worker == home.worker
        theirs.progress(Progress(RequestId(f"t{i}"), home.worker, 1, Phase.ENDED), 0.0)


def test_equal_histories_give_equal_decisions() -> None:
    def run() -> list[str]:
        core = router("a", "b", "c", policy="random")
        return [chosen(ask(core, str(i))).worker for i in range(30)]

    assert run() == run()


def test_other_settings_are_decided_by_at_once_those_of_busy_workers_too() -> None:
    core = router("a", "b", policy="kv")
    core.apply(KvBatch(WorkerId("b"), names_of(PROMPT)))
    assert chosen(ask(core, "1")).policy == "kv"
    core.adopt(RouterSettings(policy="round_robin"))
    assert {chosen(ask(core, str(n))).worker for n in (2, 3)} == {"a", "b"}
    core.adopt(RouterSettings(policy="kv", busy_prefill_batches=1e-9))
    assert isinstance(ask(core, "4"), Rejected)
    core.adopt(RouterSettings(policy="kv"))
    assert isinstance(ask(core, "5"), Chosen)
