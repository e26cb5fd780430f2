"""`tokenplane up --engine vllm --roles 1P1D`: the coordinator moves KV between two real engines.

Whatever goes wrong on the way ends in an error, or in tokens that are right.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx2 as httpx
import psutil
import pytest

from tests.support.up import UpCluster, up
from tests.support.vllm import (
    BLOCK_TOKENS,
    CONTEXT_TOKENS,
    KV_CACHE_TOKENS,
    OFFLINE,
    READY_S,
    UP_OPTIONS,
    asked,
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
EXPIRED = "vllm:nixl_num_kv_expired_reqs_total"
LEASE_WAIT_S = 120.0
"""More than NIXL's lease of 30 s."""
STAGE = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
both = pytest.mark.parametrize("cluster", ["nixl", "shared"], indirect=True)
nixl = pytest.mark.parametrize("cluster", ["nixl"], indirect=True)


@pytest.fixture(scope="module")
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[UpCluster]:
    require_vllm()
    options = (*UP_OPTIONS, "--roles", "1P1D", "--prefill", "remote", "--connector", request.param)
    with up(tmp_path_factory.mktemp("up"), *options, ready_s=READY_S, **OFFLINE) as running:
        yield running


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.node.name)


def engines(cluster: UpCluster) -> tuple[str, str]:
    """Where prefill and decode engine are."""
    urls = cluster.state["engines"]
    return str(urls[PREFILL]), str(urls[DECODE])


def length(rng: random.Random) -> int:
    """Of a prompt. Not one token and whole blocks: of such a prompt that is asked again, vLLM's
    example of a connector finds fewer tokens than the engine's own cache, and the engine dies."""
    return BLOCK_TOKENS * rng.randrange(1, 12) + rng.randrange(2, BLOCK_TOKENS)


def answer_of(url: str, prompt: Sequence[int], **more: object) -> list[int]:
    return tokens_of(complete(url, prompt, ANSWER_TOKENS, None, **more))


def stage(prefill: str, prompt: Sequence[int]) -> dict[str, Any]:
    """A prefill leg, as a gateway sends it; returns where the blocks lie."""
    said = complete(prefill, prompt, 1, kv_transfer_params=STAGE)
    handle: dict[str, Any] = said["kv_transfer_params"]
    return handle


@contextmanager
def standing_still(cluster: UpCluster, name: str) -> Iterator[None]:
    """A process and all that it has started do nothing meanwhile, and lose nothing."""
    process = psutil.Process(cluster.pids()[name])
    family = [process, *process.children(recursive=True)]
    for each in family:
        each.suspend()
    try:
        yield
    finally:
        for each in family:
            each.resume()


def wait_for_prefill_leg(cluster: UpCluster) -> None:
    """Until the gateway has sent the prefill engine something."""
    agent = cluster.state["agents_admin"][PREFILL]
    in_flight = "tokenplane_agent_requests_in_flight"
    cluster.wait_until(lambda: cluster.gauge(agent, in_flight) > 0, "the prefill leg to be told of")
    for _ in range(3):  # what it has told, it does before it answers anybody else
        assert httpx.get(f"{cluster.url}/v1/models", timeout=30).status_code == 200


def wait_for_expiry(cluster: UpCluster, before: float, rng: random.Random) -> None:
    """Until the prefill engine counts a lease that nobody took up."""
    prefill, _ = engines(cluster)

    def expired() -> bool:
        complete(prefill, new_prompt(rng, 5), 1)  # it looks after leases as it works
        return counter(prefill, EXPIRED) > before

    cluster.wait_until(expired, "the lease to be over", LEASE_WAIT_S)


def flood(engine: str, rng: random.Random) -> None:
    """Fill its cache, so that what was there before is there no more."""
    prompt_tokens = CONTEXT_TOKENS - BLOCK_TOKENS
    for _ in range(KV_CACHE_TOKENS // prompt_tokens + 2):
        complete(engine, new_prompt(rng, prompt_tokens), 1)


@both
def test_a_hundred_answers_are_those_of_one_engine(cluster: UpCluster, rng: random.Random) -> None:
    prefill, decode = engines(cluster)
    prompts = [new_prompt(rng, length(rng)) for _ in range(REQUESTS)]
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


@nixl
def test_another_requests_blocks_are_noticed(cluster: UpCluster, rng: random.Random) -> None:
    """Else this suite would prove nothing: with the wrong blocks the tokens are wrong."""
    prefill, decode = engines(cluster)
    one, other = (new_prompt(rng, 7 * BLOCK_TOKENS) for _ in range(2))
    handle, wrong = stage(prefill, one), stage(prefill, other)
    mixed = {**handle, "remote_block_ids": wrong["remote_block_ids"]}
    assert answer_of(decode, one, kv_transfer_params=mixed) != answer_of(prefill, one)


@nixl
def test_blocks_whose_lease_is_over_are_never_read(cluster: UpCluster, rng: random.Random) -> None:
    """The gateway stands still from before they are staged until others lie in their place."""
    prefill, decode = engines(cluster)
    prompt = new_prompt(rng, 20 * BLOCK_TOKENS)
    taken = counter(decode, EXTERNAL)
    expired = counter(prefill, EXPIRED)
    with ThreadPoolExecutor(1) as client, ExitStack() as gateway:
        with standing_still(cluster, f"engine-{PREFILL}"):
            answer = client.submit(answer_of, cluster.url, prompt)
            wait_for_prefill_leg(cluster)
            gateway.enter_context(standing_still(cluster, "gateway"))
        wait_for_expiry(cluster, expired, rng)
        flood(prefill, rng)
        gateway.close()
        assert answer.result() == answer_of(prefill, prompt)
    assert counter(decode, EXTERNAL) == taken


@both
def test_without_its_prefill_engine_the_other_one_does_all_of_it(
    cluster: UpCluster, rng: random.Random
) -> None:
    """Those whose blocks it has staged already, too."""
    prefill, decode = engines(cluster)
    prompts = [new_prompt(rng, 200) for _ in range(8)]
    expected = [answer_of(prefill, prompt) for prompt in prompts]
    staged = new_prompt(rng, 200)
    right = answer_of(prefill, staged)
    handle = stage(prefill, staged)
    cluster.kill(f"engine-{PREFILL}")
    assert [answer_of(cluster.url, prompt) for prompt in prompts] == expected
    said = asked(decode, staged, ANSWER_TOKENS, kv_transfer_params=handle)
    if said.status_code == 200:
        assert tokens_of(said.json()) == right
    else:
        assert said.status_code >= 500 and said.json()["error"]["message"]
    assert answer_of(decode, prompts[0]) == expected[0]
