"""An engine is killed in the middle of an answer: the client gets the whole of it all the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import openai
import pytest

from proto.wire.http import HttpClient
from tests.support.up import UpCluster, up

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("migration"),
]

PROMPT = "Tell the whole story from the beginning. " * 20
TOKENS = 90
ENGINES = 4
"""One dies in each test, and is left alone for a while afterwards."""

STREAMS, FEW_TOKENS = 440, 12

Said = tuple[str, str | None, int]
"""Text, finish reason, completion tokens as counted in the usage."""
Ask = Callable[[openai.OpenAI, str, Callable[[int], None]], Said]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpCluster]:
    with up(tmp_path_factory.mktemp("up"), "--engines", str(ENGINES), "--speed", "0.25") as running:
        yield running


def chat(client: openai.OpenAI, model: str, on_chunk: Callable[[int], None]) -> Said:
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": PROMPT}],
        max_tokens=TOKENS,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    return heard(stream, lambda choice: choice.delta.content, on_chunk)


def completion(client: openai.OpenAI, model: str, on_chunk: Callable[[int], None]) -> Said:
    stream = client.completions.create(
        model=model,
        prompt=PROMPT,
        max_tokens=TOKENS,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    return heard(stream, lambda choice: choice.text, on_chunk)


def heard(
    stream: Any, text_of: Callable[[Any], str | None], on_chunk: Callable[[int], None]
) -> Said:
    """All that a stream says; its chunks have one id."""
    text, reason, tokens, ids = "", None, 0, set()
    for nth, chunk in enumerate(stream):
        ids.add(chunk.id)
        for choice in chunk.choices:
            text += text_of(choice) or ""
            reason = choice.finish_reason or reason
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        on_chunk(nth)
    assert len(ids) == 1
    return text, reason, tokens


def serving(cluster: UpCluster) -> str:
    """The engine that runs the only request."""
    running = [
        f"engine-{i}"
        for i, url in enumerate(cluster.state["engines"])
        if cluster.gauge(url, "vllm:num_requests_running") > 0
    ]
    assert len(running) == 1
    return running[0]


@pytest.mark.parametrize("ask", [chat, completion])
def test_gw12_no_token_is_lost_or_doubled(cluster: UpCluster, ask: Ask) -> None:
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="x", max_retries=0) as client:
        undisturbed = ask(client, cluster.model, lambda nth: None)
        killed: list[str] = []

        def kill_in_the_middle(nth: int) -> None:
            if nth == TOKENS // 3:
                killed.append(serving(cluster))
                cluster.kill(killed[0])

        moved = ask(client, cluster.model, kill_in_the_middle)
    assert killed
    assert moved == undisturbed
    assert moved[1:] == ("length", TOKENS)
    cluster.wait_ready()


def test_what_cannot_go_on_ends_in_one_typed_error(cluster: UpCluster) -> None:
    """With penalties the rest would be drawn from another distribution."""
    with (
        openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="x", max_retries=0) as client,
        pytest.raises(openai.APIError) as caught,
    ):
        for nth, _ in enumerate(
            client.completions.create(
                model=cluster.model,
                prompt=PROMPT,
                max_tokens=TOKENS,
                stream=True,
                presence_penalty=0.5,
                extra_body={"ignore_eos": True},
            )
        ):
            if nth == TOKENS // 3:
                cluster.kill(serving(cluster))
    assert caught.value.code == "engine_lost"
    cluster.wait_ready()


@pytest.fixture
def two_engines(tmp_path: Path) -> Iterator[UpCluster]:
    with up(tmp_path, "--engines", "2", "--speed", "0.05") as running:
        yield running


def test_gw12_an_engine_dies_with_hundreds_of_streams_and_all_are_whole(
    two_engines: UpCluster,
) -> None:
    """All of them just opened; far more than what a gateway has saved for single failures."""
    answers = anyio.run(_many, two_engines)
    assert len(set(answers)) == 1
    [answer] = set(answers)
    assert len(answer) > FEW_TOKENS


async def _many(cluster: UpCluster) -> list[str]:
    """The text of each stream, one engine killed once all have begun."""
    answers, begun, killed = [""] * STREAMS, 0, False

    async def one(http: HttpClient, nth: int) -> None:
        nonlocal begun, killed
        body = {
            "model": cluster.model,
            "prompt": PROMPT,
            "max_tokens": FEW_TOKENS,
            "stream": True,
            "ignore_eos": True,
        }
        headers = {"x-tokenplane-policy": "round_robin"}
        url = f"{cluster.url}/v1/completions"
        async with http.exchange(
            "POST", url, body=json.dumps(body).encode(), headers=headers
        ) as answer:
            pieces: list[bytes] = []
            async for piece in answer.chunks():
                begun += not pieces
                pieces.append(piece)
                if begun == STREAMS and not killed:
                    killed = True
                    cluster.kill("engine-0")
        *events, done = b"".join(pieces).strip().split(b"\n\n")
        assert done == b"data: [DONE]", pieces[-1]
        told = [json.loads(event.removeprefix(b"data: ")) for event in events]
        answers[nth] = "".join(choice["text"] for each in told for choice in each["choices"])

    async with HttpClient() as http, anyio.create_task_group() as tasks:
        for nth in range(STREAMS):
            tasks.start_soon(one, http, nth)
    assert killed
    return answers
