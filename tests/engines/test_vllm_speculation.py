"""A real vLLM that drafts: the same words as one that does not, and its drafts counted (SD4)."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from tests.support.vllm import Vllm, new_prompt, started, tokens_of

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

DRAFTS = 3
CONFIG = {
    "method": "ngram",
    "num_speculative_tokens": DRAFTS,
    "prompt_lookup_min": 1,
    "prompt_lookup_max": 3,
}
PROMPTS, ANSWER_TOKENS, LOOP_TOKENS = 8, 48, 128
REQUESTS, SAMPLES_EACH, SAMPLED_TOKENS = 10, 64, 3
CHI_SQUARE_999 = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 6: 22.46, 7: 24.32, 8: 26.12}
"""What a sum of squares with so many degrees of freedom exceeds once in a thousand times."""
VERIFICATIONS = "vllm:spec_decode_num_drafts_total"
DRAFTED, ACCEPTED = (
    "vllm:spec_decode_num_draft_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_total",
)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Vllm, Vllm]]:
    """One that drafts what followed the same words before, and one that does not."""
    extra = ("--speculative-config", json.dumps(CONFIG))
    with (
        started(tmp_path_factory.mktemp("drafting"), extra=extra) as drafting,
        started(tmp_path_factory.mktemp("plain")) as plain,
    ):
        drafting.wait_ready()
        plain.wait_ready()
        yield drafting, plain


def repeating(plain: Vllm, rng: random.Random) -> list[int]:
    """A prompt that says the same words again and again, as this model does when it may go on: so
    there is something to draft, and drafts that are kept."""
    begun = new_prompt(rng, 8)
    return [*begun, *tokens_of(plain.complete(begun, LOOP_TOKENS))]


def test_greedy_answers_are_token_for_token_the_same(engines: tuple[Vllm, Vllm]) -> None:
    drafting, plain = engines
    rng = random.Random(3)
    for _ in range(PROMPTS):
        prompt = repeating(plain, rng)
        said = [tokens_of(each.complete(prompt, ANSWER_TOKENS)) for each in engines]
        assert said[0] == said[1]
    assert drafting.counter(VERIFICATIONS) > 0
    assert 0 < drafting.counter(ACCEPTED) < drafting.counter(DRAFTED)
    assert plain.counter(VERIFICATIONS) == 0


def test_sampled_answers_are_drawn_from_the_same_distribution(
    engines: tuple[Vllm, Vllm],
) -> None:
    """Of each place in an answer, and of pairs that follow each other."""
    drafting, plain = engines
    prompt = repeating(plain, random.Random(4))
    before = drafting.counter(ACCEPTED)
    drawn = [samples(each, prompt) for each in engines]
    assert drafting.counter(ACCEPTED) > before
    for place in range(SAMPLED_TOKENS):
        assert_alike(*([each[place] for each in of] for of in drawn))
    assert_alike(*([each[-2:] for each in of] for of in drawn))


def samples(engine: Vllm, prompt: Sequence[int]) -> list[tuple[int, ...]]:
    """Answers at temperature 1, the same ones in every run."""
    drawn = []
    for number in range(REQUESTS):
        more = {"temperature": 1.0, "n": SAMPLES_EACH, "seed": number * SAMPLES_EACH}
        said = engine.complete(prompt, SAMPLED_TOKENS, None, **more)
        drawn += [tuple(choice["token_ids"]) for choice in said["choices"]]
    return drawn


def assert_alike(one: Sequence[object], other: Sequence[object]) -> None:
    """Two samples are of one distribution: a test of homogeneity, rare outcomes put together."""
    counts = Counter(one), Counter(other)
    common = [each for each, _ in (counts[0] + counts[1]).most_common(8)]
    table = [[count[each] for each in common] for count in counts]
    for row, whole in zip(table, (one, other), strict=True):
        row.append(len(whole) - sum(row))
    columns = [column for column in zip(*table, strict=True) if sum(column) >= 10]
    assert len(columns) > 1, "too few outcomes to tell distributions apart"
    totals = [sum(row) for row in zip(*columns, strict=True)]
    square = sum(
        (seen - sum(column) * total / sum(totals)) ** 2 / (sum(column) * total / sum(totals))
        for column in columns
        for seen, total in zip(column, totals, strict=True)
    )
    assert square < CHI_SQUARE_999[len(columns) - 1]
