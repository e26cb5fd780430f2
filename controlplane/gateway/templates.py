"""Chat templates, given what engines give them: all that Hugging Face's transformers has, and
messages as vLLM prepares them, from which SGLang and TensorRT-LLM differ little.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import Environment, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from controlplane.gateway.content import beside_text

UNKNOWN = "\N{OBJECT REPLACEMENT CHARACTER}"
"""In place of content that an engine makes more of than text: it may put images before the words
that they are said with, so all of a message's is unknown, and two images are never one prompt."""

Message = Mapping[str, Any]


class Refused(Exception):
    """The template has no place for such messages; says why, in its own words."""


class ChatTemplate:
    """One model's."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        """Raises `TemplateError`."""
        environment = _environment()
        self._template = environment.from_string(source)
        self._takes_parts = _takes_parts(environment.parse(source))
        self._special = dict(special)

    def render(self, messages: Sequence[Message], tools: Sequence[Message] | None) -> str:
        """The prompt. Raises `Refused`, and whatever else a template can do wrong."""
        return self._template.render(
            messages=[_prepared(message, in_parts=self._takes_parts) for message in messages],
            tools=tools,
            documents=None,
            add_generation_prompt=True,
            **self._special,
        )


def _environment() -> Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _strftime_now
    environment.filters["tojson"] = _tojson
    return environment


class _Generation(Extension):
    """`{% generation %}`, by which trainers find what a model has said."""

    tags = {"generation"}  # noqa: RUF012 as Jinja has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    raise Refused(message)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Not Jinja's own, which sorts, and escapes what HTML would take amiss."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _takes_parts(template: nodes.Template) -> bool:
    """Whether it goes through the parts of a message's content, by the loops that it has: vLLM's
    way to find out. Others are given text."""
    return any(_is_content(loop.iter) for loop in template.find_all(nodes.For))


def _is_content(node: nodes.Node | None) -> bool:
    match node:
        case nodes.Filter():
            return _is_content(node.node)
        case nodes.Getitem(arg=nodes.Slice()):
            return _is_content(node.node)
        case nodes.Getitem(arg=nodes.Const(value="content")) | nodes.Getattr(attr="content"):
            return True
        case nodes.Name(name="content"):
            return True
        case _:
            return False


def _prepared(message: Message, *, in_parts: bool) -> dict[str, Any]:
    role = message.get("role")
    texts = _texts(message.get("content"))
    prepared = dict(message)
    if in_parts and role != "tool":
        prepared["content"] = [{"type": "text", "text": text} for text in texts]
    else:
        prepared["content"] = "\n".join(texts)
    if role == "assistant":
        calls = prepared.pop("tool_calls", None)
        if calls:
            prepared["tool_calls"] = [_with_arguments(call) for call in calls]
        thoughts = message.get("reasoning")
        thoughts = message.get("reasoning_content") if thoughts is None else thoughts
        if thoughts is not None:
            prepared |= {"reasoning": thoughts, "reasoning_content": thoughts}
    return prepared


def _texts(content: object) -> list[str]:
    if content is None:
        return []
    if not isinstance(content, list):
        return [str(content)]
    if beside_text(content):
        return [UNKNOWN]
    texts = (part if isinstance(part, str) else part.get("text") for part in content)
    return [text for text in texts if isinstance(text, str)]


def _with_arguments(call: Message) -> dict[str, Any]:
    """Clients send the arguments of a call as JSON's text; templates go through what it says."""
    function = call["function"]
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError:
            arguments = {}
    known = arguments if isinstance(arguments, dict) else {}
    return {**call, "function": {**function, "arguments": known}}
