"""What the official OpenAI client can ask, as cases: the same against an engine and a gateway."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello there"}]
TOOL: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
}


async def chats_whole_and_streamed(client: AsyncOpenAI, model: str) -> None:
    whole = await client.chat.completions.create(model=model, messages=HELLO, max_tokens=9)
    text, usage = "", None
    async for chunk in await client.chat.completions.create(
        model=model,
        messages=HELLO,
        max_tokens=9,
        stream=True,
        stream_options={"include_usage": True},
    ):
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content
    assert usage is not None and whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens == 9


async def completes_whole_and_streamed(client: AsyncOpenAI, model: str) -> None:
    whole = await client.completions.create(model=model, prompt="one two", max_tokens=9)
    text, usage = "", None
    async for chunk in await client.completions.create(
        model=model,
        prompt="one two",
        max_tokens=9,
        stream=True,
        stream_options={"include_usage": True},
    ):
        text += "".join(choice.text for choice in chunk.choices)
        usage = chunk.usage or usage
    assert text == whole.choices[0].text
    assert usage is not None and whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens == 9


async def streams_several_answers_with_their_probabilities(client: AsyncOpenAI, model: str) -> None:
    texts, told = ["", ""], ["", ""]
    async for chunk in await client.chat.completions.create(
        model=model, messages=HELLO, n=2, max_tokens=5, logprobs=True, stream=True
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            for entry in (choice.logprobs.content or []) if choice.logprobs else []:
                told[choice.index] += entry.token
    assert all(texts) and texts == told


async def gives_several_answers(client: AsyncOpenAI, model: str) -> None:
    answer = await client.chat.completions.create(model=model, messages=HELLO, n=3, max_tokens=6)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3


async def stops_where_told(client: AsyncOpenAI, model: str) -> None:
    whole = await client.completions.create(model=model, prompt="one two", max_tokens=30)
    word = whole.choices[0].text.split()[5]
    cut = await client.completions.create(
        model=model, prompt="one two", max_tokens=30, stop=[f" {word}"]
    )
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].text == whole.choices[0].text.partition(f" {word}")[0]


async def tells_probabilities(client: AsyncOpenAI, model: str) -> None:
    chat = await client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=4, logprobs=True, top_logprobs=3
    )
    told = chat.choices[0].logprobs
    assert told is not None and told.content is not None
    assert "".join(entry.token for entry in told.content) == chat.choices[0].message.content
    assert all(len(entry.top_logprobs) == 3 for entry in told.content)
    assert all(entry.logprob < 0 and math.isfinite(entry.logprob) for entry in told.content)
    plain = await client.completions.create(model=model, prompt="one", max_tokens=4, logprobs=2)
    likelihood = plain.choices[0].logprobs
    assert likelihood is not None and likelihood.tokens is not None
    assert "".join(likelihood.tokens) == plain.choices[0].text


async def passes_tools_and_formats_on(client: AsyncOpenAI, model: str) -> None:
    answer = await client.chat.completions.create(
        model=model,
        messages=HELLO,
        max_tokens=4,
        tools=[TOOL],
        tool_choice="auto",
        response_format={"type": "json_object"},
    )
    assert answer.usage is not None and answer.usage.completion_tokens == 4
    chunks = [
        chunk
        async for chunk in await client.chat.completions.create(
            model=model,
            messages=HELLO,
            max_tokens=4,
            tools=[TOOL],
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "any", "schema": {"type": "object"}},
            },
            stream=True,
        )
    ]
    [end] = [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert end == "length"


async def responds(client: AsyncOpenAI, model: str) -> None:
    whole = await client.responses.create(
        model=model, input="tell me", instructions="Be brief.", max_output_tokens=8
    )
    assert whole.status == "incomplete" and whole.output_text
    assert whole.usage is not None and whole.usage.output_tokens == 8
    text, kinds = "", []
    async for event in await client.responses.create(
        model=model,
        input=[{"role": "user", "content": "tell me"}],
        instructions="Be brief.",
        max_output_tokens=8,
        stream=True,
    ):
        kinds.append(event.type)
        if event.type == "response.output_text.delta":
            text += event.delta
    assert text == whole.output_text
    assert (kinds[0], kinds[-1]) == ("response.created", "response.incomplete")


async def embeds(client: AsyncOpenAI, model: str) -> None:
    """The client asks for base64 by itself where no format is given."""
    packed = await client.embeddings.create(model=model, input=["one", "two"])
    plain = await client.embeddings.create(model=model, input="one", encoding_format="float")
    assert [entry.index for entry in packed.data] == [0, 1]
    one, two = (entry.embedding for entry in packed.data)
    assert one != two and math.isclose(sum(x * x for x in one), 1, rel_tol=1e-4)
    assert all(
        math.isclose(a, b, abs_tol=1e-6) for a, b in zip(one, plain.data[0].embedding, strict=True)
    )


async def lists_models(client: AsyncOpenAI, model: str) -> None:
    assert model in [entry.id for entry in (await client.models.list()).data]


Case = Callable[[AsyncOpenAI, str], Awaitable[None]]

SURFACE: tuple[Case, ...] = (
    chats_whole_and_streamed,
    completes_whole_and_streamed,
    streams_several_answers_with_their_probabilities,
    gives_several_answers,
    stops_where_told,
    tells_probabilities,
    passes_tools_and_formats_on,
    responds,
    embeds,
    lists_models,
)
