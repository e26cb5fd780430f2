"""What each write of the store means for who is there."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.registry.membership import (
    BadRecord,
    Change,
    Joined,
    Left,
    Membership,
    ModelChanged,
    ModelGone,
    Updated,
)
from proto.ids import WorkerId
from proto.workers import WorkerRecord, WorkerState
from tests.unit.controlplane.registry.records import KEYS, card, entry, worker

KEY, VALUE = entry(worker())


@pytest.fixture
def membership() -> Membership:
    return Membership(KEYS)


def test_a_worker_joins_changes_and_leaves(membership: Membership) -> None:
    starting, ready = worker(state=WorkerState.STARTING), worker(state=WorkerState.READY)
    assert membership.put(*entry(starting)) == [Joined(starting)]
    assert membership.put(*entry(ready)) == [Updated(ready, starting)]
    assert membership.workers == {"w1": ready}
    assert membership.delete(KEY) == [Left(ready)]
    assert membership.workers == {}


def test_the_same_again_is_no_change(membership: Membership) -> None:
    membership.put(KEY, VALUE)
    assert membership.put(KEY, VALUE) == []
    membership.put(*entry(card()))
    assert membership.put(*entry(card())) == []


def test_a_new_incarnation_is_an_update(membership: Membership) -> None:
    membership.put(KEY, VALUE)
    again = worker(incarnation=2)
    assert membership.put(*entry(again)) == [Updated(again, worker())]


def test_deleting_what_is_not_there_is_no_change(membership: Membership) -> None:
    assert membership.delete(KEY) == []
    assert membership.delete(KEYS.model("sim")) == []
    assert membership.delete("/elsewhere") == []


def test_models_come_change_and_go(membership: Membership) -> None:
    name = "meta-llama/Llama 3.1"
    small, large = card(name, context_tokens=1024), card(name, context_tokens=2048)
    assert membership.put(*entry(small)) == [ModelChanged(small)]
    assert membership.put(*entry(large)) == [ModelChanged(large)]
    assert membership.models == {name: large}
    assert membership.delete(KEYS.model(name)) == [ModelGone(large)]
    assert membership.models == {}


def test_unknown_fields_of_newer_writers_are_ignored(membership: Membership) -> None:
    value = json.dumps(json.loads(VALUE) | {"warp_drive": True}).encode()
    assert membership.put(KEY, value) == [Joined(worker())]


def without(field: str) -> bytes:
    fields = json.loads(VALUE)
    del fields[field]
    return json.dumps(fields).encode()


def with_(**changed: object) -> bytes:
    return json.dumps(json.loads(VALUE) | changed).encode()


BAD_WORKERS = [
    (b"", "EOF"),
    (b"\xff\xfe", "JSON"),
    (b"[]", "object"),
    (without("model"), "model: Field required"),
    (with_(block_tokens=0), "block_tokens: Input should be greater"),
    (with_(state="asleep"), "state: Input should be"),
    (with_(worker="w2"), "the record is of worker 'w2'"),
    (with_(worker="no.dots"), "must be 1 to 128 letters"),
    (with_(total_blocks=10**18), "total_blocks: Input should be less"),
    (with_(max_running=1 << 70), "max_running: Input should be less"),
    (with_(incarnation=1 << 70), "incarnation: Input should be less"),
    (with_(incarnation=-1), "incarnation: Input should be greater"),
    (with_(hardware={"accelerators": 1 << 70}), "hardware.accelerators: Input should be less"),
    (VALUE.replace(b'"weights_gb":0.0', b'"weights_gb":1e400'), "hardware.weights_gb: Input"),
    (with_(transfer={"connector": "c", "lease_s": 1e300}), "transfer.lease_s: Input should be"),
]


@pytest.mark.parametrize(("value", "why"), BAD_WORKERS)
def test_a_bad_worker_is_reported_and_absent(
    membership: Membership, value: bytes, why: str
) -> None:
    (bad,) = membership.put(KEY, value)
    assert isinstance(bad, BadRecord)
    assert bad.key == KEY
    assert why in bad.why
    assert membership.workers == {}


@pytest.mark.parametrize(("value", "why"), BAD_WORKERS)
def test_a_worker_whose_record_goes_bad_leaves_until_it_is_good(
    membership: Membership, value: bytes, why: str
) -> None:
    membership.put(KEY, VALUE)
    bad, left = membership.put(KEY, value)
    assert isinstance(bad, BadRecord)
    assert left == Left(worker())
    assert membership.put(KEY, VALUE) == [Joined(worker())]


def test_a_model_whose_card_goes_bad_is_gone_until_it_is_good(membership: Membership) -> None:
    key, value = entry(card())
    membership.put(key, value)
    bad, gone = membership.put(key, b'{"name": "sim", "context_tokens": 0}')
    assert isinstance(bad, BadRecord)
    assert gone == ModelGone(card())
    (wrong_key,) = membership.put(key, entry(card("other"))[1])
    assert isinstance(wrong_key, BadRecord)
    assert membership.put(key, value) == [ModelChanged(card())]


def test_a_card_with_a_number_beyond_64_bits_is_reported(membership: Membership) -> None:
    key, _ = entry(card())
    (bad,) = membership.put(key, json.dumps({"name": "sim", "context_tokens": 1 << 70}).encode())
    assert isinstance(bad, BadRecord)
    assert membership.models == {}


def test_a_record_under_anothers_key_does_not_touch_the_other(membership: Membership) -> None:
    membership.put(*entry(worker("w2")))
    membership.put(KEY, entry(worker("w2", incarnation=9))[1])
    assert membership.workers == {"w2": worker("w2")}


def test_another_spelling_of_a_models_key_does_not_touch_the_model(membership: Membership) -> None:
    """As somebody writes it by hand: with the slash of the name as it is."""
    key, value = entry(card("org/model"))
    stray = f"{KEYS.models}org/model"
    membership.put(key, value)
    (bad,) = membership.put(stray, value)
    assert isinstance(bad, BadRecord)
    assert membership.delete(stray) == []
    assert membership.models == {"org/model": card("org/model")}


def test_a_key_of_nobody_is_reported(membership: Membership) -> None:
    assert membership.put("/tp/other/workers/w1", VALUE) == [
        BadRecord("/tp/other/workers/w1", "neither a worker's nor a model's key")
    ]


def test_a_report_is_short_and_shows_no_content(membership: Membership) -> None:
    value = json.dumps({f"field{i}": "hunter2" for i in range(100)} | {"worker": 7}).encode()
    (bad,) = membership.put(KEY, value)
    assert isinstance(bad, BadRecord)
    assert len(bad.why) <= 310
    assert "hunter2" not in bad.why


RECORDS = st.builds(
    worker,
    st.sampled_from(["w1", "w2", "w3"]),
    state=st.sampled_from(WorkerState),
    incarnation=st.integers(1, 3),
)
WRITES = st.lists(st.tuples(st.sampled_from(["w1", "w2", "w3"]), RECORDS | st.none() | st.binary()))


@given(WRITES)
def test_what_is_known_is_a_function_of_what_the_store_holds(
    writes: list[tuple[str, WorkerRecord | bytes | None]],
) -> None:
    """Whatever the history, a replica that starts now sees the same; and the changes add up."""
    old = Membership(KEYS)
    known: dict[WorkerId, WorkerRecord] = {}
    store: dict[str, bytes] = {}
    for name, written in writes:
        key = KEYS.worker(WorkerId(name))
        if written is None:
            store.pop(key, None)
            changes: Sequence[Change | BadRecord] = old.delete(key)
        else:
            store[key] = (
                written if isinstance(written, bytes) else written.model_dump_json().encode()
            )
            changes = old.put(key, store[key])
        for change in changes:
            match change:
                case Joined(record):
                    assert known.setdefault(record.worker, record) is record
                case Updated(record, previous):
                    assert known[record.worker] == previous
                    known[record.worker] = record
                case Left(record):
                    assert known.pop(record.worker) == record
    new = Membership(KEYS)
    for key, value in store.items():
        new.put(key, value)
    assert old.workers == new.workers == known
