"""What clients get wrong, and what they are told."""

from __future__ import annotations

import json
from array import array

import pytest

from controlplane.gateway.openai import Api, ClientError, read
from controlplane.gateway.sse import MalformedStream, SseScanner, refusal_in, usage_of


def body(**fields: object) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def test_what_routing_must_know_is_read_and_the_body_kept() -> None:
    sent = body(prompt="hello", max_tokens=5, stream=True, logprobs=3, cache_salt="t")
    ask = read(Api.COMPLETIONS, sent)
    assert (ask.text, ask.max_tokens, ask.stream, ask.cache_salt) == ("hello", 5, True, "t")
    assert ask.body == sent


def test_prompts_come_in_four_shapes() -> None:
    assert read(Api.COMPLETIONS, body(prompt=[1, 2])).tokens == array("I", [1, 2])
    assert read(Api.COMPLETIONS, body(prompt=["a", "b"])).text == "a"
    assert read(Api.COMPLETIONS, body(prompt=[[1], [2]])).tokens == array("I", [1])


def test_chat_limits_have_two_names() -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert read(Api.CHAT, body(messages=messages, max_tokens=3)).max_tokens == 3
    both = body(messages=messages, max_tokens=3, max_completion_tokens=4)
    assert read(Api.CHAT, both).max_tokens == 4


def test_how_many_answers_are_asked_for_is_known() -> None:
    assert read(Api.COMPLETIONS, body(prompt=["1", "2"], n=3)).answers == 6
    assert read(Api.COMPLETIONS, body(prompt=[[1, 2]])).answers == 1
    assert read(Api.COMPLETIONS, body(prompt=[1, 2], n=None)).answers == 1
    assert read(Api.CHAT, body(messages=[{"role": "user", "content": "hi"}], n=2.0)).answers == 2


def test_of_a_batchs_other_prompts_the_lengths_are_guessed() -> None:
    batch = body(prompt=[[1, 2, 3], [7] * 90, "eight letters and more"])
    assert read(Api.COMPLETIONS, batch).unread_tokens == 90 + 5


DEEP = b'{"model": "m", "prompt": "x", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("api", "sent", "code", "param"),
    [
        (Api.COMPLETIONS, b"{", "invalid_json", None),
        (Api.COMPLETIONS, b"\xff", "invalid_json", None),
        (Api.COMPLETIONS, b"[]", "invalid_value", None),
        (Api.COMPLETIONS, b'{"prompt": "x"}', "invalid_value", None),
        (Api.COMPLETIONS, body(), "invalid_value", None),
        (Api.COMPLETIONS, body(prompt=""), "empty_prompt", "prompt"),
        (Api.COMPLETIONS, body(prompt=[]), "empty_prompt", "prompt"),
        (Api.COMPLETIONS, body(prompt={"a": 1}), "invalid_value", "prompt"),
        (Api.COMPLETIONS, body(prompt=[-1]), "invalid_value", "prompt"),
        (Api.COMPLETIONS, body(prompt=[2**32]), "invalid_value", "prompt"),
        (Api.COMPLETIONS, body(prompt="x", max_tokens=-1), "invalid_value", "max_tokens"),
        (Api.COMPLETIONS, body(prompt="x", max_tokens=0), "invalid_value", "max_tokens"),
        (Api.COMPLETIONS, body(prompt="x", max_tokens="9"), "invalid_value", "max_tokens"),
        (Api.COMPLETIONS, body(prompt="x", max_tokens=2**31), "invalid_value", "max_tokens"),
        (Api.COMPLETIONS, body(prompt="x", max_tokens=1e30), "invalid_value", "max_tokens"),
        (Api.COMPLETIONS, body(prompt="x", n=0), "invalid_value", "n"),
        (Api.COMPLETIONS, DEEP, "invalid_json", None),
        (Api.CHAT, body(messages=[]), "empty_prompt", "messages"),
        (Api.CHAT, body(messages="hi"), "invalid_value", "messages"),
        (Api.CHAT, body(prompt="hi"), "invalid_value", None),
    ],
)
def test_a_wrong_body_is_a_400_that_says_where(
    api: Api, sent: bytes, code: str, param: str | None
) -> None:
    with pytest.raises(ClientError) as caught:
        read(api, sent)
    error = caught.value
    assert (error.status, error.code, error.param) == (400, code, param)
    told = json.loads(error.body())["error"]
    assert told == {
        "message": str(error),
        "type": "invalid_request_error",
        "param": param,
        "code": code,
    }


EVENT = b'data: {"choices": [{"text": "a"}]}\n\n'
USAGE = (
    b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4, '
    b'"prompt_tokens_details": {"cached_tokens": 8}}}\n\n'
)


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_a_stream_is_forwarded_whole_however_it_is_cut(size: int) -> None:
    stream = EVENT * 3 + USAGE + b"data: [DONE]\n\n"
    scanner = SseScanner()
    forwarded = [
        scanner.feed(stream[start : start + size]) for start in range(0, len(stream), size)
    ]
    assert b"".join(forwarded) == stream
    assert all(piece == b"" or piece.endswith(b"\n\n") for piece in forwarded)
    assert scanner.done
    assert scanner.usage is not None
    assert (scanner.usage.completion_tokens, scanner.usage.cached_tokens) == (4, 8)


def test_half_an_event_is_never_forwarded() -> None:
    scanner = SseScanner()
    assert scanner.feed(EVENT + b'data: {"cho') == EVENT
    assert (scanner.events, scanner.done) == (1, False)


def test_an_engines_own_error_is_seen() -> None:
    scanner = SseScanner()
    assert scanner.feed(b'data: {"error": {"message": "out of memory"}}\n\n') == b""
    assert scanner.given_up == (500, "out of memory")
    assert scanner.feed(b"data: [DONE]\n\n") == b""
    assert not scanner.done


def test_an_event_without_end_is_not_kept_for_ever() -> None:
    scanner = SseScanner()
    with pytest.raises(MalformedStream):
        for _ in range(5_000):
            scanner.feed(b"x" * 1_000)


def test_a_body_without_usage_has_none() -> None:
    assert usage_of(b"{}") is None
    assert usage_of(b"not json") is None


NOT_JSON = (b"not json", b'{"error": {"message": "\xe9"}}', b'{"x": ' + b"[" * 100_000)


@pytest.mark.parametrize("said", NOT_JSON)
def test_an_engine_that_garbles_what_is_wrong_is_quoted(said: bytes) -> None:
    assert refusal_in(said).message == said[:1_000].decode(errors="replace")
    assert usage_of(said) is None


def test_an_engines_garbled_error_is_one_all_the_same() -> None:
    scanner = SseScanner()
    assert scanner.feed(b'data: {"error": {"message": "\xe9"}}\n\n') == b""
    assert scanner.given_up == (500, "it sent an error that cannot be read")


def test_a_response_is_routed_as_the_chat_that_the_engine_makes_of_it() -> None:
    asked = {"model": "m", "input": "hi", "instructions": "be brief", "max_output_tokens": 7}
    ask = read(Api.RESPONSES, json.dumps(asked).encode())
    assert ask.messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
    ]
    assert ask.max_tokens == 7


def test_a_response_streams_named_events_and_ends_without_done() -> None:
    scanner = SseScanner()
    delta = b'event: response.output_text.delta\ndata: {"delta": "x"}\n\n'
    usage = b'{"input_tokens": 5, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 4}}'
    scanner.feed(b'event: response.created\ndata: {"response": {}}\n\n' + delta + delta)
    assert (scanner.events, scanner.done) == (2, False)
    scanner.feed(b'event: response.completed\ndata: {"response": {"usage": ' + usage + b"}}\n\n")
    assert scanner.done and scanner.usage is not None
    assert (scanner.usage.prompt, scanner.usage.completion) == (5, 2)
    assert scanner.usage.cached_tokens == 4


def test_items_that_are_no_messages_are_left_to_the_engine() -> None:
    output = {"type": "function_call_output", "call_id": "1", "output": "3"}
    asked = {"model": "m", "input": [{"role": "user", "content": "hi"}, output]}
    assert read(Api.RESPONSES, json.dumps(asked).encode()).messages is None


@pytest.mark.parametrize("sent", ["one", ["one", "two"], [1, 2], [[1], [2]]])
def test_embeddings_are_passed_on_whatever_they_embed(sent: object) -> None:
    ask = read(Api.EMBEDDINGS, json.dumps({"model": "m", "input": sent}).encode())
    assert (ask.text, ask.tokens, ask.messages, ask.stream) == (None, None, None, False)


@pytest.mark.parametrize(
    ("api", "fields", "param"),
    [
        (Api.RESPONSES, {"input": ""}, "input"),
        (Api.RESPONSES, {"input": "x", "previous_response_id": "r1"}, "previous_response_id"),
        (Api.EMBEDDINGS, {"input": []}, "input"),
    ],
)
def test_what_these_cannot_be_asked(api: Api, fields: dict[str, object], param: str) -> None:
    with pytest.raises(ClientError) as refused:
        read(api, json.dumps({"model": "m", **fields}).encode())
    assert (refused.value.status, refused.value.param) == (400, param)


def test_a_broken_response_stream_ends_in_the_event_of_its_api() -> None:
    error = ClientError(502, "gone", code="engine_lost")
    kind, data = error.event(Api.RESPONSES).removesuffix(b"\n\n").split(b"\ndata: ")
    assert kind == b"event: error"
    assert json.loads(data)["code"] == "engine_lost"


def test_a_picture_is_not_guessed_by_its_bytes() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    content = [{"type": "text", "text": "What is this?"}, picture]
    messages = [{"role": "system", "content": "x" * 400}, {"role": "user", "content": content}]
    ask = read(Api.CHAT, body(messages=messages))
    assert 1_000 < ask.unread_tokens < 1_100 < ask.guessed_prompt_tokens < 1_200
