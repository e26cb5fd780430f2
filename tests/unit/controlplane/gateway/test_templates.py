"""Chat templates: what they are given, and what becomes of those that cannot be rendered here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from controlplane.gateway.openai import Api, Ask, ClientError, read
from controlplane.gateway.tokenizer import Tokenizers
from proto.workers import ModelCard
from workers.sim.tokens import write_model

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]

TOOL = {"type": "function", "function": {"name": "f", "description": "it's <b> & é"}}
ASK = read(
    Api.CHAT,
    json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": [TOOL]}
    ).encode(),
)


async def said(folder: Path, template: str, ask: Ask = ASK) -> str | None:
    """The prompt, from its token ids."""
    write_model(folder)
    text = (folder / "tokenizer.json").read_text()
    card = ModelCard(name="m", context_tokens=100, tokenizer_json=text, chat_template=template)
    tokens = await Tokenizers().tokens(card, ask)
    return None if tokens is None else Tokenizer.from_str(text).decode(tokens.tolist())


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("{{ strftime_now('day') }}", "day"),
        ("{{ tools[0] | tojson }}", json.dumps(TOOL, ensure_ascii=False)),
        ("{{ tools[0] | tojson(ensure_ascii=True) }}", json.dumps(TOOL)),
        (
            "{{ tools[0] | tojson(indent=2, separators=(',', ':')) }}",
            json.dumps(TOOL, ensure_ascii=False, indent=2, separators=(",", ":")),
        ),
        ("{% for t in tools %}a{% break %}{% endfor %}", "a"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "hi"),
        ("{{ documents is none }}", "True"),
    ],
)
async def test_templates_have_what_engines_give_them(
    anyio_backend: str, tmp_path: Path, template: str, prompt: str
) -> None:
    assert await said(tmp_path, template) == prompt


async def test_messages_that_a_template_refuses_are_wrong(
    anyio_backend: str, tmp_path: Path
) -> None:
    with pytest.raises(ClientError) as refused:
        await said(tmp_path, "{{ raise_exception('roles must alternate') }}")
    assert (refused.value.status, refused.value.code) == (400, "invalid_messages")
    assert "roles must alternate" in str(refused.value)


@pytest.mark.parametrize(
    "template",
    [
        "{{ of_one_engine_only() }}",
        "{{ messages[0].content.nothing.at_all }}",
        "{{ 1 / 0 }}",
        "{{ messages.pop() }}",
    ],
)
async def test_what_a_template_cannot_do_here_is_left_to_the_engine(
    anyio_backend: str, tmp_path: Path, template: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Which may give it more than we know of."""
    assert await said(tmp_path, template) is None
    assert "routed by load only" in caplog.text


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"b": 1, "a": [2]}'}}
PARTS = [{"type": "text", "text": "one"}, "two", {"type": "input_text", "text": "three"}]
AS_TEXT = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
IN_PARTS = (
    "{% for m in messages %}[{% for part in m['content'] | list %}{{ part.type }}:{{ part.text }} "
    "{% endfor %}]{% endfor %}"
)
IN_A_MACRO = (
    "{% macro said(content) %}{% if content is string %}{{ content }}{% else %}"
    "{% for part in content %}{{ part.text }}{% endfor %}{% endif %}{% endmacro %}"
    "{% for m in messages %}[{{ said(m.content) }}]{% endfor %}"
)
CALLS = (
    "{% for call in messages[0].tool_calls or [] %}"
    "{% for name, value in call.function.arguments.items() %}{{ name }}={{ value }};{% endfor %}"
    "{% else %}none{% endfor %}"
)
THOUGHTS = "{{ messages[0].reasoning_content }}{{ messages[0].reasoning }}"


def asked(**message: object) -> Ask:
    messages = [{"role": "assistant", **message}]
    return read(Api.CHAT, json.dumps({"model": "m", "messages": messages}).encode())


def called(arguments: object) -> dict[str, object]:
    return {"tool_calls": [{**CALL, "function": {"name": "f", "arguments": arguments}}]}


@pytest.mark.parametrize(
    ("template", "message", "prompt"),
    [
        (AS_TEXT, {"content": PARTS}, "[one\ntwo\nthree]"),
        (AS_TEXT, {"content": None}, "[]"),
        (AS_TEXT, {}, "[]"),
        (IN_PARTS, {"content": PARTS}, "[text:one text:two text:three ]"),
        (IN_PARTS, {"content": "one"}, "[text:one ]"),
        (IN_A_MACRO, {"content": PARTS}, "[onetwothree]"),
        (AS_TEXT, {"role": "tool", "content": PARTS}, "[one\ntwo\nthree]"),
        (IN_A_MACRO, {"role": "tool", "content": PARTS}, "[one\ntwo\nthree]"),
        (CALLS, {"content": "", "tool_calls": [CALL]}, "b=1;a=[2];"),
        (CALLS, called({"b": 1}), "b=1;"),
        (CALLS + "x", called(""), "x"),
        (CALLS + "x", called("not json"), "x"),
        (CALLS + "x", called("[1]"), "x"),
        ("{{ 'tool_calls' in messages[0] }}", {"tool_calls": []}, "False"),
        (THOUGHTS, {"reasoning": "so "}, "so so "),
        (THOUGHTS, {"reasoning_content": "so "}, "so so "),
    ],
)
async def test_messages_are_prepared_as_engines_do(
    anyio_backend: str, tmp_path: Path, template: str, message: dict[str, object], prompt: str
) -> None:
    assert await said(tmp_path, template, asked(**message)) == prompt
