"""The engine over HTTP: a real process, real clients."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import anyio
import msgspec
import psutil
import pytest
from openai import AsyncOpenAI

from tests.support.openai_surface import SURFACE, Case
from tests.unit.workers.sim_process import Client, SimProcess, ask_and_stall, client, sim

pytestmark = pytest.mark.anyio

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
HELLO = [{"role": "user", "content": "hello there"}]
CONTEXT_TOKENS = 4096


@pytest.fixture(scope="module")
def engine() -> Iterator[SimProcess]:
    """Fast: most tests only want answers."""
    with sim("--model", "tiny", "--speed", "20", "--max-model-len", str(CONTEXT_TOKENS)) as started:
        yield started


@pytest.fixture(scope="module")
def slow_engine() -> Iterator[SimProcess]:
    """One request at a time, and it takes its time."""
    with sim("--max-num-seqs", "1", "--max-num-queued-reqs", "2") as started:
        yield started


async def test_a_completion_has_vllms_shape(engine: SimProcess, shared_data: Any) -> None:
    async with client(engine) as c:
        body = {"model": "tiny", "prompt": "once upon a time", "max_tokens": 7}
        answer = await c.post(COMPLETIONS, {**body, "return_token_ids": True})
    recorded = _recorded(shared_data / "vllm" / "completion_1.json")
    assert _missing_keys(recorded, answer) == set()
    [choice] = answer["choices"]
    assert choice["finish_reason"] == "length" and choice["stop_reason"] is None
    assert len(choice["token_ids"]) == 7 == answer["usage"]["completion_tokens"]
    assert answer["usage"]["prompt_tokens"] == len(choice["prompt_token_ids"])
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert answer["id"].startswith("cmpl-") and answer["object"] == "text_completion"


async def test_a_chat_has_vllms_shape(engine: SimProcess, shared_data: Any) -> None:
    async with client(engine) as c:
        answer = await c.post(CHAT, {"messages": HELLO, "max_completion_tokens": 5})
    recorded = _recorded(shared_data / "vllm" / "chat.json")
    assert _missing_keys(recorded, answer) == set()
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["completion_tokens"] == 5


async def test_a_stream_says_what_the_whole_answer_says(engine: SimProcess) -> None:
    body: dict[str, object] = {"model": "tiny", "prompt": "stream of words", "max_tokens": 40}
    options = {"stream_options": {"include_usage": True}, "return_token_ids": True}
    async with client(engine) as c:
        whole = await c.post(COMPLETIONS, {**body, "return_token_ids": True})
        *chunks, last = await c.stream(COMPLETIONS, {**body, **options})
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    ids = [id for choice in choices for id in choice["token_ids"]]
    assert ids == whole["choices"][0]["token_ids"]
    assert choices[0]["prompt_token_ids"] == whole["choices"][0]["prompt_token_ids"]
    assert [c["finish_reason"] for c in choices] == [None] * (len(choices) - 1) + ["length"]
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 40
    assert all("usage" not in chunk for chunk in chunks)


async def test_a_chat_stream_opens_with_the_role_and_ends_by_itself(engine: SimProcess) -> None:
    async with client(engine) as c:
        whole = await c.post(CHAT, {"messages": HELLO})
        chunks = await c.stream(CHAT, {"messages": HELLO})
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    text = "".join(delta["content"] for delta in deltas)
    assert text == whole["choices"][0]["message"]["content"] and text.isprintable()
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert whole["usage"]["completion_tokens"] == len(text.split()) + 1, "the end is a token too"


async def test_the_openai_client_understands_it(engine: SimProcess) -> None:
    async with AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="none") as openai:
        [model] = (await openai.models.list()).data
        assert model.id == "tiny"
        text, finish, usage = "", None, None
        async for chunk in await openai.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hello there"}],
            stream=True,
            stream_options={"include_usage": True},
        ):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
    assert text and finish == "stop" and usage is not None
    assert usage.prompt_tokens_details is not None


@pytest.mark.parametrize("case", SURFACE, ids=lambda case: case.__name__)
async def test_it_serves_the_surface_of_the_openai_client(engine: SimProcess, case: Case) -> None:
    async with AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="none") as openai:
        await case(openai, "tiny")


async def test_an_answer_cut_anywhere_goes_on_as_if_it_had_not_been(engine: SimProcess) -> None:
    async with client(engine) as c:
        asked = {"messages": HELLO, "return_token_ids": True}
        whole = await c.post(CHAT, asked)
        prompt, said = whole["prompt_token_ids"], whole["choices"][0]["token_ids"]
        assert len(said) > 3
        for cut in (1, len(said) // 2, len(said) - 1):
            body = {"prompt": prompt + said[:cut], "max_tokens": None, "return_token_ids": True}
            rest = (await c.post(COMPLETIONS, body))["choices"][0]
            assert rest["token_ids"] == said[cut:]
            assert rest["finish_reason"] == "stop"
        begun = {"role": "assistant", "content": whole["choices"][0]["message"]["content"][:-4]}
        options = {"continue_final_message": True, "add_generation_prompt": False}
        continued = await c.post(CHAT, {"messages": [*HELLO, begun], **options})
    assert continued["usage"]["prompt_tokens"] > len(prompt)


async def test_prompts_in_batches_and_several_answers(engine: SimProcess) -> None:
    async with client(engine) as c:
        body: dict[str, object] = {"max_tokens": 6, "n": 2, "return_token_ids": True}
        texts = await c.post(COMPLETIONS, {**body, "prompt": ["one two", "three"]})
        ids = [choice["prompt_token_ids"] for choice in texts["choices"]]
        assert [choice["index"] for choice in texts["choices"]] == [0, 1, 2, 3]
        assert ids[0] == ids[1] and ids[2] == ids[3]
        assert texts["choices"][0]["text"] != texts["choices"][1]["text"]
        assert texts["usage"]["prompt_tokens"] == len(ids[0]) + len(ids[2])
        assert texts["usage"]["completion_tokens"] == 24

        tokens = await c.post(COMPLETIONS, {**body, "prompt": [ids[0], ids[2]]})
        assert tokens["choices"] == texts["choices"]

        chunks = await c.stream(COMPLETIONS, {**body, "prompt": ["one two", "three"]})
        for index, choice in enumerate(texts["choices"]):
            parts = [p for chunk in chunks for p in chunk["choices"] if p["index"] == index]
            assert "".join(part["text"] for part in parts) == choice["text"]
            assert parts[-1]["finish_reason"] == "length"


async def test_stop_strings_and_ids_end_an_answer(engine: SimProcess) -> None:
    async with client(engine) as c:
        body: dict[str, object] = {"prompt": "stop it", "max_tokens": 30, "return_token_ids": True}
        free = (await c.post(COMPLETIONS, body))["choices"][0]
        words = free["text"].split()
        fifth = f"{words[4]} {words[5]}"
        cut = (await c.post(COMPLETIONS, {**body, "stop": ["no such", fifth]}))["choices"][0]
        assert cut["text"] == free["text"][: free["text"].index(fifth)]
        assert (cut["finish_reason"], cut["stop_reason"]) == ("stop", fifth)
        chunks = await c.stream(COMPLETIONS, {**body, "stop": fifth})
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == cut["text"]

        stop_id = free["token_ids"][3]
        by_id = await c.post(COMPLETIONS, {**body, "stop_token_ids": [stop_id]})
        assert by_id["choices"][0]["stop_reason"] == stop_id
        first = free["token_ids"].index(stop_id) + 1
        assert by_id["choices"][0]["token_ids"] == free["token_ids"][:first]


async def test_a_prefix_is_found_again_unless_the_salt_differs(engine: SimProcess) -> None:
    async def cached_tokens(c: Client, **more: object) -> int:
        body = {"prompt": list(range(5000, 5100)), "max_tokens": 1, **more}
        answer = await c.post(COMPLETIONS, body)
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    async with client(engine) as c:
        assert await cached_tokens(c) == 0
        hits = await c.metric("vllm:prefix_cache_hits_total")
        assert await cached_tokens(c) == 96
        assert await c.metric("vllm:prefix_cache_hits_total") == hits + 96
        assert await cached_tokens(c, cache_salt="tenant") == 0
        assert await cached_tokens(c, cache_salt="tenant") == 96
        await c.post("/reset_prefix_cache", {})
        assert await cached_tokens(c) == 0


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "huge", "prompt": "x"}, 404, "The model `huge` does not exist."),
        ({"prompt": "x", "max_tokens": -1}, 400, "max_tokens must be at least 1, got -1."),
        ({"prompt": "x", "max_tokens": "many"}, 400, "Expected `int | null`, got `str`"),
        ({"prompt": "x", "max_tokens": CONTEXT_TOKENS}, 400, "maximum context length is 4096"),
        ({"prompt": [1] * CONTEXT_TOKENS}, 400, "maximum context length is 4096"),
        ({"prompt": [[1, 2], [3, -4]]}, 400, "Token id -4 is out of vocabulary."),
        ({"prompt": [1, 99_999]}, 400, "Token id 99999 is out of vocabulary."),
        ({"prompt": [True]}, 400, "prompt must be a string, a list of token ids"),
        ({"prompt": {}}, 400, "prompt must be a string, a list of token ids"),
        ({"prompt": ""}, 400, "The prompt cannot be empty."),
        ({"prompt": []}, 400, "prompt must not be empty."),
        ({"prompt": "x", "n": 0}, 400, "n must be at least 1, got 0."),
        ({"prompt": "x", "n": 1000}, 400, "At most 256 sequences"),
        ({"prompt": "x", "echo": True}, 400, "echo is not supported"),
        ({"prompt": "x", "logprobs": 99}, 400, "logprobs must be between 0 and 20, got 99."),
        ({"prompt": "x", "prompt_logprobs": 1}, 400, "prompt_logprobs are not supported"),
        ({"prompt": "x", "stop": [""]}, 400, "stop cannot contain an empty string."),
        ({"prompt": "x", "temperature": -0.5}, 400, "temperature must be non-negative."),
    ],
)
async def test_what_cannot_be_answered_is_refused(
    engine: SimProcess, body: dict[str, object], status: int, message: str
) -> None:
    for stream in (False, True):
        async with client(engine) as c:
            answer = await c.post(COMPLETIONS, {**body, "stream": stream}, status)
        assert message in answer["error"]["message"]
        assert answer["error"]["code"] == status
        assert answer["error"]["type"] == {400: "BadRequestError", 404: "NotFoundError"}[status]


async def test_broken_large_and_misplaced_requests_get_the_same_shape(engine: SimProcess) -> None:
    async with client(engine) as c:
        for path, data, status in (
            (COMPLETIONS, b'{"prompt": "x"', 400),
            (COMPLETIONS, b'{"prompt": "\xff"}', 400),
            (COMPLETIONS, b" " * ((32 << 20) + 1), 413),
            (CHAT, b'{"messages": []}', 400),
            (CHAT, b'{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', 400),
            ("/v1/nothing", b"", 404),
        ):
            async with c.session.post(path, data=io.BytesIO(data)) as response:
                assert response.status == status
                error = (await response.json())["error"]
                assert error["code"] == status and error["message"]
        assert await c.metric(RUNNING) == 0


async def test_content_parts_become_text(engine: SimProcess) -> None:
    parts = [{"type": "text", "text": "hello"}, {"type": "text", "text": "there"}]
    async with client(engine) as c:
        split = await c.post(CHAT, {"messages": [{"role": "user", "content": parts}]})
        joined = await c.post(CHAT, {"messages": [{"role": "user", "content": "hello\nthere"}]})
    assert split["choices"] == joined["choices"]


async def test_small_routes(engine: SimProcess) -> None:
    async with client(engine) as c:
        [model] = (await c.get("/v1/models"))["data"]
        assert (model["id"], model["max_model_len"]) == ("tiny", CONTEXT_TOKENS)
        assert (await c.get("/version"))["version"] == "0.32.0+sim"
        assert (await c.get("/server_info"))["vllm_config"]["block_size"] == 16
        for path in ("/health", "/ping"):
            async with c.session.get(path) as response:
                assert (response.status, await response.text()) == (200, "")

        found = await c.post("/tokenize", {"prompt": "one token"})
        assert found["count"] == len(found["tokens"]) and found["max_model_len"] == CONTEXT_TOKENS
        assert (await c.post("/detokenize", {"tokens": found["tokens"]}))["prompt"] == "one token"
        chat = await c.post("/tokenize", {"messages": HELLO})
        asked = await c.post(CHAT, {"messages": HELLO, "max_tokens": 1, "return_token_ids": True})
        assert chat["tokens"] == asked["prompt_token_ids"]


async def test_metric_names_are_vllms(engine: SimProcess, shared_data: Any) -> None:
    async with client(engine) as c:
        await c.post(COMPLETIONS, {"prompt": "x", "max_tokens": 3})
        async with c.session.get("/metrics") as response:
            text = await response.text()
    recorded = (shared_data / "vllm" / "metrics_under_load.prom").read_text()
    families = {line.split()[2:4][0]: line for line in text.splitlines() if "# TYPE" in line}
    assert len(families) > 10
    for name, line in families.items():
        if not name.startswith("sim:"):  # our own say so by their names
            assert line in recorded, "a name or type that vLLM does not have"
    for line in text.splitlines():
        if line.startswith("vllm:") and "cache_config" not in line and "_created" not in line:
            name = line.split("{")[0]
            labels = line.split("{")[1].split("}")[0].replace('"sim"', '"tiny"')
            assert f"{name}{{{labels}}}" in recorded, "a series that vLLM does not have"


async def test_a_client_that_leaves_frees_its_place(slow_engine: SimProcess) -> None:
    endless = {"prompt": "on and on", "max_tokens": 20_000}
    async with client(slow_engine) as c:
        for stream in (True, False):
            aborted = await c.metric("vllm:request_success_total")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_ask_and_wait, c, {**endless, "stream": stream})
                await c.wait_for_metric(RUNNING, 1)
                tasks.start_soon(_ask_and_wait, c, {**endless, "stream": stream})
                await c.wait_for_metric(WAITING, 1)
                tasks.cancel_scope.cancel()
            await c.wait_for_metric(RUNNING, 0)
            assert await c.metric(WAITING) == 0
            assert await c.metric("vllm:kv_cache_usage_perc") == 0
            assert await c.metric("vllm:request_success_total") == aborted + 2


async def test_above_its_queue_the_engine_refuses(slow_engine: SimProcess) -> None:
    endless = {"prompt": "on and on", "max_tokens": 20_000}
    async with client(slow_engine) as c, anyio.create_task_group() as tasks:
        tasks.start_soon(_ask_and_wait, c, endless)
        await c.wait_for_metric(RUNNING, 1)
        for waiting in (1, 2):
            tasks.start_soon(_ask_and_wait, c, endless)
            await c.wait_for_metric(WAITING, waiting)
        async with c.session.post(COMPLETIONS, json=endless) as response:
            assert response.status == 503 and "Retry-After" in response.headers
        tasks.cancel_scope.cancel()


async def test_readers_that_stall_cost_no_memory_and_lose_nothing(engine: SimProcess) -> None:
    readers, tokens, n = 2, 900, 32
    process = psutil.Process(engine.process.pid)
    async with client(engine) as c:
        await c.post(COMPLETIONS, {"prompt": "warm up", "max_tokens": tokens})
        before_bytes = process.memory_info().rss
        generated = await c.metric("vllm:generation_tokens_total")
        stalled = [ask_and_stall(engine, tokens, n) for _ in range(readers)]
        await c.wait_for_metric("vllm:generation_tokens_total", generated + readers * n * tokens)
        assert await c.metric(RUNNING) == 0, "the engine does not wait for readers"
        assert process.memory_info().rss - before_bytes < 20 << 20
    for reader in stalled:
        with reader, reader.makefile("rb") as file:
            *events, done = [line for line in file if line.startswith(b"data: ")]
        assert done.strip() == b"data: [DONE]"
        choices = [json.loads(event[6:])["choices"][0] for event in events]
        for index in range(n):
            counts = [len(c["text"].split()) for c in choices if c["index"] == index]
            assert sum(counts) == tokens
            assert max(counts) > 100, "it never stalled: everything found room on the way"


async def _ask_and_wait(c: Client, body: dict[str, object]) -> None:
    async with c.session.post(COMPLETIONS, json=body) as response:
        await response.read()


def _recorded(path: Any) -> Any:
    return msgspec.json.decode(path.read_bytes())


def _missing_keys(recorded: Any, answer: Any, path: str = "") -> set[str]:
    """Dotted names of what the recorded answer has and ours does not; lists count as one."""
    if isinstance(recorded, list) and recorded and isinstance(recorded[0], dict):
        return _missing_keys(recorded[0], answer[0], path)
    if not isinstance(recorded, dict):
        return set()
    missing: set[str] = set()
    for key, value in recorded.items():
        name = f"{path}{key}"
        if key not in (answer or {}):
            missing.add(name)
        elif value is not None:
            missing |= _missing_keys(value, answer[key], f"{name}.")
    return missing
