"""Named cases of what real engines were seen to do; random ones are in tests/property."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from agents import translator as module
from agents.adapters.protocol import (
    Cleared,
    EngineEvent,
    LossReason,
    Lost,
    Removed,
    Stored,
)
from agents.live import LiveSet
from agents.translator import BlockSizeMismatch, Translator
from proto.hashing import BlockHasher, Scope
from proto.kv import Tier

SECRET = b"a secret of tests"
MODEL = "tiny"
BLOCK_TOKENS = 4
PROMPT = list(range(100, 132))  # eight blocks


def names(prompt: Sequence[int], **scope: object) -> list[int]:
    """As a gateway names them."""
    hasher = BlockHasher(SECRET, Scope(MODEL, **scope), BLOCK_TOKENS)  # type: ignore[arg-type]
    listed: list[int] = hasher.names(prompt).tolist()
    return listed


def run(first: int, end: int, prompt: Sequence[int] = PROMPT, **fields: object) -> Stored:
    """Blocks `first` to `end` of a prompt; block k has engine hash k, unless told otherwise."""
    return Stored(
        **{  # type: ignore[arg-type]
            "hashes": tuple(range(first, end)),
            "parent": first - 1 if first else None,
            "tokens": prompt[first * BLOCK_TOKENS : end * BLOCK_TOKENS],
            "block_tokens": BLOCK_TOKENS,
            **fields,
        }
    )


class Agent:
    """A translator and the set it keeps."""

    def __init__(self, total_blocks: int | None = 64) -> None:
        self.live = LiveSet()
        self.translator = Translator(self.live, SECRET, MODEL, BLOCK_TOKENS, total_blocks)

    def hear(self, *events: EngineEvent) -> None:
        for event in events:
            self.translator.apply(event)

    def holds(self, tier: Tier = Tier.GPU) -> list[int]:
        return sorted({which: words.tolist() for which, words in self.live.names()}.get(tier, []))


@pytest.fixture
def agent() -> Agent:
    return Agent()


def test_a_prompt_has_the_names_that_a_gateway_gives_it(agent: Agent) -> None:
    agent.hear(run(0, 3), run(3, 4), run(4, 8))
    assert agent.holds() == sorted(names(PROMPT))


def test_one_hash_stored_three_times_lives_until_its_third_removal(agent: Agent) -> None:
    agent.hear(run(0, 1), run(0, 1), run(0, 1), Removed((0,)), Removed((0,)))
    assert agent.holds() == names(PROMPT)[:1]
    agent.hear(Removed((0,)))
    assert agent.holds() == []


def test_hits_that_are_announced_again_leave_no_block_behind_for_ever() -> None:
    """`kv_cache_report_mode=full`: a full cache of 4, its blocks announced again and evicted."""
    agent = Agent(total_blocks=4)
    other = [900 + token for token in PROMPT]
    agent.hear(run(0, 4), run(0, 4), run(0, 4))
    for block in range(4):
        agent.hear(Removed((3 - block,)))
        agent.hear(run(block, block + 1, other, hashes=(50 + block,), parent=49 + block or None))
    agent.hear(run(0, 4, other, hashes=(50, 51, 52, 53)))
    assert agent.holds() == sorted(names(other)[:4])


def test_a_marked_hit_counts_as_no_copy(agent: Agent) -> None:
    agent.hear(run(0, 2), run(0, 2, reused=True), Removed((1,)))
    assert agent.holds() == names(PROMPT)[:1]


def test_an_orphan_suffix_is_named_when_its_parent_arrives(agent: Agent) -> None:
    agent.hear(run(2, 4), run(4, 6))
    assert (agent.holds(), agent.translator.orphans) == ([], 4)
    agent.hear(run(0, 2))
    assert (agent.holds(), agent.translator.orphans) == (sorted(names(PROMPT)[:6]), 0)


def test_a_long_chain_of_orphans_is_named_at_once() -> None:
    """As decoding announces block by block: deeper than Python's stack."""
    agent = Agent(total_blocks=None)
    prompt = list(range(4 * 3_000))
    agent.hear(*(run(block, block + 1, prompt) for block in range(2_999, -1, -1)))
    assert agent.live.blocks == 3_000


def test_an_orphan_that_was_removed_meanwhile_is_not_live(agent: Agent) -> None:
    agent.hear(run(1, 3), Removed((2,)), run(0, 1))
    assert agent.holds() == sorted(names(PROMPT)[:2])


def test_what_lies_behind_a_hole_is_not_told_until_the_hole_is_filled(agent: Agent) -> None:
    agent.hear(run(0, 6), Removed((2,)))
    assert agent.holds() == sorted(names(PROMPT)[:2])
    agent.hear(Removed((4,)), run(2, 3))
    assert agent.holds() == sorted(names(PROMPT)[:4])


def test_a_doubtful_block_that_goes_as_the_hole_before_it_is_filled_is_not_told() -> None:
    agent = Agent(total_blocks=2)
    agent.hear(run(0, 3), run(0, 3), Removed((2,)), Removed((0,)), Removed((0,)))
    assert agent.holds() == []
    agent.hear(run(0, 1))
    assert agent.holds() == sorted(names(PROMPT)[:2])


def test_a_block_in_another_tier_is_no_hole(agent: Agent) -> None:
    agent.hear(run(0, 4), run(1, 2, tokens=(), tier=Tier.HOST), Removed((1,)))
    assert agent.holds() == sorted([names(PROMPT)[0], *names(PROMPT)[2:4]])
    agent.hear(Removed((1,), Tier.HOST))
    assert (agent.holds(), agent.holds(Tier.HOST)) == (names(PROMPT)[:1], [])


def test_a_cleared_cache_is_empty_and_its_chains_are_forgotten(agent: Agent) -> None:
    orphan = run(1, 2, hashes=(51,), parent=50)
    agent.hear(run(0, 4), run(0, 2, tier=Tier.HOST), orphan, Cleared())
    assert agent.holds() == agent.holds(Tier.HOST) == []
    assert agent.translator.orphans == 0
    agent.hear(run(4, 5))
    assert (agent.holds(), agent.translator.orphans) == ([], 1)


def test_a_restarted_engine_begins_with_nothing(agent: Agent) -> None:
    agent.hear(run(0, 4), Lost(LossReason.RESTART), run(0, 1))
    assert agent.holds() == names(PROMPT)[:1]


@pytest.mark.parametrize("reason", [LossReason.GAP, LossReason.MALFORMED])
def test_after_a_loss_only_what_is_certain_is_live(agent: Agent, reason: LossReason) -> None:
    agent.hear(run(0, 4), Lost(reason))
    assert agent.holds() == []


def test_after_a_loss_a_new_block_proves_all_before_it_live(agent: Agent) -> None:
    agent.hear(run(0, 4), Lost(LossReason.GAP), run(4, 5))
    assert agent.holds() == sorted(names(PROMPT)[:5])
    agent.hear(Removed((4,)))
    assert agent.holds() == sorted(names(PROMPT)[:4])


def test_after_a_loss_of_more_than_is_remembered_the_beginnings_of_chains_still_have_names(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a system prompt that is never evicted, and conversations that follow it."""
    monkeypatch.setattr(module, "GHOSTS_MAX", 4)
    agent.hear(run(0, 3), run(3, 8), Removed((7,)), Lost(LossReason.GAP))
    agent.hear(run(3, 4, PROMPT[:12] + PROMPT[:4], hashes=(99,)))
    assert agent.translator.orphans == 0
    assert agent.live.blocks == 4


def test_an_orphan_outlives_a_loss(agent: Agent) -> None:
    agent.hear(run(1, 2), Lost(LossReason.GAP), run(0, 1), run(1, 2, tokens=()))
    assert agent.holds() == sorted(names(PROMPT)[:2])


def test_tenants_adapters_and_images_have_names_of_their_own(agent: Agent) -> None:
    image = ((), ("cat.png",), ("cat.png",))
    agent.hear(
        run(0, 3),
        run(0, 3, hashes=(10, 11, 12), salt="tenant-a"),
        run(0, 3, hashes=(20, 21, 22), adapter="poet"),
        run(0, 3, hashes=(30, 31, 32), media=image),
    )
    with_image = names(PROMPT[:12], media=("cat.png",))
    assert agent.holds() == sorted(
        {
            *names(PROMPT[:12]),
            *names(PROMPT[:12], tenant="tenant-a"),
            *names(PROMPT[:12], adapter="poet"),
            *with_image[1:],
        }
    )


def test_a_suffix_inherits_tenant_and_images_from_its_chain(agent: Agent) -> None:
    agent.hear(
        run(0, 1, salt="tenant-a", media=(("cat.png",),)),
        run(1, 2),
        run(2, 3, media=(("dog.png",),)),
    )
    cat = names(PROMPT[:12], tenant="tenant-a", media=("cat.png",))
    both = names(PROMPT[:12], tenant="tenant-a", media=("cat.png", "dog.png"))
    assert agent.holds() == sorted([*cat[:2], both[2]])


def test_two_hashes_with_one_name_count_as_one_block(agent: Agent) -> None:
    agent.hear(run(0, 1, hashes=(1,)), run(0, 1, hashes=(b"2",)))
    assert agent.live.blocks == 1
    agent.hear(Removed((1,)))
    assert agent.live.blocks == 1
    agent.hear(Removed((b"2",)))
    assert agent.live.blocks == 0


def test_blocks_moved_to_the_host_keep_their_names_without_their_tokens(agent: Agent) -> None:
    moved = run(0, 2, parent=None, tokens=(), tier=Tier.HOST)
    agent.hear(run(0, 2), Removed((0, 1)), moved)
    assert (agent.holds(), agent.holds(Tier.HOST)) == ([], sorted(names(PROMPT)[:2]))
    agent.hear(Removed((1,), Tier.HOST))
    assert agent.holds(Tier.HOST) == names(PROMPT)[:1]


def test_bigger_blocks_of_a_slower_tier_are_left_out(agent: Agent) -> None:
    agent.hear(run(0, 2, block_tokens=8, tokens=PROMPT[:16], tier=Tier.HOST))
    assert agent.holds(Tier.HOST) == []


def test_another_block_size_than_the_engine_said_is_refused(agent: Agent) -> None:
    agent.hear(run(0, 1))
    with pytest.raises(BlockSizeMismatch, match=r"4 tokens.* 8"):
        agent.hear(run(0, 2, block_tokens=8))
    assert agent.live.blocks == 1


def test_what_is_remembered_of_the_dead_is_bounded(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GHOSTS_MAX", 2)
    agent.hear(run(0, 4), *(Removed((block,)) for block in (3, 2, 1, 0)))
    agent.hear(run(3, 4, tokens=(), tier=Tier.HOST), run(0, 2, tokens=(), tier=Tier.HOST))
    assert agent.holds(Tier.HOST) == sorted(names(PROMPT)[:2])
