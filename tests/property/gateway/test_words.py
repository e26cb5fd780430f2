"""A text put together from remembered words has the ids that a tokenizer gives the whole."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from controlplane.gateway import words
from controlplane.gateway.words import WordEncoder, token_ids
from tests.property.gateway.test_pieces import TEXT, word_piece

SPECIALS = [
    AddedToken("<s>", special=True),
    AddedToken("<left>", special=True, lstrip=True),
    AddedToken("<word>", special=False, normalized=True),
]
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BY_WORDS = ("gpt_2", "llama_3", "qwen_2", "mistral", "bert")
WHOLE = ("llama_2", "no_parts", "across", "right", "single_word", "spaces")


def split(regex: str) -> pre_tokenizers.PreTokenizer:
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), last])


@cache
def tokenizer(kind: str) -> Tokenizer:
    """Of a kind in use, or one that must not be taken apart."""
    if kind == "bert":
        made = word_piece()
    else:
        made = Tokenizer(BPE(byte_fallback=True))
        if kind == "llama_2":
            made.normalizer = normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            )
        elif kind == "qwen_2":
            made.normalizer = normalizers.NFC()
            made.pre_tokenizer = split(LLAMA_3.replace("{1,3}", ""))
        elif kind == "llama_3":
            made.pre_tokenizer = split(LLAMA_3)
        elif kind == "across":
            made.pre_tokenizer = split(r"\w+ \w+|\s+|[^\s\w]+")
        elif kind == "mistral":
            made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        elif kind != "no_parts":
            made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind == "gpt_2")
        made.train_from_iterator(TEXT, BpeTrainer(vocab_size=300, show_progress=False))
    made.add_tokens(SPECIALS)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A <word>",
        special_tokens=[(each, made.token_to_id(each)) for each in ("<s>", "<word>")],
    )
    if kind in ("right", "single_word", "spaces"):
        of_note = AddedToken(
            "of a" if kind == "spaces" else "the",
            special=True,
            rstrip=kind == "right",
            single_word=kind == "single_word",
        )
        made.add_tokens([of_note])
    return made


bits = st.sampled_from([each.content for each in SPECIALS] + ["the", " ", "\n", ">", "<s"] + TEXT)
texts = st.lists(bits | st.text(max_size=5), max_size=12).map("".join)


@pytest.mark.parametrize("kind", [*BY_WORDS, *WHOLE])
@given(several=st.lists(texts, min_size=1, max_size=4), new_max=st.sampled_from([0, 2, 256]))
def test_words_have_the_ids_of_the_whole(kind: str, several: list[str], new_max: int) -> None:
    whole = tokenizer(kind)
    encoder = known(kind)
    assert encoder.by_words == (kind in BY_WORDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "NEW_WORDS_MAX", new_max)
        for text in [*several, *several]:
            for special in (False, True):
                ids = whole.encode(text, add_special_tokens=special).ids
                assert encoder.encode(text, special=special).tolist() == ids


@cache
def known(kind: str) -> WordEncoder:
    """One for all examples: what it has learned from one must be right for the others."""
    return WordEncoder(tokenizer(kind))


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "WORDS_MAX", 100)
    encoder = WordEncoder(tokenizer("gpt_2"))
    for number in range(1_000):
        encoder.encode(f"a {number} {'long' * 20} b")
    assert 0 < len(encoder._known) <= 100
    assert max(map(len, encoder._known)) <= words.WORD_CHARS_MAX


def test_a_long_text_of_spaces_is_no_more_work_than_another() -> None:
    """Work in proportion to its length; the square of it would not end."""
    encoder = WordEncoder(tokenizer("gpt_2"))
    text = "a" + " " * 200_000 + "b" + " \n" * 100_000
    assert encoder.encode(text) == token_ids(tokenizer("gpt_2"), text, special=False)


def test_a_tokenizer_that_has_no_letters_gets_texts_whole() -> None:
    """What it adds to a text cannot be told from nothing."""
    bare = Tokenizer(BPE(vocab={"1": 0}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    encoder = WordEncoder(bare)
    assert not encoder.by_words
    assert encoder.encode("1 a 1", special=True).tolist() == [0, 0]
