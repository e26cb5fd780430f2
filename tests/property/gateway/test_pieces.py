"""A chat put together from remembered pieces has the ids that a tokenizer gives the whole."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordPiece
from tokenizers.trainers import BpeTrainer, WordPieceTrainer

from controlplane.gateway.pieces import PieceEncoder
from controlplane.gateway.words import WordEncoder

SPECIALS = [
    AddedToken("<s>", special=True),
    AddedToken("<s>>", special=True),
    AddedToken("<left>", special=True, lstrip=True),
    AddedToken("<right>", special=True, rstrip=True),
    AddedToken("<word>", special=False, normalized=True),
]
TEXT = ["the tokens of a chat", " that has   spaces, é and \n\n lines", "Theodore's <s tokens"]
KINDS = ("byte_level", "metaspace", "word_piece", "single_word")


@cache
def tokenizer(kind: str) -> Tokenizer:
    """Of the kinds in use: GPT's, Llama's, BERT's; and one that must not be taken apart."""
    if kind == "word_piece":
        made = word_piece()
    else:
        made = Tokenizer(BPE(byte_fallback=True))
        made.pre_tokenizer = (
            pre_tokenizers.Metaspace(prepend_scheme="first")
            if kind == "metaspace"
            else pre_tokenizers.ByteLevel(add_prefix_space=True)
        )
        made.train_from_iterator(TEXT, BpeTrainer(vocab_size=300, show_progress=False))
    made.add_tokens(SPECIALS)
    if kind == "single_word":
        made.add_tokens([AddedToken("the", special=True, single_word=True)])
    return made


def word_piece() -> Tokenizer:
    """Of BERT's kind."""
    made = Tokenizer(WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(TEXT, WordPieceTrainer(vocab_size=80, special_tokens=["[UNK]"]))
    return made


bits = st.sampled_from([each.content for each in SPECIALS] + ["the", " ", "\n", ">", "<s"] + TEXT)
texts = st.lists(bits | st.text(max_size=5), max_size=12).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@given(
    chats=st.lists(texts, min_size=1, max_size=4), bytes_max=st.sampled_from([0, 2_000, 1 << 20])
)
def test_pieces_have_the_ids_of_the_whole(kind: str, chats: list[str], bytes_max: int) -> None:
    whole = tokenizer(kind)
    pieces = PieceEncoder(whole, WordEncoder(whole), bytes_max)
    for text in [*chats, *chats]:
        ids = whole.encode(text, add_special_tokens=False).ids
        assert pieces.encode(text).tolist() == ids


def test_of_a_longer_conversation_only_the_new_turn_is_tokenised() -> None:
    whole = tokenizer("byte_level")
    pieces = PieceEncoder(whole, WordEncoder(whole))
    before = "<s>" + TEXT[0] + "<s>" + TEXT[1] + "<s>"
    pieces.encode(before)
    encoded = pieces.encoded_chars
    assert pieces.unknown_chars(before) == 0
    assert pieces.unknown_chars(before + TEXT[2]) == len("<s>" + TEXT[2])
    pieces.encode(before + TEXT[2])
    assert pieces.encoded_chars - encoded == len("<s>" + TEXT[2])


def test_what_is_remembered_is_bounded() -> None:
    whole = tokenizer("byte_level")
    pieces = PieceEncoder(whole, WordEncoder(whole), bytes_max=10_000)
    for number in range(1_000):
        pieces.encode(f"<s>{number} {TEXT[0]}<s>")
    assert pieces._bytes <= 10_000
    assert 0 < len(pieces._known) < 50
