from __future__ import annotations

from agents.references import References


def test_a_block_with_three_copies_dies_with_the_third() -> None:
    """As vLLM 0.32 was seen to do: stored three times, removed three times."""
    references = References(capacity=8)
    for _ in range(3):
        references.add(1)
    assert [references.remove(1) for _ in range(3)] == [False, False, True]
    assert 1 not in references


def test_an_unknown_removal_changes_nothing() -> None:
    references = References()
    assert not references.remove(1)
    assert 1 not in references


def test_a_block_announced_again_survives_the_removal_of_its_copies() -> None:
    """It may have had a copy more; nothing on the wire tells."""
    references = References(capacity=8)
    references.add(1)
    references.add(1)
    assert not references.remove(1)
    assert 1 in references


def test_over_capacity_the_block_in_doubt_for_longest_goes() -> None:
    references = References(capacity=3)
    for block in (1, 2, 3):
        references.add(block)
        references.add(block)
    for block in (2, 1):
        references.remove(block)
    assert references.add(4) == 2
    assert references.add(5) == 1
    assert [block in references for block in (1, 2, 3, 4, 5)] == [False, False, True, True, True]


def test_a_new_announcement_ends_the_doubt() -> None:
    references = References(capacity=2)
    for block in (1, 1, 2, 2):
        references.add(block)
    references.remove(1)
    references.remove(2)
    references.add(1)
    assert references.add(3) == 2


def test_without_doubt_nothing_is_dropped_even_over_capacity() -> None:
    """The engine's word stands above the size it told."""
    references = References(capacity=1)
    assert [references.add(block) for block in (1, 2, 3)] == [None, None, None]
    assert all(block in references for block in (1, 2, 3))


def test_without_a_capacity_nothing_is_ever_dropped() -> None:
    references = References()
    references.add(1)
    references.add(1)
    references.remove(1)
    assert all(references.add(block) is None for block in range(2, 100))
    assert 1 in references


def test_a_confirmation_adds_no_copy_but_ends_the_doubt() -> None:
    references = References(capacity=2)
    for block in (1, 1, 2, 2):
        references.add(block)
    references.remove(1)
    references.remove(2)
    assert references.confirm(1) is None
    assert references.add(3) == 2
    assert references.remove(1)


def test_a_confirmation_of_an_unknown_block_makes_it_live() -> None:
    references = References()
    references.confirm(1)
    assert references.remove(1)


def test_clear_forgets_everything() -> None:
    references = References()
    references.add(1)
    references.clear()
    assert 1 not in references
    assert not references.remove(1)
