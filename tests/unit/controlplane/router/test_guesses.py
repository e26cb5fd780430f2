"""Guesses: made by decisions, given up by age and number, never longer than the prompt."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.router.guesses import STRIDE_TOKENS, Guesses
from proto.hashing import BlockHasher, Scope, Words
from proto.ids import RequestId, WorkerId
from proto.progress import Booking, Phase, Progress

A, B = WorkerId("a"), WorkerId("b")
BLOCK_TOKENS = 32
STRIDE = STRIDE_TOKENS // BLOCK_TOKENS
"""Blocks."""
HASHER = BlockHasher(b"k", Scope("m"), 1)
"""One number a block, to be read off."""


def chain(blocks: int, *branch: int) -> Words:
    """A prompt of so many blocks; `branch` makes it differ from others after its first 48."""
    shared = np.arange(1, 49, dtype=np.uint32)
    own = np.arange(100, 100 + blocks, dtype=np.uint32) + sum(branch) * 1_000
    return HASHER.names(np.concatenate([shared, own])[:blocks])


def sent(worker: WorkerId, request: str = "q") -> Booking:
    return Booking(RequestId(request), worker, 1, 1)


def word(booking: Booking, phase: Phase = Phase.ENDED) -> Progress:
    return Progress(booking.request, booking.worker, booking.attempt, phase)


def held(guesses: Guesses, names: Words, now_s: float) -> dict[WorkerId, int]:
    guesses.expire(now_s)
    return guesses.by_worker(guesses.match(names, BLOCK_TOKENS))


def test_a_prompt_is_expected_where_it_was_sent() -> None:
    guesses = Guesses(10.0, 1 << 20)
    guesses.expect(sent(A), chain(40), BLOCK_TOKENS, 0.0)
    assert held(guesses, chain(40), 1.0) == {A: 40}
    assert held(guesses, chain(8, 9), 1.0) == {}


def test_siblings_share_what_they_share_to_a_stride() -> None:
    guesses = Guesses(10.0, 1 << 20)
    guesses.expect(sent(A), chain(100, 1), BLOCK_TOKENS, 0.0)
    depth = held(guesses, chain(100, 2), 0.0)[A]
    assert 48 - STRIDE < depth <= 48


def test_a_guess_is_given_up_by_age_and_kept_by_use() -> None:
    guesses = Guesses(10.0, 1 << 20)
    guesses.expect(sent(A), chain(64), BLOCK_TOKENS, 0.0)
    guesses.expect(sent(A), chain(64), BLOCK_TOKENS, 8.0)
    assert held(guesses, chain(64), 17.0) == {A: 64}
    assert held(guesses, chain(64), 18.0) == {}
    assert len(guesses) == 0


def test_what_is_used_longer_ago_goes_first_and_ends_go_before_beginnings() -> None:
    guesses = Guesses(100.0, 4 * STRIDE_TOKENS)
    guesses.expect(sent(A), chain(48, 1), BLOCK_TOKENS, 0.0)
    guesses.expect(sent(B), chain(32, 2), BLOCK_TOKENS, 1.0)
    assert len(guesses) == 4 * STRIDE_TOKENS
    assert held(guesses, chain(48, 1), 2.0) == {A: 32, B: 32}


def test_a_worker_that_leaves_takes_its_guesses_along() -> None:
    guesses = Guesses(10.0, 1 << 20)
    guesses.expect(sent(A), chain(32), BLOCK_TOKENS, 0.0)
    guesses.expect(sent(B), chain(32), BLOCK_TOKENS, 0.0)
    guesses.leave(A)
    assert held(guesses, chain(32), 0.0) == {B: 32}
    guesses.leave(A)
    guesses.expect(sent(A), chain(16), BLOCK_TOKENS, 0.0)
    assert held(guesses, chain(32), 0.0) == {A: 16, B: 32}


def test_a_prompt_that_was_not_computed_is_taken_back() -> None:
    guesses = Guesses(10.0, 1 << 20)
    guesses.expect(sent(A), chain(64), BLOCK_TOKENS, 0.0)
    guesses.take_back(word(sent(A, "another")), 0.2)
    guesses.take_back(word(sent(B)), 0.2)
    assert held(guesses, chain(64), 1.0) == {A: 64}
    guesses.take_back(word(sent(A)), 0.2)
    assert held(guesses, chain(64), 1.0) == {}
    assert len(guesses) == 0


def test_what_a_later_sibling_waits_for_stays() -> None:
    guesses = Guesses(10.0, 1 << 20)
    guesses.expect(sent(A, "1"), chain(64, 1), BLOCK_TOKENS, 0.0)
    guesses.expect(sent(A, "2"), chain(48), BLOCK_TOKENS, 0.1)
    guesses.take_back(word(sent(A, "1")), 0.2)
    assert held(guesses, chain(64, 1), 1.0) == {A: 48}


def test_what_was_computed_stays() -> None:
    guesses = Guesses(10.0, 1 << 20)
    guesses.expect(sent(A), chain(64), BLOCK_TOKENS, 0.0)
    guesses.computed(word(sent(A), Phase.FIRST_TOKEN))
    guesses.take_back(word(sent(A)), 0.2)
    assert held(guesses, chain(64), 1.0) == {A: 64}


def test_what_was_there_before_a_prompt_that_was_not_computed_stays_as_long_as_it_would() -> None:
    guesses = Guesses(10.0, 1 << 20)
    guesses.expect(sent(A, "1"), chain(64), BLOCK_TOKENS, 0.0)
    guesses.computed(word(sent(A, "1"), Phase.FIRST_TOKEN))
    guesses.expect(sent(B), chain(48), BLOCK_TOKENS, 4.0)
    guesses.expect(sent(A, "2"), chain(80), BLOCK_TOKENS, 5.0)
    guesses.take_back(word(sent(A, "2")), 6.0)
    assert held(guesses, chain(80), 9.9) == {A: 64, B: 48}
    assert held(guesses, chain(80), 10.1) == {B: 48}
    guesses.expect(sent(A, "3"), chain(64), BLOCK_TOKENS, 12.0)
    assert held(guesses, chain(80), 13.9) == {A: 64, B: 48}
    assert held(guesses, chain(80), 22.1) == {}


def test_what_was_there_before_may_be_too_old_by_then() -> None:
    guesses = Guesses(10.0, 1 << 20)
    guesses.expect(sent(A, "1"), chain(64), BLOCK_TOKENS, 0.0)
    guesses.expect(sent(A, "2"), chain(64), BLOCK_TOKENS, 5.0)
    guesses.take_back(word(sent(A, "2")), 11.0)
    assert held(guesses, chain(64), 11.0) == {}


@pytest.mark.parametrize("order", list(permutations("123")))
def test_siblings_that_are_all_taken_back_leave_nothing(order: tuple[str, ...]) -> None:
    guesses = Guesses(10.0, 1 << 20)
    for number, name in enumerate("123"):
        guesses.expect(sent(A, name), chain(64), BLOCK_TOKENS, float(number))
    for name in order[:2]:
        guesses.take_back(word(sent(A, name)), 3.0)
        assert held(guesses, chain(64), 3.0) == {A: 64}
    guesses.take_back(word(sent(A, order[2])), 3.0)
    assert held(guesses, chain(64), 3.0) == {}


def test_a_chain_without_its_beginning_does_not_count() -> None:
    """B holds the beginning, A what it leads to."""
    guesses = Guesses(10.0, 1 << 20)
    guesses.expect(sent(A), chain(64)[32:], BLOCK_TOKENS, 0.0)
    guesses.expect(sent(B), chain(32), BLOCK_TOKENS, 0.1)
    assert held(guesses, chain(64), 1.0) == {B: 32}


def test_zero_seconds_is_no_guess_at_all() -> None:
    guesses = Guesses(0.0, 1 << 20)
    guesses.expect(sent(A), chain(32), BLOCK_TOKENS, 0.0)
    assert held(guesses, chain(32), 0.0) == {}


sendings = st.tuples(
    st.sampled_from([A, B]),
    st.integers(1, 90),
    st.integers(0, 2),
    st.floats(0, 6),
    st.sampled_from(["waits", "is computed", "fails"]),
)


@settings(max_examples=200)
@given(st.lists(sendings, max_size=25), st.integers(1, 90), st.integers(0, 2))
def test_a_match_is_never_longer_than_what_a_list_of_prompts_says(
    sendings: list[tuple[WorkerId, int, int, float, str]], blocks: int, branch: int
) -> None:
    guesses, model, now_s = Guesses(10.0, 1 << 20), [], 0.0
    for number, (worker, length, own, pause_s, fate) in enumerate(sendings):
        now_s += pause_s
        booking = sent(worker, str(number))
        guesses.expect(booking, chain(length, own), BLOCK_TOKENS, now_s)
        if fate == "fails":
            guesses.take_back(word(booking), now_s)
            continue
        if fate == "is computed":
            guesses.computed(word(booking, Phase.FIRST_TOKEN))
            guesses.take_back(word(booking), now_s)
        model.append((worker, chain(length, own), now_s))
    asked = chain(blocks, branch)
    truth: dict[WorkerId, int] = {}
    for worker, names, at_s in model:
        if at_s + 10.0 > now_s:
            both = min(len(names), len(asked))
            same = int(np.cumprod(names[:both] == asked[:both]).sum())
            truth[worker] = max(truth.get(worker, 0), same)
    found = held(guesses, asked, now_s)
    for worker in (A, B):
        assert found.get(worker, 0) <= truth.get(worker, 0)
        assert truth.get(worker, 0) - STRIDE < found.get(worker, 0)
