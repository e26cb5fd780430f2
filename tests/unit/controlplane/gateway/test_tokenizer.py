"""Tokenizers of models: made once, whoever asks."""

from __future__ import annotations

import json
import threading
from array import array
from pathlib import Path

import anyio
import anyio.from_thread
import pytest
from tokenizers import Tokenizer

from controlplane.gateway import tokenizer
from controlplane.gateway.openai import Api, Ask, read
from controlplane.gateway.tokenizer import SHORT_CHARS, THREADS, ModelTokenizer, Tokenizers
from proto.workers import ModelCard
from workers.sim.tokens import write_model

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]


SAID = read(Api.COMPLETIONS, b'{"model": "m", "prompt": "Good morning"}')


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[ModelCard]:
    """Those whose tokenizers have been made."""
    cards: list[ModelCard] = []

    class Counted(ModelTokenizer):
        def __init__(self, card: ModelCard) -> None:
            cards.append(card)
            super().__init__(card)

    monkeypatch.setattr(tokenizer, "ModelTokenizer", Counted)
    return cards


@pytest.fixture
def card(tmp_path: Path) -> ModelCard:
    write_model(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text()
    return ModelCard(name="m", context_tokens=100, tokenizer_json=text)


async def test_one_that_is_heard_of_is_made_before_anybody_asks(
    anyio_backend: str, card: ModelCard, made: list[ModelCard]
) -> None:
    ours = Tokenizers()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ours.run)
        ours.hear(ModelCard(name="unusable", context_tokens=100))
        ours.hear(card)
        with anyio.fail_after(5):
            while len(made) < 2:  # noqa: ASYNC110 it tells by no event
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert await ours.tokens(card, SAID) is not None
    assert made.count(card) == 1


async def test_all_who_come_at_once_wait_for_one_tokenizer(
    anyio_backend: str, card: ModelCard, made: list[ModelCard]
) -> None:
    ours = Tokenizers()
    tokens: list[list[int] | None] = []

    async def one() -> None:
        told = await ours.tokens(card, SAID)
        tokens.append(None if told is None else told.tolist())

    async with anyio.create_task_group() as tasks:
        for _ in range(40):
            tasks.start_soon(one)
    assert made == [card]
    assert len(tokens) == 40
    assert all(each == tokens[0] for each in tokens)
    assert tokens[0]
    changed = card.model_copy(update={"context_tokens": 200})
    assert await ours.tokens(changed, SAID) is not None
    assert made == [card, changed]


async def test_a_prompt_is_neither_padded_nor_cut(anyio_backend: str, tmp_path: Path) -> None:
    write_model(tmp_path)
    plain = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "Good morning to all of you"
    ids = plain.encode(text).ids
    plain.enable_padding(length=64)
    plain.enable_truncation(2)
    card = ModelCard(name="m", context_tokens=100, tokenizer_json=plain.to_str())
    said = read(Api.COMPLETIONS, json.dumps({"model": "m", "prompt": text}).encode())
    tokens = await Tokenizers().tokens(card, said)
    assert tokens is not None
    assert tokens.tolist() == ids


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
RULES = {"role": "system", "content": "Good morning to all of you"}


def chat(*messages: object, **fields: object) -> Ask:
    return read(Api.CHAT, json.dumps({"model": "m", "messages": messages, **fields}).encode())


def shown(url: str) -> dict[str, object]:
    """A picture, and a question about it."""
    picture = {"type": "image_url", "image_url": {"url": url}}
    return {"role": "user", "content": [{"type": "text", "text": "What is this?"}, picture]}


async def test_two_pictures_behind_one_text_are_not_one_prompt(
    anyio_backend: str, card: ModelCard
) -> None:
    """Its tokens end before the first: only the engine knows what comes of it, and where."""
    ours, card = Tokenizers(), card.model_copy(update={"chat_template": TEMPLATE})
    asks = [chat(RULES, shown(url), {"role": "user", "content": "Sure?"}) for url in "ab"]
    text = f"<system>{RULES['content']}<user>"
    for ask in asks:
        tokens = await ours.tokens(card, ask)
        assert tokens is not None
        assert Tokenizer.from_str(card.tokenizer_json or "").decode(tokens.tolist()) == text
        assert ask.unread_tokens > 1_000
    plain = chat(RULES, {"role": "user", "content": [{"type": "text", "text": "Sure?"}]})
    assert plain.unread_tokens == 0


async def test_where_a_picture_is_left_out_by_the_template_nothing_is_known(
    anyio_backend: str, card: ModelCard
) -> None:
    template = "{% for m in messages %}{{ m.role }}{% endfor %}"
    mute = card.model_copy(update={"chat_template": template})
    assert await Tokenizers().tokens(mute, chat(shown("a"))) is None


async def test_who_leaves_does_not_leave_a_thread_at_work(
    anyio_backend: str, card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else there would be as many at work as clients have come and gone."""
    patience_over, began = threading.Event(), []

    class Slow(ModelTokenizer):
        def encode(self, ask: Ask, prompt: str) -> array[int]:
            began.append(patience_over.is_set())
            anyio.from_thread.run_sync(noticed.set)
            patience_over.wait(10)
            return array("I")

    monkeypatch.setattr(tokenizer, "ModelTokenizer", Slow)
    body = {"model": "m", "prompt": "x" * SHORT_CHARS}
    long = read(Api.COMPLETIONS, json.dumps(body).encode())
    ours = Tokenizers()

    async def one(leaves: anyio.CancelScope) -> None:
        with leaves:
            await ours.tokens(card, long)

    async with anyio.create_task_group() as tasks:
        for number in range(THREADS):
            noticed, leaves = anyio.Event(), anyio.CancelScope()
            tasks.start_soon(one, leaves)
            await noticed.wait()
            leaves.cancel()
            assert len(began) == number + 1
        noticed = anyio.Event()
        tasks.start_soon(one, anyio.CancelScope())
        await anyio.wait_all_tasks_blocked()
        patience_over.set()
    assert began == [False] * THREADS + [True]
