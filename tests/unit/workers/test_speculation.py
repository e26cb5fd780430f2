"""Acceptance, cost and memory of drafts in the simulated engine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from workers.sim.engine import Engine
from workers.sim.request import ProgressKind, Request
from workers.sim.speculation import BadSpeculation, Speculation
from workers.sim.timing import H100, LAPTOP


def mean(values: list[int]) -> float:
    return sum(values) / len(values)


def test_acceptance_is_what_was_asked_for() -> None:
    speculation = Speculation(5, 0.8)
    kept = [speculation.accepted("r", position, "", 5) for position in range(20_000)]
    expected = sum(0.8**n for n in range(1, 6))
    assert mean(kept) == pytest.approx(expected, rel=0.02)
    assert set(kept) == set(range(6))


def test_acceptance_depends_on_the_kind_of_text_and_on_sampling() -> None:
    speculation = Speculation(5, 0.7, acceptance_of={"code": 0.9, "chat": 0.6, "chat/sampled": 0.5})
    rates = [speculation.rate(kind) for kind in ("code/sampled", "chat", "chat/sampled", "poem")]
    assert rates == [0.9, 0.6, 0.5, 0.7]
    assert Speculation(5, 0.0).accepted("r", 1, "", 5) == 0


def test_dice_are_the_requests_own() -> None:
    speculation = Speculation(5, 0.7)
    first = [speculation.accepted("a", n, "", 5) for n in range(50)]
    assert first == [speculation.accepted("a", n, "", 5) for n in range(50)]
    assert first != [speculation.accepted("b", n, "", 5) for n in range(50)]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Speculation(0),
        lambda: Speculation(5, 1.0),
        lambda: Speculation(5, 0.5, {"code": -0.1}),
        lambda: Speculation(5, 0.5, draft_memory=1.0),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: Callable[[], Speculation]) -> None:
    with pytest.raises(BadSpeculation):
        wrong()


def decode_s(batch: int, speculation: Speculation | None) -> tuple[float, Engine]:
    """How long `batch` answers of 200 tokens take beside each other, prompts not counted."""
    engine = Engine(H100, block_tokens=64, speculation=speculation)
    for id in range(batch):
        engine.submit(Request(id, 8, [], 200), 0.0)
    ends: list[float] = []
    first_s = 0.0
    while (next_s := engine.next_event_s()) is not None:
        for progress in engine.advance(next_s):
            if progress.kind is ProgressKind.FIRST_TOKEN:
                first_s = max(first_s, progress.time_s)
            elif progress.kind is ProgressKind.FINISHED:
                ends.append(progress.time_s)
    return sum(ends) / batch - first_s, engine


def test_alone_speculation_brings_what_the_formula_says() -> None:
    plain_s, _ = decode_s(1, None)
    speculation = Speculation(5, 0.8, draft_cost=0.08)
    speculating_s, engine = decode_s(1, speculation)
    tally = engine.tally
    accept_length = 1 + tally.accepted_tokens / tally.verifications
    # The formula with the accept length that this request happened to have (SD6).
    assert plain_s / speculating_s == pytest.approx(accept_length / 1.4, rel=0.03)


def test_it_helps_few_and_hurts_many() -> None:
    poor = Speculation(5, 0.4, draft_cost=0.08)
    alone = decode_s(1, None)[0] / decode_s(1, poor)[0]
    many = decode_s(192, None)[0] / decode_s(192, poor)[0]
    assert alone > 1.1
    assert many < 0.9


def test_the_drafts_memory_is_taken_from_the_cache() -> None:
    plain = Engine(H100, block_tokens=64, blocks=1_000)
    drafting = Engine(
        H100, block_tokens=64, blocks=1_000, speculation=Speculation(draft_memory=0.1)
    )
    assert (plain.load().total_blocks, drafting.load().total_blocks) == (1_000, 900)
    drafting.speculate(on=False, now_s=0.0)
    assert drafting.load().total_blocks == 900


def test_off_is_as_if_there_were_none() -> None:
    """SD8: off bypasses speculation; all that stays is its memory."""
    engine = Engine(H100, block_tokens=64, speculation=Speculation(draft_memory=0.0))
    plain = Engine(H100, block_tokens=64)
    engine.speculate(on=False, now_s=0.0)
    ends = []
    for each in (engine, plain):
        each.submit(Request("a", 100, [], 300), 0.0)
        while (next_s := each.next_event_s()) is not None:
            ends += [p.time_s for p in each.advance(next_s) if p.kind is ProgressKind.FINISHED]
    assert ends[0] == ends[1]
    assert engine.tally.verifications == 0
    with pytest.raises(ValueError, match="started without speculation"):
        plain.speculate(on=True, now_s=0.0)


def test_who_lands_in_the_middle_of_a_verification_is_not_drafted_for() -> None:
    """Its blocks were taken for its prompt alone: one token, and drafts from the next step on."""
    speculation = Speculation(6, 0.999, draft_memory=0.0)
    engine = Engine(LAPTOP, block_tokens=4, blocks=40, speculation=speculation)
    engine.submit(Request("a", 8, [], 60), 0.0)
    engine.submit(Request("b", 8, [], 20, fetch=True), 0.0)
    landed, told = False, []
    while (next_s := engine.next_event_s()) is not None:
        if not landed and engine.tally.verifications:
            landed = engine.landed("b", next_s - 1e-4)
        told += engine.advance(next_s)
    [first] = [p for p in told if p.id == "b" and p.kind is ProgressKind.FIRST_TOKEN]
    assert (first.output_tokens, first.drafted_tokens) == (1, 0)
    ends = {p.id: p for p in told if p.kind is ProgressKind.FINISHED}
    assert {id: p.output_tokens for id, p in ends.items()} == {"a": 60, "b": 20}
    assert ends["b"].accepted_tokens > 0
    assert engine.load().used_blocks == 0
