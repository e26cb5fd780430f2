"""Blocks that another engine fetches: who holds what, when, in virtual time."""

from __future__ import annotations

from workers.sim.engine import Engine
from workers.sim.request import ProgressKind, Request
from workers.sim.timing import LAPTOP

BLOCK = 16


def engine(blocks: int = 256, *, closed_form: bool = False) -> Engine:
    return Engine(LAPTOP, block_tokens=BLOCK, blocks=blocks, closed_form=closed_form)


def request(
    id: str, tokens: int = 100, output: int = 4, *, stage: bool = False, fetch: bool = False
) -> Request:
    names = tuple(range(1000, 1000 + tokens // BLOCK))
    return Request(id, tokens, names, output, stage=stage, fetch=fetch)


def run(one: Engine, until_s: float, now_s: float = 0.0) -> list[tuple[str, ProgressKind, int]]:
    told = []
    while (next_s := one.next_event_s()) is not None and next_s <= until_s:
        told += [(str(p.id), p.kind, p.output_tokens) for p in one.advance(next_s)]
    return told


def test_staged_blocks_are_kept_until_they_are_released() -> None:
    prefill = engine()
    prefill.submit(request("r", output=1, stage=True), 0.0)
    assert [kind for _, kind, _ in run(prefill, 10)] == [
        ProgressKind.FIRST_TOKEN,
        ProgressKind.FINISHED,
    ]
    load = prefill.load()
    assert (load.staged, load.used_blocks, load.running) == (1, 7, 0)
    assert prefill.release("r", 10.0)
    assert not prefill.release("r", 10.0)
    assert (prefill.load().staged, prefill.load().used_blocks) == (0, 0)
    assert prefill.load().cached_blocks == 6


def test_steps_go_on_while_blocks_are_on_their_way() -> None:
    decode = engine()
    decode.submit(request("old", tokens=20, output=50), 0.0)
    run(decode, 0.05)
    decode.submit(request("new", fetch=True), 0.05)
    told = run(decode, 0.1)
    [fetch] = decode.take_fetches()
    assert (fetch.id, fetch.first_block, fetch.blocks) == ("new", 1, 6)  # one block is shared
    assert {id for id, _, _ in told} == {"old"}
    assert decode.landed("new", 0.1)
    told = run(decode, 10)
    new = [(kind, tokens) for id, kind, tokens in told if id == "new"]
    assert new == [
        (ProgressKind.FIRST_TOKEN, 1),
        (ProgressKind.TOKENS, 2),
        (ProgressKind.TOKENS, 3),
        (ProgressKind.FINISHED, 4),
    ]
    assert decode.load().used_blocks == 0
    assert decode.take_step_sums().prefill_tokens == 20


def test_closed_form_tells_the_same_first_token_and_end() -> None:
    ends = []
    for closed_form in (False, True):
        decode = engine(closed_form=closed_form)
        decode.submit(request("r", output=30, fetch=True), 0.0)
        assert decode.next_event_s() is None
        decode.take_fetches()
        decode.landed("r", 1.0)
        seen = []
        while (next_s := decode.next_event_s()) is not None:
            seen += [(p.kind, p.time_s) for p in decode.advance(next_s)]
        ends.append([each for each in seen if each[0] is not ProgressKind.TOKENS])
    assert ends[0] == ends[1]


def test_what_lands_can_be_found_by_the_next() -> None:
    decode = engine()
    decode.submit(request("r", output=1, fetch=True), 0.0)
    decode.next_event_s()
    decode.take_fetches()
    decode.landed("r", 1.0)
    run(decode, 10)
    assert decode.load().cached_blocks == 6
    decode.submit(request("again", output=1), 10.0)
    run(decode, 20)
    assert decode.load().cached_tokens == 96


def test_what_is_lost_is_computed_here() -> None:
    decode = engine()
    decode.submit(request("r", output=2, fetch=True), 0.0)
    decode.next_event_s()
    decode.take_fetches()
    assert decode.load().queued_prefill_tokens == 0
    decode.lost("r", 1.0)
    assert decode.load().queued_prefill_tokens == 100
    assert [tokens for _, _, tokens in run(decode, 10)] == [1, 2]
    assert decode.load().used_blocks == 0


def test_blocks_that_are_written_to_are_not_given_to_others() -> None:
    decode = engine(blocks=8)
    decode.submit(request("r", fetch=True), 0.0)
    decode.next_event_s()
    decode.take_fetches()
    assert decode.cancel("r", 0.5)
    decode.submit(request("other", tokens=60, output=1), 0.5)
    assert decode.next_event_s() is None  # there is no room: bytes may still come in
    assert decode.load().used_blocks == 7
    assert not decode.landed("r", 1.0)
    assert run(decode, 10)[-1][:2] == ("other", ProgressKind.FINISHED)
    assert decode.load().used_blocks == 0


def test_who_waits_behind_staged_blocks_goes_on_when_they_go() -> None:
    prefill = engine(blocks=8)
    prefill.submit(request("r", output=1, stage=True), 0.0)
    prefill.submit(Request("next", 100, (), 1), 0.0)
    run(prefill, 10)
    assert prefill.next_event_s() is None and prefill.load().waiting == 1
    prefill.release("r", 10.0)
    assert run(prefill, 20)[-1][0] == "next"
