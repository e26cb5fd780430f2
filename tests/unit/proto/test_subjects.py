"""Subjects and keys are spelled once, and names cannot break out of their place."""

from __future__ import annotations

import pytest

from proto.ids import BadName, ServiceId, WorkerId, new_incarnation
from proto.subjects import Keys, Subjects

BAD_NAMES = ["", "a.b", "a b", "*", ">", "a/b", "a\n", "é", "x" * 129]


def test_subjects_of_two_clusters_share_nothing() -> None:
    one, two = Subjects("one"), Subjects("two")
    assert one.kv(WorkerId("w")) == "tp.one.kv.w"
    assert one.route != two.route
    assert one.requests_stream != two.requests_stream


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_no_token_is_refused(name: str) -> None:
    subjects, keys = Subjects("c"), Keys("c")
    for spell in (subjects.kv, subjects.load, subjects.progress, subjects.snapshot, keys.worker):
        with pytest.raises(BadName):
            spell(WorkerId(name))
    with pytest.raises(BadName):
        subjects.ledger(ServiceId(name))
    with pytest.raises(BadName):
        Subjects(name)


@pytest.mark.parametrize("model", ["meta/llama-3", "a b", "ü", "%2F", ".."])
def test_any_model_name_has_a_key_of_its_own(model: str) -> None:
    keys = Keys("c")
    assert "/" not in keys.model(model).removeprefix(keys.models)
    assert keys.model_of(keys.model(model)) == model


def test_a_later_life_outranks_an_earlier_one() -> None:
    assert new_incarnation(1_700_000_000.001) > new_incarnation(1_700_000_000.0)
