"""A small real tokenizer with a chat template, made on the spot, and the reading of any other.

    python -m workers.sim.tokens DIR [--context-tokens N]

writes what Hugging Face tools call a model directory, without weights: `tokenizer.json` (byte
level BPE), `tokenizer_config.json` (special tokens, ChatML template) and `config.json` (context
length, vocabulary size). The same program writes the same bytes everywhere.

The only merges spell the words of `WORDS` with a space before them, letter by letter. So " token"
is one token, as are its beginnings, and everything else is bytes; words that are decoded and
encoded again give the same tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from workers.sim.words import WORDS

CONTEXT_TOKENS = 32_768
VOCABULARY_TOKENS = 32_768
"""As rows of an embedding are: more than the tokenizer needs, so that any usual id is accepted."""

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_T = TypeVar("_T")
_SPACE = "Ġ"  # what byte-level BPE writes for a space
_SPACES = (_SPACE, "▁")  # the other is SentencePiece's


class BadModelDirectory(Exception):
    """The directory is not a model directory that the engine can use; says what to do."""


class BadChat(ValueError):
    """The chat template refuses the messages."""


class ChatTokenizer:
    """The tokenizer and chat template of a model directory."""

    def __init__(self, directory: Path) -> None:
        """Raises `BadModelDirectory`."""
        try:
            self._tokenizer = _read_tokenizer(directory / "tokenizer.json")
            tokenizer_config = _load(directory / "tokenizer_config.json", _TokenizerConfig)
            config = _load(directory / "config.json", _Config)
        except (OSError, ValueError) as error:
            raise BadModelDirectory(
                f"{directory} is no usable model directory ({error}); "
                f"`python -m workers.sim.tokens {directory}` writes one"
            ) from error
        self.directory = directory
        self.context_tokens = config.max_position_embeddings
        self.vocabulary_tokens = max(config.vocab_size, self._tokenizer.get_vocab_size())
        self.words = self._find_words()
        end_id = self._tokenizer.token_to_id(tokenizer_config.eos)
        if end_id is None or not self.words:
            raise BadModelDirectory(
                f"the tokenizer of {directory} has no token {tokenizer_config.eos!r}, "
                "or none of the engine's words as one token each"
            )
        self.end_id: int = end_id
        self._template = _environment().from_string(tokenizer_config.chat_template)

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids; `special_tokens` adds those that the model wants around any text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the tokens, special ones included; ids without a token give nothing."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """The prompt that a chat becomes; raises `BadChat`.

        With `continue_final_message` it ends with the last message's content, left open.
        """
        try:
            prompt: str = self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            raise BadChat(f"the chat template refuses the messages: {error}") from error
        if continue_final_message:
            final = messages[-1]["content"].strip()
            start = prompt.rfind(final)
            if not final or start < 0:
                raise BadChat("the final message has no content that could be continued")
            prompt = prompt[: start + len(final)]
        return prompt

    def _find_words(self) -> dict[int, str]:
        """The whole words that the vocabulary has as one token, with their text."""
        for space in _SPACES:
            ids = ((self._tokenizer.token_to_id(space + word), word) for word in WORDS)
            if words := {id: f" {word}" for id, word in ids if id is not None}:
                return words
        return {}


def write_model(directory: Path, context_tokens: int = CONTEXT_TOKENS) -> None:
    """Write the model directory, over what is there; raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "model_max_length": context_tokens,
        "chat_template": CHAT_TEMPLATE,
    }
    config = {
        "model_type": "tokenplane-sim",
        "max_position_embeddings": context_tokens,
        "vocab_size": VOCABULARY_TOKENS,
        "eos_token_id": tokenizer.token_to_id(TURN_END),
    }
    (directory / "tokenizer.json").write_text(tokenizer.to_str())
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=1))
    (directory / "config.json").write_text(json.dumps(config, indent=1))


def make_tokenizer() -> Tokenizer:
    """Bytes, the beginnings of every word, and the special tokens, numbered in this order."""
    vocabulary = {byte: id for id, byte in enumerate(sorted(ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        for end in range(1, len(word) + 1):
            if (piece := _SPACE + word[:end]) not in vocabulary:
                vocabulary[piece] = len(vocabulary)
                merges.append((piece[:-1], piece[-1]))
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    specials = [AddedToken(text, special=True) for text in (END_OF_TEXT, TURN_START, TURN_END)]
    tokenizer.add_special_tokens(specials)
    return tokenizer


class _TokenContent(msgspec.Struct):
    content: str


class _TokenizerConfig(msgspec.Struct):
    chat_template: str
    eos_token: str | _TokenContent

    @property
    def eos(self) -> str:
        return self.eos_token if isinstance(self.eos_token, str) else self.eos_token.content


class _Config(msgspec.Struct):
    max_position_embeddings: int
    vocab_size: int = 0


def _read_tokenizer(path: Path) -> Tokenizer:
    text = path.read_text()
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the class is all that the library's Rust side raises
        raise ValueError(f"{path.name}: {error}") from error


def _load(path: Path, type: type[_T]) -> _T:
    return msgspec.json.decode(path.read_bytes(), type=type)


def _environment() -> ImmutableSandboxedEnvironment:
    """As Hugging Face renders chat templates: sandboxed, blocks leave no blank lines."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    return environment


def _refuse(message: str) -> None:
    raise TemplateError(message)


def main(arguments: list[str]) -> int:
    """Write a model directory; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m workers.sim.tokens", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--context-tokens", type=int, default=CONTEXT_TOKENS)
    options = parser.parse_args(arguments)
    try:
        write_model(options.directory, options.context_tokens)
    except OSError as error:
        sys.stderr.write(f"cannot write {options.directory}: {error.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
