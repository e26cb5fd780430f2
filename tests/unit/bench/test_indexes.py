"""Both sides of a comparison must have been asked the same, and the answer must be right."""

from __future__ import annotations

import numpy as np
import pytest

from bench import peer
from bench.match import Index, depth_of, fill
from bench.ours import OurIndex
from bench.peer import PeerIndex

WORKERS = 64


@pytest.fixture(params=["ours", "peer"])
def index(request: pytest.FixtureRequest) -> Index:
    if request.param == "ours":
        return OurIndex(WORKERS)
    if not peer.installed():
        pytest.skip(peer.HOW_TO_GET_IT)
    return PeerIndex()


def test_prompts_are_held_as_their_kind_says(index: Index) -> None:
    prompts = fill([index], WORKERS, 0, np.random.default_rng(1))
    assert {blocks for blocks, _ in prompts} == {16, 128, 1_024}
    for (blocks, kind), of_kind in prompts.items():
        alike = dict.fromkeys(range(WORKERS), blocks)
        stairs = {worker: depth_of(worker, blocks) for worker in range(WORKERS)}
        expected = {"one depth": alike, "miss": {}}.get(kind, stairs)
        assert [index.depths(prompt) for prompt in of_kind] == [expected] * len(of_kind)


@pytest.mark.parametrize("blocks", [16, 128, 1_024])
def test_stairs_have_as_many_depths_as_they_say(blocks: int) -> None:
    depths = {depth_of(worker, blocks) for worker in range(512)}
    assert len(depths) == min(64, blocks)
    assert min(depths) >= 1
    assert max(depths) == blocks


def test_events_are_what_the_peer_documents() -> None:
    assert peer.stored([1, 2], None, 7) == (
        b'{"event_id":7,"data":{"stored":{"parent_hash":null,"blocks":'
        b'[{"block_hash":1,"tokens_hash":1},{"block_hash":2,"tokens_hash":2}]}}}'
    )
    assert peer.removed([1, 2], 8) == b'{"event_id":8,"data":{"removed":{"block_hashes":[1,2]}}}'
    first, second = peer.stored_in_pieces([1, 2, 3], 2)
    assert (b'"parent_hash":null' in first, b'"parent_hash":2' in second) == (True, True)
