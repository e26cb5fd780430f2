"""The canonical hash is a contract between processes: its values must never drift."""

from __future__ import annotations

import numpy as np
import pytest

from proto.hashing import (
    CHAIN_START,
    BlockHasher,
    Scope,
    digest,
    pack,
    unpack,
)

# Made once with this very construction; a change here breaks mixed-version clusters.
VECTORS = [
    (Scope("m"), 16, [0xE94DDD691FCC338C, 0x6DEE4ECD6EC30FA4, 0x2634E13151FB8F8]),
    (Scope("m", tenant="t1"), 16, [0x5F6894B271C5585F, 0x188AB219627511CC, 0xAE559D9EE9BFEE43]),
    (Scope("m", adapter="lora"), 16, [0x612B605B171E18A0, 0x66D77D0815DE97C4, 0x656C6EED7820CD4]),
    (Scope("m"), 32, [0x107C98CC56DB582D]),
]


@pytest.mark.parametrize(("scope", "block_tokens", "names"), VECTORS)
def test_fixed_vectors(scope: Scope, block_tokens: int, names: list[int]) -> None:
    hasher = BlockHasher(b"vector", scope, block_tokens)
    assert hasher.names(list(range(48))).tolist() == names


def test_the_trailing_partial_block_has_no_name() -> None:
    hasher = BlockHasher(b"k", Scope("m"), 16)
    assert len(hasher.names(list(range(15)))) == 0
    assert hasher.names(list(range(47))).tolist() == hasher.names(list(range(32))).tolist()


def test_arrays_and_lists_agree() -> None:
    hasher = BlockHasher(b"k", Scope("m"), 16)
    tokens = [5, 0, 2**32 - 1, 7] * 16
    array = np.array(tokens, dtype=np.uint32)
    assert hasher.names(tokens).tolist() == hasher.names(array).tolist()


def test_a_name_depends_on_everything_before_it_and_on_order() -> None:
    hasher = BlockHasher(b"k", Scope("m"), 4)
    base = hasher.names([1, 2, 3, 4, 5, 6, 7, 8]).tolist()
    assert hasher.names([9, 2, 3, 4, 5, 6, 7, 8]).tolist()[1] != base[1]
    swapped = hasher.names([5, 6, 7, 8, 1, 2, 3, 4]).tolist()
    assert set(swapped).isdisjoint(base)


@pytest.mark.parametrize("other", [Scope("n"), Scope("m", "a"), Scope("m", "", "t")])
def test_scopes_never_overlap(other: Scope) -> None:
    tokens = list(range(1600))
    ours = BlockHasher(b"k", Scope("m"), 16).names(tokens).tolist()
    theirs = BlockHasher(b"k", other, 16).names(tokens).tolist()
    assert set(ours).isdisjoint(theirs)


def test_clusters_with_other_secrets_never_overlap() -> None:
    tokens = list(range(1600))
    ours = BlockHasher(b"one", Scope("m"), 16).names(tokens).tolist()
    theirs = BlockHasher(b"two", Scope("m"), 16).names(tokens).tolist()
    assert set(ours).isdisjoint(theirs)


@pytest.mark.parametrize("tokens", [[-1] * 16, [2**32] * 16, ["a"] * 16])
def test_what_is_not_a_token_id_is_refused(tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="token ids are whole numbers"):
        BlockHasher(b"k", Scope("m"), 16).names(tokens)


@pytest.mark.parametrize("block_tokens", [0, -1, 1025])
def test_a_block_size_out_of_range_is_refused(block_tokens: int) -> None:
    with pytest.raises(ValueError, match="block size"):
        BlockHasher(b"k", Scope("m"), block_tokens)


def test_names_travel_and_digest_ignores_order() -> None:
    names = BlockHasher(b"k", Scope("m"), 16).names(list(range(64)))
    assert unpack(pack(names)) == names.tolist()
    assert digest(names.tolist()) == digest(names.tolist()[::-1])
    with pytest.raises(ValueError, match="whole number"):
        unpack(b"1234567")


def test_a_chain_can_be_continued_from_any_point() -> None:
    hasher = BlockHasher(b"k", Scope("m"), 16)
    tokens = list(range(160))
    whole, points = hasher.extend(CHAIN_START, tokens)
    tail, _ = hasher.extend(points[3], tokens[64:])
    assert tail.tolist() == whole.tolist()[4:] == hasher.names(tokens).tolist()[4:]
