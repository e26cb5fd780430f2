"""How an answer ends, and how it is told piece by piece."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.sim.generation import Generation, Sampling
from workers.sim.language import LanguageModel
from workers.sim.naming import BlockNamer
from workers.sim.request import Progress, ProgressKind

MODEL = LanguageModel({0: " ant", 1: " bee", 2: " cat", 3: " dog"}, end_id=99)
CONTEXT_TOKENS = 200


def generation(sampling: Sampling, prompt_tokens: int = 3) -> Generation:
    prompt = list(range(10, 10 + prompt_tokens))
    return Generation(
        "g", prompt, sampling, MODEL, context_tokens=CONTEXT_TOKENS, notify=lambda: None
    )


def tell(answer: Generation, counts: list[int]) -> str:
    """Advance to each count in turn; all the text that came."""
    text = ""
    for count in counts:
        answer.advance(Progress("g", ProgressKind.TOKENS, 0.0, count, 0))
        text += answer.take().text
    return text


def full_text(tokens: int) -> str:
    return tell(generation(Sampling(max_tokens=tokens)), [tokens])


def test_without_end_it_fills_the_context() -> None:
    answer = generation(Sampling(ignore_eos=True), prompt_tokens=150)
    assert (answer.ending.output_tokens, answer.ending.finish_reason) == (50, "length")


def test_left_alone_it_ends_with_a_token_that_has_no_text() -> None:
    answer = generation(Sampling())
    assert answer.ending.finish_reason == "stop" and answer.ending.stop_reason is None
    count = answer.ending.output_tokens
    assert tell(answer, [count]) == full_text(count - 1)
    assert answer.tokens[-1] == 99 and answer.told


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), max_size=8), st.integers(0, 150), st.integers(1, 12))
def test_a_stop_string_is_never_told_however_the_answer_is_cut(
    counts: list[int], start: int, length: int
) -> None:
    text = full_text(60)
    stop = text[start % (len(text) - length) :][:length]
    answer = generation(Sampling(max_tokens=60, stop=("zebra", stop)))
    steps = sorted({min(count, answer.ending.output_tokens) for count in counts})
    told = tell(answer, [*steps, answer.ending.output_tokens])
    assert told == text[: text.index(stop)]
    assert (answer.ending.finish_reason, answer.ending.stop_reason) == ("stop", stop)


def test_of_several_stops_the_first_to_be_complete_counts() -> None:
    text = full_text(40)
    early, late = text[9:14], text[30:40]
    answer = generation(Sampling(max_tokens=40, stop=(late, early)))
    assert answer.ending.stop_reason == early


@pytest.mark.parametrize("salt", [None, "tenant"])
def test_blocks_of_the_answer_are_named_as_part_of_the_sequence(salt: str | None) -> None:
    namer = BlockNamer(4)
    answer = generation(Sampling(max_tokens=20, cache_salt=salt), prompt_tokens=6)
    request = answer.request(namer)
    assert request.output_hash is not None
    later = [request.output_hash(index) for index in range(1, 6)]
    whole = namer.names(answer.tokens, salt)
    assert [*request.prompt_hashes, *later] == whole
    assert whole != namer.names(answer.tokens, "other")


def test_names_depend_on_all_that_came_before() -> None:
    namer = BlockNamer(2)
    first, second = namer.names([1, 2, 3, 4, 5], None)
    assert namer.names([1, 2, 3, 4], None) == [first, second]
    assert namer.names([9, 2, 3, 4], None)[1] != second
    assert namer.name(first, [3, 4], "salt counts only at the beginning") == second
    assert namer.name(None, [1, 2], "salt") == namer.names([1, 2], "salt")[0] != first
