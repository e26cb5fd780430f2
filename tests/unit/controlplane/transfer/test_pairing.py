"""Who can pass blocks to whom, how near they are, and when it is worth it."""

from __future__ import annotations

import pytest

from controlplane.transfer.cost import Bounds, Choice, Rates, Side, keep_local
from controlplane.transfer.pairing import apart, distance, link, mismatch
from proto.load import StepSums
from proto.workers import Hardware, Role, WorkerRecord
from tests.unit.controlplane.transfer.world import TRANSFER, load, record

PREFILL, DECODE = record("p", Role.PREFILL), record("d", Role.DECODE)


def placed(worker: str, **labels: str) -> WorkerRecord:
    return record(worker, Role.DECODE, hardware=Hardware(topology=labels))


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"engine": "vllm"},
        {"engine_version": "2"},
        {"block_tokens": 32},
        {"transfer": TRANSFER.model_copy(update={"connector": "nixl"})},
        {"transfer": TRANSFER.model_copy(update={"dtype": "fp8"})},
        {"transfer": TRANSFER.model_copy(update={"layout": "hnd"})},
        {"transfer": TRANSFER.model_copy(update={"tensor_parallel": 2})},
    ],
)
def test_hw9_any_part_of_the_key_tells_a_pair_apart(change: dict[str, object]) -> None:
    assert mismatch(PREFILL, DECODE) == ""
    said = mismatch(PREFILL.model_copy(update=change), DECODE)
    assert said.startswith("p and d differ in ")


def test_dg9_another_degree_of_parallelism_may_be_declared_readable() -> None:
    wide = PREFILL.model_copy(
        update={"transfer": TRANSFER.model_copy(update={"tensor_parallel": 4})}
    )
    reads = TRANSFER.model_copy(update={"transforms_parallelism": True})
    assert mismatch(wide, DECODE) != ""
    assert mismatch(wide, DECODE.model_copy(update={"transfer": reads})) == ""


def test_who_declares_nothing_moves_nothing() -> None:
    assert "declares no way" in mismatch(PREFILL.model_copy(update={"transfer": None}), DECODE)
    assert mismatch(DECODE, DECODE) == "they are one worker"


def test_hw8_distance_and_what_must_be_shared() -> None:
    here = placed("a", rack="r1", host="h1", nvlink_domain="n1")
    beside = placed("b", rack="r1", host="h2", nvlink_domain="n1")
    there = placed("c", rack="r1", host="h3", nvlink_domain="n2")
    bare = placed("e")
    unsaid = placed("f", nvlink_domain="", host="h4")
    assert [distance(other, here) for other in (beside, there, bare)] == [
        "nvlink_domain",
        "rack",
        "far",
    ]
    assert distance(unsaid, placed("g", nvlink_domain="", host="h5")) == "far"
    assert link(beside, here) == "nvlink_domain:b>a"
    assert link(there, here) == link(there, beside) == "rack:h3"
    assert apart(beside, here, ("rack", "nvlink_domain")) == ""
    assert apart(there, here, ("rack", "nvlink_domain")) == "nvlink_domain"
    assert apart(bare, bare, ("rack",)) == "rack"


def side(new_tokens: int, **report: int) -> Side:
    return Side("d", new_tokens, load("d", **report))


def known() -> Rates:
    rates = Rates()
    for worker in ("p", "d"):
        rates.saw_steps(worker, StepSums(1, 10_000, 1_000.0))
    return rates


def test_dg4_short_and_mostly_cached_prompts_stay() -> None:
    bounds, rates = Bounds(), Rates()
    assert keep_local(Choice.BOUNDS, bounds, 4_000, side(2_000), None, rates) == "short"
    assert keep_local(Choice.BOUNDS, bounds, 2_100, side(2_000), None, rates) == ""
    assert keep_local(Choice.BOUNDS, bounds, 9_000, side(2_100), None, rates) == ""
    assert keep_local(Choice.LOCAL, bounds, 9_000, side(9_000), 0.0, rates) == "configured"
    assert keep_local(Choice.REMOTE, bounds, 10, side(1), 9e9, rates) == ""


def test_what_it_holds_up_speaks_against_prefilling_where_others_decode() -> None:
    bounds, rates = Bounds(), known()
    assert keep_local(Choice.COST, bounds, 8_000, side(8_000), 1.0, rates) == "cheaper"
    assert keep_local(Choice.COST, bounds, 8_000, side(8_000, running=4), 1.0, rates) == ""
    slow = keep_local(Choice.COST, bounds, 8_000, side(8_000, running=4), 60.0, rates)
    assert slow == "cheaper"


def test_dg4_a_worker_under_pressure_gets_no_long_prefill() -> None:
    full = side(8_000, used_blocks=4_000)
    assert keep_local(Choice.COST, Bounds(), 8_000, full, 60.0, known()) == ""


def test_dg10_bandwidth_is_measured_and_small_transfers_tell_nothing() -> None:
    rates = Rates()
    assert rates.link_bytes_per_s("nvlink_domain:b>a") > rates.link_bytes_per_s("far:h")
    rates.saw_transfer("far:h", 100, 0.25)
    assert rates.links == {}
    rates.saw_transfer("far:h", 2_000_000_000, 1.25)
    rates.saw_transfer("far:h", 1_000_000_000, 1.25)
    assert rates.link_bytes_per_s("far:h") == pytest.approx(1.8e9)
    assert rates.moving_s("far:h", 900_000_000, 900_000_000) == pytest.approx(1.25)
