"""`tokenplane up --engine vllm -n 2`: what we believe of two real engines is what they report."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import openai
import pytest

from tests.support.up import UpCluster, up
from tests.support.vllm import (
    BLOCK_TOKENS,
    OFFLINE,
    READY_S,
    SERVED,
    UP_OPTIONS,
    complete,
    counter,
    new_prompt,
    require_vllm,
    tokens_of,
)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

ENGINES = 2
HITS, RUNNING = "vllm:prefix_cache_hits_total", "vllm:num_requests_running"
GENERATED = "vllm:generation_tokens_total"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpCluster]:
    require_vllm()
    directory = tmp_path_factory.mktemp("up")
    with up(directory, *UP_OPTIONS, "-n", str(ENGINES), ready_s=READY_S, **OFFLINE) as running:
        yield running


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.node.name)


def engine_urls(cluster: UpCluster) -> list[str]:
    return [str(url) for url in cluster.state["engines"]]


def hits(cluster: UpCluster) -> float:
    """Prompt tokens that the engines say they found in their caches."""
    return sum(counter(url, HITS) for url in engine_urls(cluster))


def live_blocks(cluster: UpCluster) -> list[float]:
    """What each agent believes that its engine caches."""
    return [
        cluster.gauge(url, "tokenplane_agent_live_blocks") for url in cluster.state["agents_admin"]
    ]


def predicted(said: dict[str, Any]) -> int:
    return int(said["headers"]["x-tokenplane-overlap-tokens"])


def settled(cluster: UpCluster, prompt: list[int]) -> None:
    """Wait until a router expects to find the whole prompt."""
    whole = (len(prompt) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    cluster.wait_until(
        lambda: predicted(complete(cluster.url, prompt, 1)) >= whole, "the prompt to be expected"
    )


def test_hits_predicted_are_hits_reported(cluster: UpCluster, rng: random.Random) -> None:
    """Twelve turns of three conversations that share a beginning."""
    shared = new_prompt(rng, 3 * BLOCK_TOKENS)
    conversations = [[*shared, *new_prompt(rng, 40)] for _ in range(3)]
    foretold, found = [], []
    for _ in range(4):
        for conversation in conversations:
            before = hits(cluster)
            said = complete(cluster.url, conversation, 8)
            foretold.append(predicted(said))
            found.append(hits(cluster) - before)
            settled(cluster, conversation)
            conversation += [*tokens_of(said), *new_prompt(rng, 37)]
    assert found == foretold
    assert sum(found) > 12 * BLOCK_TOKENS


def test_a_reset_of_its_cache_is_noticed(cluster: UpCluster, rng: random.Random) -> None:
    prompt = new_prompt(rng, 4 * BLOCK_TOKENS + 1)
    complete(cluster.url, prompt, 1)
    settled(cluster, prompt)
    for url in engine_urls(cluster):
        assert httpx.post(f"{url}/reset_prefix_cache", timeout=30).status_code == 200
        complete(url, new_prompt(rng, 5), 1)  # vLLM tells of it with its next batch only
    cluster.wait_until(lambda: live_blocks(cluster) == [0, 0], "agents to hear of the reset")
    before = hits(cluster)
    said = complete(cluster.url, prompt, 1)
    assert (predicted(said), hits(cluster) - before) == (0, 0)


def test_cancel_reaches_the_engine(cluster: UpCluster, rng: random.Random) -> None:
    tokens = 1900
    body = {"model": SERVED, "prompt": new_prompt(rng, 40), "max_tokens": tokens, "stream": True}
    before = sum(counter(url, GENERATED) for url in engine_urls(cluster))
    with httpx.stream(
        "POST", f"{cluster.url}/v1/completions", json={**body, "ignore_eos": True}, timeout=60
    ) as stream:
        next(iter(stream.iter_lines()))

    def nothing_runs() -> bool:
        for url in engine_urls(cluster):  # its gauges are those of its last step
            complete(url, new_prompt(rng, 5), 2)
        return all(counter(url, RUNNING) == 0 for url in engine_urls(cluster))

    cluster.wait_until(nothing_runs, "no engine to work for who has gone")
    generated = sum(counter(url, GENERATED) for url in engine_urls(cluster)) - before
    assert generated < tokens


def test_a_killed_engine_is_known_anew(cluster: UpCluster, rng: random.Random) -> None:
    """And the answer that it was giving is given to its end by the other one."""
    prompt = new_prompt(rng, 5 * BLOCK_TOKENS + 3)
    alone = tokens_of(complete(engine_urls(cluster)[0], prompt, 1500))
    through = tokens_of(complete(cluster.url, prompt, 1500))
    assert through == alone

    killed: list[str] = []
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="x", max_retries=0) as client:
        said = client.completions.create(
            model=SERVED,
            prompt=prompt,
            max_tokens=1500,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        text, reason = "", None
        for nth, chunk in enumerate(said):
            text += chunk.choices[0].text
            reason = chunk.choices[0].finish_reason or reason
            if nth == 200:
                killed.append(serving(cluster))
                cluster.kill(killed[0])
    assert killed
    whole = complete(engine_urls(cluster)[1 - int(killed[0][-1])], prompt, 1500)
    assert (text, reason) == (whole["choices"][0]["text"], "length")
    assert tokens_of(whole) == alone

    cluster.wait_ready(READY_S)
    index = int(killed[0].rpartition("-")[2])
    cluster.wait_until(lambda: live_blocks(cluster)[index] == 0, "its cache to be known as empty")
    before = counter(engine_urls(cluster)[index], HITS)
    assert before == 0  # another life
    test_hits_predicted_are_hits_reported(cluster, rng)


def serving(cluster: UpCluster) -> str:
    """The engine that runs the only request."""
    running = [
        f"engine-{index}"
        for index, url in enumerate(engine_urls(cluster))
        if counter(url, RUNNING) > 0
    ]
    assert len(running) == 1
    return running[0]


def test_the_conformance_suite_passes(cluster: UpCluster) -> None:
    """As a user would run it, while the engine's agent listens, too."""
    sockets = cluster.state["kv_events"][1]
    ended = cluster.tokenplane(
        *("conformance", "--engine", engine_urls(cluster)[1], "--kind", "vllm"),
        *("--events", sockets["events"], "--replay", sockets["replay"]),
    )
    assert "NO " not in ended.stdout, ended.stdout
    assert "0 failed, 0 skipped" in ended.stdout
