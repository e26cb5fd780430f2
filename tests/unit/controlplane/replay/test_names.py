from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.replay import names as names_module
from controlplane.replay.names import BadBlockSize, PromptNamer, check_block_size
from controlplane.replay.tokens import FIRST_TOKEN, LAST_TOKEN, expand, expand_blocks
from controlplane.replay.trace import TRACE_BLOCK_TOKENS, TraceRequest
from proto.hashing import BlockHasher, Scope


def hasher(block_tokens: int) -> BlockHasher:
    return BlockHasher(b"replay", Scope("m"), block_tokens)


@st.composite
def requests(draw: st.DrawFn) -> TraceRequest:
    """Few different ids, so that they recur; any length of the last block."""
    ids = draw(st.lists(st.integers(0, 5) | st.integers(0, 2**63 - 1), min_size=1, max_size=6))
    last_tokens = draw(st.integers(1, TRACE_BLOCK_TOKENS))
    return TraceRequest(0.0, (len(ids) - 1) * TRACE_BLOCK_TOKENS + last_tokens, 1, tuple(ids))


@settings(max_examples=60, deadline=None)
@given(st.lists(requests(), max_size=8), st.sampled_from([1, 8, 16, 64, 128, 512]))
def test_names_are_those_of_the_expanded_tokens(some: list[TraceRequest], block: int) -> None:
    names = PromptNamer(hasher(block)).names(some)
    expected = [hasher(block).names(expand(request)).tolist() for request in some]
    assert [n.tolist() for n in names] == expected


def test_names_survive_forgetting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_module, "IDS_KEPT", 3)
    monkeypatch.setattr(names_module, "_REQUESTS_AT_ONCE", 2)
    some = [TraceRequest(0.0, 1024, 1, (i % 7, i % 5)) for i in range(50)]
    namer = PromptNamer(hasher(64))
    expected = [hasher(64).names(expand(request)).tolist() for request in some]
    assert [n.tolist() for n in namer.names(some)] == expected


@pytest.mark.parametrize("block", [0, -16, 3, 48, 100, 1024])
def test_a_block_size_that_does_not_divide_512_is_refused(block: int) -> None:
    with pytest.raises(BadBlockSize, match=f"block size {block} does not divide 512"):
        check_block_size(block)


def test_an_id_is_always_the_same_tokens_and_others_are_not() -> None:
    first, again, other = expand_blocks([7, 7, 8])
    assert first.tolist() == again.tolist() == expand_blocks([7])[0].tolist()
    assert np.mean(first == other) < 0.05
    assert np.mean(first == expand_blocks([7], salt=1)[0]) < 0.05


def test_tokens_are_ordinary_words_and_cover_the_vocabulary() -> None:
    tokens = expand_blocks(range(2_000))
    assert tokens.shape == (2_000, TRACE_BLOCK_TOKENS)
    assert tokens.min() == FIRST_TOKEN
    assert tokens.max() == LAST_TOKEN


def test_the_last_block_is_cut() -> None:
    tokens = expand(TraceRequest(0.0, 600, 1, (3, 4)))
    assert tokens.tolist() == expand_blocks([3, 4]).reshape(-1)[:600].tolist()
