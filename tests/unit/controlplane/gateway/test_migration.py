"""Going on elsewhere: what may, from which token, and in which shape."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.gateway.migration import (
    CannotContinue,
    Leg,
    continuation,
    obstacle,
    settle,
    traced,
)
from controlplane.gateway.openai import Api, Ask, read
from controlplane.gateway.sse import MalformedStream, SseScanner
from controlplane.gateway.transcript import Transcript

WORDS = {1: "one ", 2: "two ", 3: "three ", 4: "fo", 5: "ur ", 9: "<prompt>"}
PROMPT = [9, 9]


def detokenise(tokens: Sequence[int]) -> str:
    return "".join(WORDS[token] for token in tokens)


def completion(**fields: object) -> Ask:
    body = {"model": "m", "prompt": PROMPT, "stream": True, **fields}
    return read(Api.COMPLETIONS, json.dumps(body).encode())


def chat(**fields: object) -> Ask:
    messages = [{"role": "user", "content": "x"}]
    body = {"model": "m", "messages": messages, "stream": True, **fields}
    return read(Api.CHAT, json.dumps(body).encode())


def said_with(part: dict[str, object]) -> list[dict[str, object]]:
    return [{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]


def event(choice: dict[str, object], **fields: object) -> bytes:
    body = {"id": "first", "created": 7, "model": "m", "choices": [choice], **fields}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def said(*tokens: int, held_back: int = 0) -> Transcript:
    """Each token an event of its own; the text of the last `held_back` has not come."""
    transcript = Transcript(100)
    for nth, token in enumerate(tokens):
        text = WORDS[token] if nth < len(tokens) - held_back else ""
        transcript.see(event({"text": text, "token_ids": [token]}))
    return transcript


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        (completion(), ""),
        (chat(temperature=0.5, seed=3, stop=["x"], max_completion_tokens=9), ""),
        (chat(tools=[], response_format=None), ""),
        (completion(stream=False), "nothing is sent"),
        (completion(prompt=[[9, 9]]), ""),
        (chat(messages=said_with({"type": "text", "text": "y"})), ""),
        (chat(messages=said_with({"type": "image_url", "image_url": {"url": "u"}})), "image_url"),
        (chat(messages=said_with({"type": "input_audio"})), "input_audio"),
        (chat(messages=said_with({"image_url": "u"})), "beside text"),
        (completion(n=2), "several"),
        (completion(prompt=["a", "b"]), "several"),
        (completion(prompt=[[1], [2]]), "several"),
        (completion(logprobs=3), "logprobs"),
        (completion(echo=True), "echo"),
        (chat(presence_penalty=0.1), "presence_penalty"),
        (chat(tools=[{"type": "function"}]), "tools"),
        (chat(response_format={"type": "json_object"}), "response_format"),
        (completion(guided_json={}), "guided_json"),
        (completion(return_token_ids=True), "token ids"),
    ],
)
def test_only_what_means_the_same_for_the_rest_may_go_on(ask: Ask, why: str) -> None:
    assert obstacle(ask).find(why) >= 0
    assert bool(obstacle(ask)) == bool(why)


def test_a_watched_request_asks_for_token_ids_and_hides_the_prompts() -> None:
    ask = completion(max_tokens=5)
    leg = traced(Leg(ask.api.value, ask.body), "vllm/0.32.0")
    assert json.loads(leg.body) == {**json.loads(ask.body), "return_token_ids": True}
    assert leg.reshape is not None
    events = leg.reshape(event({"text": "a", "token_ids": [1], "prompt_token_ids": PROMPT}))
    choice = json.loads(events.removeprefix(b"data:"))["choices"][0]
    assert choice == {"text": "a", "token_ids": [1], "prompt_token_ids": None}


@pytest.mark.parametrize("engine", ["trtllm/1.3.0", "sglang", ""])
def test_an_engine_that_tells_no_tokens_gets_the_clients_own_bytes(engine: str) -> None:
    """Some refuse a request with a field that they do not know."""
    leg = Leg("/v1/completions", completion().body)
    assert traced(leg, engine) is leg


def test_text_that_was_held_back_is_said_again() -> None:
    transcript = said(1, 2, 3, 4, held_back=2)
    settle(transcript, PROMPT, detokenise)
    assert transcript.tokens.tolist() == [1, 2]


def test_tokens_that_do_not_make_the_text_are_not_trusted() -> None:
    transcript = said(1, 2)
    transcript.see(event({"text": "something else", "token_ids": [3]}))
    with pytest.raises(CannotContinue, match="do not agree"):
        settle(transcript, PROMPT, detokenise)


@given(st.lists(st.sampled_from([1, 2, 3, 4, 5]), max_size=30), st.integers(0, 8))
def test_what_the_client_has_and_what_comes_are_the_whole(tokens: list[int], held: int) -> None:
    transcript = said(*tokens, held_back=min(held, len(tokens)))
    settle(transcript, PROMPT, detokenise)
    rest = tokens[len(transcript.tokens) :]
    assert transcript.text + detokenise(rest) == detokenise(tokens)


def test_an_engine_that_tells_no_tokens_cannot_be_followed() -> None:
    transcript = Transcript(100)
    transcript.see(event({"text": "a", "token_ids": None}))
    with pytest.raises(CannotContinue, match="did not tell"):
        continuation(completion(), PROMPT, transcript, 100)


@pytest.mark.parametrize("told", [{"token_ids": [1]}, {}])
@pytest.mark.parametrize(
    "delta",
    [{"reasoning_content": "one "}, {"reasoning": "one "}, {"tool_calls": [{"index": 0}]}],
)
def test_what_a_parser_took_out_of_an_answer_is_not_said_twice(
    delta: dict[str, object], told: dict[str, object]
) -> None:
    transcript = Transcript(100)
    transcript.see(event({"delta": {"role": "assistant", "content": "", "tool_calls": []}}))
    assert transcript.whole
    transcript.see(event({"delta": delta, **told}))
    assert transcript.whole == bool(told)
    with pytest.raises(CannotContinue):
        continuation(chat(), PROMPT, transcript, 100)


def test_an_answer_too_long_to_be_remembered_cannot_go_on() -> None:
    transcript = Transcript(2)
    for _ in range(3):
        transcript.see(event({"text": "one ", "token_ids": [1]}))
    assert not transcript.whole
    with pytest.raises(CannotContinue):
        continuation(completion(), PROMPT, transcript, 100)


def test_the_rest_is_asked_for_by_token_ids_with_what_is_left() -> None:
    ask = chat(max_tokens=10, temperature=0.0, stop="x", stream_options={"include_usage": True})
    leg = continuation(ask, PROMPT, said(1, 2, 3), 100)
    body = json.loads(traced(leg, "sim").body)
    assert traced(leg, "sim").reshape is leg.reshape
    assert body == {
        "model": "m",
        "prompt": [*PROMPT, 1, 2, 3],
        "max_tokens": 7,
        "temperature": 0.0,
        "stop": "x",
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }


@pytest.mark.parametrize(("ask", "left"), [(completion(), 16 - 3), (chat(), 50 - 2 - 3)])
def test_an_answer_without_a_limit_keeps_the_default_of_its_api(ask: Ask, left: int) -> None:
    body = json.loads(continuation(ask, PROMPT, said(1, 2, 3), 50).body)
    assert body["max_tokens"] == left


def test_an_answer_that_only_lacks_its_end_is_not_asked_for_again() -> None:
    with pytest.raises(CannotContinue, match="all of its tokens"):
        continuation(completion(max_tokens=3), PROMPT, said(1, 2, 3), 100)


def test_the_rest_looks_like_the_stream_that_broke_off() -> None:
    leg = continuation(chat(max_tokens=9), PROMPT, said(1, 2), 100)
    assert leg.reshape is not None and leg.path == "/v1/completions"
    usage = {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
    other = {"id": "second", "created": 99, "object": "text_completion"}
    events = leg.reshape(
        event({"index": 0, "text": "three ", "token_ids": [3]}, **other)
        + event({"index": 0, "text": "", "finish_reason": "stop"}, **other, usage=usage)
        + b"data: [DONE]\n\n"
    ).split(b"\n\n")
    first, last = (json.loads(e.removeprefix(b"data: ")) for e in events[:2])
    assert (first["id"], first["created"], first["object"]) == (
        "first", 7, "chat.completion.chunk",
    )  # fmt: skip
    assert first["choices"][0]["delta"] == {"content": "three "}
    assert "text" not in first["choices"][0]
    assert last["usage"] == {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}
    assert events[2:] == [b"data: [DONE]", b""]


@pytest.mark.parametrize(
    "data",
    [
        b'{"id": "y", "choices": null}',
        b'{"choices": ["x"]}',
        b"{broken",
        b'{"choices": [{"text": "\xff"}]}',
        b'{"choices": ' + b"[" * 100_000,
    ],
)
def test_what_the_second_engine_garbles_is_its_failure_and_not_ours(data: bytes) -> None:
    scanner = SseScanner(continuation(chat(), PROMPT, said(1, 2), 100).reshape)
    with pytest.raises(MalformedStream):
        scanner.feed(b"data: " + data + b"\n\n")


@pytest.mark.parametrize(
    "rest", [b'a", "token_ids": [-1]', b'a", "token_ids": [4294967296]', b'\xff", "token_ids": [1]']
)
def test_a_garbled_event_is_no_part_of_what_was_said(rest: bytes) -> None:
    transcript = Transcript(100)
    transcript.see(b'data: {"choices": [{"text": "' + rest + b"}]}\n\n")
    assert not transcript.whole
