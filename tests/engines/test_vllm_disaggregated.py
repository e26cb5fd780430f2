"""`tokenplane up --engine vllm --roles 1P1D`: the coordinator moves KV between two real engines."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.up import UpCluster, up
from tests.support.vllm import (
    BLOCK_TOKENS,
    OFFLINE,
    READY_S,
    UP_OPTIONS,
    complete,
    counter,
    new_prompt,
    require_vllm,
    tokens_of,
)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

REQUESTS, ANSWER_TOKENS = 100, 24
AT_ONCE = 4
PREFILL, DECODE = 0, 1
EXTERNAL = "vllm:external_prefix_cache_hits_total"
BY_SOURCE = "vllm:prompt_tokens_by_source_total"


@pytest.fixture(scope="module", params=["nixl", "shared"])
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[UpCluster]:
    require_vllm()
    options = (*UP_OPTIONS, "--roles", "1P1D", "--prefill", "remote", "--connector", request.param)
    with up(tmp_path_factory.mktemp("up"), *options, ready_s=READY_S, **OFFLINE) as running:
        yield running


def test_a_hundred_answers_are_those_of_one_engine(cluster: UpCluster) -> None:
    prefill, decode = (cluster.state["engines"][role] for role in (PREFILL, DECODE))
    rng = random.Random(17)
    prompts = [new_prompt(rng, rng.randrange(40, 400)) for _ in range(REQUESTS)]
    before = counter(decode, EXTERNAL)
    computed = counter(decode, BY_SOURCE, source="local_compute")
    with ThreadPoolExecutor(AT_ONCE) as clients:
        handed_over = [*clients.map(lambda prompt: answer_of(cluster.url, prompt), prompts)]
        by_one_alone = [*clients.map(lambda prompt: answer_of(prefill, prompt), prompts)]
    assert handed_over == by_one_alone
    # The decode engine took whole blocks at least, and computed a block's rest at most.
    taken = counter(decode, EXTERNAL) - before
    assert taken >= sum((len(prompt) - 2) // BLOCK_TOKENS * BLOCK_TOKENS for prompt in prompts)
    left = counter(decode, BY_SOURCE, source="local_compute") - computed
    assert left <= REQUESTS * (BLOCK_TOKENS + 1)


def answer_of(url: str, prompt: list[int]) -> list[int]:
    return tokens_of(complete(url, prompt, ANSWER_TOKENS))


def test_without_its_prefill_engine_the_other_one_does_all_of_it(cluster: UpCluster) -> None:
    """Those whose prefill it was in the middle of, too."""
    prefill = cluster.state["engines"][PREFILL]
    rng = random.Random(18)
    prompts = [new_prompt(rng, 200) for _ in range(8)]
    expected = [answer_of(prefill, prompt) for prompt in prompts]
    cluster.kill(f"engine-{PREFILL}")
    answers = [answer_of(cluster.url, prompt) for prompt in prompts]
    assert answers == expected
    cluster.wait_ready(READY_S)
