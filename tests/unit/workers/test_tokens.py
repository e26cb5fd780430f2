"""The tokenizer made on the spot, and what the engine says with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.sim import tokens
from workers.sim.language import ANSWER_TOKENS, LanguageModel
from workers.sim.tokens import BadChat, BadModelDirectory, ChatTokenizer, write_model
from workers.sim.words import WORDS


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    assert tokens.main([str(path), "--context-tokens", "2048"]) == 0
    return path


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> ChatTokenizer:
    return ChatTokenizer(directory)


@pytest.fixture(scope="module")
def language(tokenizer: ChatTokenizer) -> LanguageModel:
    return LanguageModel(tokenizer.words, tokenizer.end_id)


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives(tokenizer: ChatTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(deadline=None)
@given(words=st.lists(st.sampled_from(WORDS), min_size=1))
def test_every_word_is_one_token(tokenizer: ChatTokenizer, words: list[str]) -> None:
    ids = tokenizer.encode("".join(f" {word}" for word in words))
    assert [tokenizer.words[id] for id in ids] == [f" {word}" for word in words]


def test_the_same_files_everywhere(directory: Path, tmp_path: Path) -> None:
    write_model(tmp_path, 2048)
    for file in directory.iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()


def test_the_directory_tells_context_and_vocabulary(tokenizer: ChatTokenizer) -> None:
    assert tokenizer.context_tokens == 2048
    assert tokenizer.vocabulary_tokens == 32_768
    assert tokenizer.decode([31_999]) == ""


def test_chats_become_chatml(tokenizer: ChatTokenizer) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "I am"}]
    opened = tokenizer.render(messages[:1])
    assert opened == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode(opened)[0] == tokenizer.encode("<|im_start|>")[0]
    left_open = tokenizer.render(messages, add_generation_prompt=False, continue_final_message=True)
    assert left_open == opened + "I am"
    with pytest.raises(BadChat, match="no content"):
        empty = [{"role": "assistant", "content": " "}]
        tokenizer.render(empty, add_generation_prompt=False, continue_final_message=True)


def test_a_template_may_refuse(directory: Path, tmp_path: Path) -> None:
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ raise_exception('no system messages') }}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(BadChat, match="no system messages"):
        ChatTokenizer(tmp_path).render([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("broken", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_bad_directory_says_what_to_do(directory: Path, tmp_path: Path, broken: str) -> None:
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(b"{}" if file.name == broken else file.read_bytes())
    with pytest.raises(BadModelDirectory, match=r"python -m workers\.sim\.tokens"):
        ChatTokenizer(tmp_path)
    with pytest.raises(BadModelDirectory, match="No such file"):
        ChatTokenizer(tmp_path / "missing")


def said(model: LanguageModel, prompt: list[int], seed: int = 0) -> Iterator[int]:
    return model.say(prompt, seed, may_end=True)


@settings(deadline=None)
@given(prompt=st.lists(st.integers(0, 32_000), max_size=40), cut=st.integers(1, 50))
def test_an_answer_goes_on_from_its_tokens(
    language: LanguageModel, prompt: list[int], cut: int
) -> None:
    whole = list(said(language, prompt))
    cut = min(cut, len(whole) - 1)
    assert list(said(language, prompt + whole[:cut])) == whole[cut:]
    endless = list(islice(language.say(prompt, 0, may_end=False), len(whole) - 1))
    assert endless == whole[:-1]


def test_answers_differ_by_prompt_and_seed(language: LanguageModel) -> None:
    answers = {tuple(islice(said(language, [1, 2], seed), 8)) for seed in range(50)}
    answers |= {tuple(islice(said(language, [1, 2, id]), 8)) for id in range(50)}
    assert len(answers) == 100


def test_answers_are_about_as_long_as_promised_and_never_empty(language: LanguageModel) -> None:
    lengths = [len(list(said(language, [id]))) for id in range(400)]
    assert min(lengths) >= 2
    assert sum(lengths) / len(lengths) == pytest.approx(ANSWER_TOKENS, rel=0.2)
