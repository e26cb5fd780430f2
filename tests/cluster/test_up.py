"""A cluster of real processes: what a user does with it, and what it survives."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx2 as httpx
import openai
import pytest

from tests.support.openai_surface import SURFACE, Case
from tests.support.up import UpCluster, up

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("up"),  # one cluster for all tests of this module
]

ENGINES = 2
PROMPT = "The quick brown fox jumps over the lazy dog. " * 40


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpCluster]:
    with up(tmp_path_factory.mktemp("up"), "--engines", str(ENGINES), "--speed", "10") as running:
        yield running


def client_of(cluster: UpCluster) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="unused", timeout=20, max_retries=0)


def completes(cluster: UpCluster) -> bool:
    """One streamed completion, whole and well-formed."""
    try:
        with client_of(cluster) as client:
            stream = client.completions.create(
                model=cluster.model, prompt=PROMPT, max_tokens=8, stream=True
            )
            chunks = list(stream)
    except openai.APIError:
        return False
    return [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "length"


def test_a_chat_completion_streams(cluster: UpCluster) -> None:
    with client_of(cluster) as client:
        stream = client.chat.completions.create(
            model=cluster.model,
            messages=[{"role": "user", "content": "Tell me a story."}],
            max_tokens=20,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    text = "".join(choice.delta.content or "" for c in chunks for choice in c.choices)
    assert text
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 20


def test_a_completion_streams_and_does_not_stream(cluster: UpCluster) -> None:
    with client_of(cluster) as client:
        whole = client.completions.create(model=cluster.model, prompt=PROMPT, max_tokens=12)
        stream = client.completions.create(
            model=cluster.model, prompt=PROMPT, max_tokens=12, stream=True
        )
        text = "".join(choice.text for chunk in stream for choice in chunk.choices)
    assert whole.choices[0].text == text
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12


def test_the_second_time_a_prompt_is_found_in_the_cache(cluster: UpCluster) -> None:
    finds_again(cluster, "A prompt that nobody has sent before. " * 30)


def finds_again(cluster: UpCluster, prompt: str) -> None:
    with client_of(cluster) as client:

        def cached_share() -> float:
            answer = client.completions.create(model=cluster.model, prompt=prompt, max_tokens=1)
            assert answer.usage is not None
            details = answer.usage.prompt_tokens_details
            return ((details.cached_tokens or 0) if details else 0) / answer.usage.prompt_tokens

        assert cached_share() == 0
        cluster.wait_until(lambda: cached_share() > 0.9, "the blocks to be known to the router")
        # Least loaded alone would alternate: only a router that knows goes back every time.
        assert min(cached_share() for _ in range(4)) > 0.9


WRONG = [
    (b"{", 400, "invalid_json"),
    (b'{"model": "nobody", "prompt": "x"}', 404, "model_not_found"),
    (b'{"model": "sim", "prompt": "x", "max_tokens": -1}', 400, "invalid_value"),
    (b'{"model": "sim", "prompt": ""}', 400, "empty_prompt"),
    (b'{"model": "sim", "prompt": "x", "max_tokens": 1000000}', 400, "context_length_exceeded"),
    (b'{"model": "sim", "prompt": "' + b"x" * (33 << 20) + b'"}', 413, "body_too_large"),
]


@pytest.mark.parametrize(("body", "status", "code"), WRONG, ids=[code for _, _, code in WRONG])
def test_a_wrong_request_is_told_so_as_openai_would(
    cluster: UpCluster, body: bytes, status: int, code: str
) -> None:
    answer = httpx.post(f"{cluster.url}/v1/completions", content=body, timeout=20)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert httpx.get(f"{cluster.url}/v1/nothing").json()["error"]["type"] == "invalid_request_error"


def test_a_client_that_leaves_frees_the_engine(cluster: UpCluster) -> None:
    body = {
        "model": cluster.model,
        "prompt": "Go on.",
        "stream": True,
        "max_tokens": 30_000,
        "ignore_eos": True,
    }
    endpoint = f"{cluster.url}/v1/completions"

    def running() -> float:
        urls = cluster.state["engines"]
        return sum(cluster.gauge(url, "vllm:num_requests_running") for url in urls)

    with httpx.stream("POST", endpoint, json=body, timeout=20) as stream:
        lines = stream.iter_lines()  # kept: dropping it would end the stream
        next(lines)
        cluster.wait_until(lambda: running() == 1, "the engine to run the request")
    cluster.wait_until(lambda: running() == 0, "the engine to be free", within_s=5)


@pytest.mark.parametrize("case", SURFACE, ids=lambda case: case.__name__)
def test_the_whole_surface_of_the_openai_client(cluster: UpCluster, case: Case) -> None:
    async def exercise() -> None:
        async with openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="unused") as client:
            await case(client, cluster.model)

    anyio.run(exercise)


def test_a_decision_is_explained(cluster: UpCluster) -> None:
    body = {"model": cluster.model, "prompt": PROMPT, "max_tokens": 2}
    answer = httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=20)
    request = answer.headers["x-request-id"]
    told = cluster.tokenplane("explain", "--cluster", "test", request, "--json")
    [decision] = json.loads(told.stdout)
    assert decision["worker"] == answer.headers["x-tokenplane-worker"]
    assert {term["worker"] for term in decision["terms"]} == {"engine-0", "engine-1"}
    shown = cluster.tokenplane("explain", "--cluster", "test", request)
    assert decision["worker"] in shown.stdout and "overlap blocks" in shown.stdout
    pinned = {"x-tokenplane-workers": "engine-9"}
    refused = httpx.post(f"{cluster.url}/v1/completions", json=body, headers=pinned, timeout=20)
    assert refused.status_code == 503
    why = cluster.tokenplane("explain", "--cluster", "test", refused.headers["x-request-id"])
    assert "turned away, no_worker" in why.stdout and "not_allowed" in why.stdout
    unknown = cluster.tokenplane("explain", "--cluster", "test", "nobody", status=1)
    assert "no router of cluster 'test' remembers 'nobody'" in unknown.stderr


@pytest.mark.parametrize("victim", ["engine-0", "agent-0", "router-0", "nats", "etcd", "gateway"])
def test_the_cluster_serves_again_after_kill_9_of(cluster: UpCluster, victim: str) -> None:
    before = cluster.pids()
    restarts = cluster.restarts(victim)
    assert completes(cluster)

    cluster.kill(victim)
    cluster.wait_until(lambda: cluster.restarts(victim) > restarts, f"{victim} to be restarted")
    cluster.wait_ready()
    cluster.wait_until(lambda: all(completes(cluster) for _ in range(ENGINES)), "service again")

    others = {name: pid for name, pid in cluster.pids().items() if name != victim}
    assert others == {name: pid for name, pid in before.items() if name != victim}


def test_the_index_is_whole_again_after_all_that(cluster: UpCluster) -> None:
    finds_again(cluster, "Another prompt, sent when everything had died once. " * 30)


def test_a_taken_port_is_one_clear_line(cluster: UpCluster, tmp_path: Path) -> None:
    port = cluster.url.rpartition(":")[2]
    run = subprocess.run(
        [sys.executable, "-m", "controlplane.cli.main", "up", "--name", "other", "--port", port],
        env={"TOKENPLANE_HOME": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 1
    assert f"port {port} for the gateway cannot be had" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
