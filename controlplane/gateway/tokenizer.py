"""Text to token ids, only to know where a prompt's cache lies; the engine tokenises for itself."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
from jinja2 import TemplateError
from tokenizers import Tokenizer

from controlplane.gateway.openai import Ask, ClientError
from controlplane.gateway.pieces import PieceEncoder
from controlplane.gateway.templates import UNKNOWN, ChatTemplate, Refused
from controlplane.gateway.words import WordEncoder
from proto.workers import ModelCard

log = logging.getLogger(__name__)

SHORT_CHARS = 6_000
"""Shorter texts, of which nothing is known yet, are tokenised on the spot. It is a millisecond's
work; a thread costs half of that, and takes three times as long to be heard on a busy loop."""
THREADS = 2


class Untokenisable(Exception):
    """The model's card has no tokenizer that can be used here."""


class ModelTokenizer:
    """The tokenizer and chat template of one model card."""

    def __init__(self, card: ModelCard) -> None:
        """Raises `Untokenisable`."""
        self._tokenizer = _load(card)
        self._words = WordEncoder(self._tokenizer)
        self._pieces = PieceEncoder(self._tokenizer, self._words)
        self._model = card.name
        self._template = _template(card)
        self._failed_to_render = False

    def prompt(self, ask: Ask) -> str | None:
        """The prompt's text as the engine will see it, of a chat as far as the first message that
        has more than text; None if that cannot be told. Raises `ClientError`."""
        if ask.text is not None:
            return ask.text
        rendered = self._render(ask)
        if rendered is None or not ask.unread_tokens:
            return rendered
        known, mark, _ = rendered.partition(UNKNOWN)
        return known if mark else None

    def unknown_chars(self, ask: Ask, prompt: str) -> int:
        """How much of it is to be worked on: what began a chat before is remembered."""
        return len(prompt) if ask.text is not None else self._pieces.unknown_chars(prompt)

    def encode(self, ask: Ask, prompt: str) -> array[int]:
        """Its token ids."""
        if ask.text is not None:
            return self._words.encode(prompt, special=True)
        return self._pieces.encode(prompt)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, as an engine would send it."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

    def _render(self, ask: Ask) -> str | None:
        if self._template is None:
            raise ClientError(
                400,
                f"model {ask.model!r} has no chat template; use /v1/completions",
                code="no_chat_template",
                param="messages",
            )
        try:
            return self._template.render(ask.messages or (), ask.tools)
        except Refused as error:
            raise ClientError(
                400,
                f"the chat template refuses these messages: {error}",
                code="invalid_messages",
                param="messages",
            ) from error
        except Exception as error:  # noqa: BLE001 a template may do anything, and an engine's can more
            if not self._failed_to_render:
                self._failed_to_render = True
                log.warning(
                    "chats with %s are routed by load only where its chat template fails: %r",
                    self._model, error,
                )  # fmt: skip
            return None


class Tokenizers:
    """Tokenizers by model, made when a card is heard of, and at the latest when it is needed."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[ModelCard, ModelTokenizer | None]] = {}
        self._heard: dict[str, ModelCard] = {}
        """Whose turn is yet to come."""
        self._news = anyio.Event()
        self._making: dict[str, anyio.Lock] = {}
        self._threads = anyio.CapacityLimiter(THREADS)

    def hear(self, card: ModelCard) -> None:
        """There is a model, or its card is another one."""
        self._heard[card.name] = card
        self._news.set()

    async def run(self) -> None:
        """Make those that are heard of, one by one, until cancelled: a first request would wait for
        it, and what cannot be used is better told before."""
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            while self._heard:
                name, card = self._heard.popitem()
                try:
                    await self._of(card)
                except Exception:  # a bug; it ends the requests that meet it, and no more
                    log.exception("the tokenizer of %s cannot be made", name)

    async def tokens(self, card: ModelCard, ask: Ask) -> array[int] | None:
        """Token ids of the prompt, as far as its text is known (`Ask.unread_tokens`), or None where
        it cannot be tokenised here.

        Long texts are worked on in a thread, off the event loop. Raises `ClientError`.
        """
        if ask.tokens is not None:
            return ask.tokens
        if ask.text is None and ask.messages is None:
            return None
        tokenizer = await self._of(card)
        if tokenizer is None:
            return None
        prompt = tokenizer.prompt(ask)
        if prompt is None:
            return None
        if tokenizer.unknown_chars(ask, prompt) < SHORT_CHARS:
            return tokenizer.encode(ask, prompt)
        # Nobody leaves his thread behind: the limiter would take it for free while it works on.
        return await anyio.to_thread.run_sync(tokenizer.encode, ask, prompt, limiter=self._threads)

    async def detokeniser(self, card: ModelCard) -> Callable[[Sequence[int]], str] | None:
        """The model's token ids to text, None where the model cannot be tokenised here."""
        tokenizer = await self._of(card)
        return None if tokenizer is None else tokenizer.decode

    async def _of(self, card: ModelCard) -> ModelTokenizer | None:
        known = self._made.get(card.name)
        if known is not None and known[0] is card:
            return known[1]
        # It is a second's work: who comes meanwhile waits for it, instead of beginning it again.
        async with self._making.setdefault(card.name, anyio.Lock()):
            known = self._made.get(card.name)
            if known is not None and known[0] is card:
                return known[1]
            make, made = partial(ModelTokenizer, card), None
            try:
                if card.tokenizer_json is None and card.tokenizer_path is None:
                    made = make()  # there is nothing to read, and a thread has a time of its own
                else:
                    made = await anyio.to_thread.run_sync(make, limiter=self._threads)
            except Untokenisable as error:
                log.error("model %s is routed by load only: %s", card.name, error)
            self._made[card.name] = (card, made)
            return made


def _load(card: ModelCard) -> Tokenizer:
    tokenizer = _read(card)
    # Some files have these for whoever trains by them; an engine takes prompts as they are.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read(card: ModelCard) -> Tokenizer:
    try:
        if card.tokenizer_json is not None:
            return Tokenizer.from_str(card.tokenizer_json)
        if card.tokenizer_path is not None:
            return Tokenizer.from_str(Path(card.tokenizer_path).read_text())
    # The tokenizers library raises plain Exception for a file that it cannot read.
    except Exception as error:
        raise Untokenisable(f"its tokenizer cannot be loaded: {error}") from error
    raise Untokenisable("its card names no tokenizer")


def _template(card: ModelCard) -> ChatTemplate | None:
    if card.chat_template is None:
        return None
    try:
        return ChatTemplate(card.chat_template, card.special_tokens)
    except TemplateError as error:
        raise Untokenisable(f"its chat template cannot be read: {error}") from error
