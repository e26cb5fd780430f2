"""Who has what the chosen worker lacks, and what is asked for too often of too few."""

from __future__ import annotations

import random

import numpy as np

from controlplane.router.core import RouterCore
from controlplane.router.heat import HALF_LIFE_S, PAUSE_S, RATE, Heat, depths
from controlplane.router.settings import RouterSettings
from proto.ids import WorkerId
from proto.kv import KvBatch
from proto.route import Elsewhere, RouteLeg
from proto.transfers import Purpose
from proto.workers import KvTransfer
from tests.support.router_core import ask, chosen, names_of, record

COPIES = KvTransfer(connector="sim", copies=True)
PROMPT = list(range(320))


def router(*names: str, **settings: object) -> RouterCore:
    given = {"fetch_tokens_min": 64, "replicate_blocks_min": 4, "replicate_per_s": 0.0, **settings}
    core = RouterCore(RouterSettings.model_validate(given), "r", random.Random(0))
    for name in names:
        core.worker_joined(record(name, transfer=COPIES))
    return core


def holds(core: RouterCore, worker: str, blocks: int) -> None:
    core.apply(KvBatch(WorkerId(worker), names_of(PROMPT)[: 8 * blocks]))


def test_kr5_who_lacks_a_prefix_is_told_who_has_it() -> None:
    core = router("a", "b", "c")
    holds(core, "a", 6)
    holds(core, "b", 20)
    reply = chosen(ask(core, exclude=("b", "c")))
    tail = int.from_bytes(names_of(PROMPT)[-8:], "little")
    assert (reply.worker, reply.elsewhere) == ("a", Elsewhere(WorkerId("b"), tail, 20, 14))


def test_nobody_is_named_where_nothing_is_gained_or_nobody_can() -> None:
    core = router("a", "b")
    holds(core, "b", 20)
    assert chosen(ask(core)).elsewhere is None  # it is the holder itself
    holds(core, "a", 17)
    assert chosen(ask(core, exclude=("b",))).elsewhere is None  # 48 tokens
    core = router("a", "b")
    holds(core, "b", 20)
    assert chosen(ask(core, exclude=("b",), leg=RouteLeg.DECODE)).elsewhere is None
    core.worker_joined(record("b"))
    assert chosen(ask(core, exclude=("b",))).elsewhere is None  # cannot offer it
    core = router("a", "b", fetch_tokens_min=0)
    holds(core, "b", 20)
    assert chosen(ask(core, exclude=("b",))).elsewhere is None


def test_what_a_worker_is_about_to_compute_it_need_not_fetch() -> None:
    core = router("a", "b")
    holds(core, "b", 20)
    assert chosen(ask(core, exclude=("b",))).elsewhere is not None
    assert chosen(ask(core, "2", exclude=("b",))).elsewhere is None


def test_a_hot_prefix_is_to_have_another_holder_until_everybody_has_it() -> None:
    core = router("a", "b", replicate_per_s=0.5)
    holds(core, "b", 20)
    wanted = []
    for number in range(20):
        ask(core, str(number), now_s=number / 10)
        wanted += core.take_hot()
    [move] = wanted  # and not again at once
    assert (move.purpose, move.source, move.blocks) == (Purpose.REPLICATE, "b", 20)
    assert move.exclude == ("b",) and move.target == ""
    holds(core, "a", 20)
    for number in range(20, 120):
        ask(core, str(number), now_s=PAUSE_S + number / 10)
    assert core.take_hot() == []


def test_a_prefix_that_is_asked_for_now_and_then_is_not_hot() -> None:
    core = router("a", "b", replicate_per_s=0.5)
    holds(core, "b", 20)
    for number in range(40):
        ask(core, str(number), now_s=number * 4.0)
    assert core.take_hot() == []


def test_counts_fade_and_tell_how_long_what_is_shared_is() -> None:
    heat = Heat(4)
    stem = np.arange(100, 120, dtype=np.uint64)
    for number in range(10):
        own = np.arange(1000 * number, 1000 * number + 20, dtype=np.uint64)
        hot = heat.note(np.concatenate((stem, own)), 40, 0.0)
    rates = {each.blocks: each.per_s for each in hot}
    assert rates[20] == 10 * RATE and rates[24] == RATE
    assert [each.blocks for each in hot] == sorted(rates, reverse=True)
    [later, *_] = heat.note(stem, 20, HALF_LIFE_S)
    assert later.per_s == 6 * RATE
    assert heat.may_copy(later.tail, 0.0) and not heat.may_copy(later.tail, PAUSE_S / 2)


def test_a_prompt_is_counted_at_four_depths_to_every_doubling() -> None:
    assert list(depths(4, 70)) == [4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64]
    assert list(depths(32, 31)) == []
