"""Rights follow from subjects and keys: what nobody is granted would fail in a deployment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proto.access import Role, Words, rights, words
from proto.ids import RequestId, ServiceId, WorkerId
from proto.subjects import Keys, Subjects
from proto.wire.patterns import matches

SUBJECTS, KEYS = Subjects("c"), Keys("c")
OURS, THEIRS = WorkerId("ours"), WorkerId("theirs")
NAMED = {
    "kv": (OURS,),
    "load": (OURS,),
    "progress": (OURS,),
    "snapshot": (OURS,),
    "agent": (OURS, "release"),
    "transfer": ("begin",),
    "ledger": (ServiceId("r"),),
    "explained": (RequestId("q"),),
    "settings_of": ("s",),
    "settings_asked": ("s",),
}
PATTERNS = {name for name in vars(Subjects) if name.startswith("every")}
STREAMS = {name for name in vars(Subjects) if name.endswith("_stream") and name[0] != "_"}
BUCKETS = {name for name in vars(Subjects) if name.endswith("_bucket")}


def _each_subject() -> Iterator[tuple[str, str]]:
    for name in vars(Subjects):
        if not name.startswith("_") and name not in PATTERNS | STREAMS | BUCKETS:
            value = getattr(SUBJECTS, name)
            yield name, value(*NAMED[name]) if callable(value) else value


def _granted(which: str, subject: str, worker: WorkerId | None = OURS) -> list[Role]:
    return [
        role
        for role in Role
        if any(
            matches(pattern, subject) for pattern in getattr(words(role, SUBJECTS, worker), which)
        )
    ]


@pytest.mark.parametrize(("name", "subject"), list(_each_subject()))
def test_every_subject_has_somebody_who_says_it(name: str, subject: str) -> None:
    assert _granted("publish", subject), f"nobody may publish Subjects.{name}"


@pytest.mark.parametrize(("name", "subject"), list(_each_subject()))
def test_every_subject_has_somebody_who_hears_it(name: str, subject: str) -> None:
    heard = {role for role in _granted("subscribe", subject) if role is not Role.OPERATOR}
    kept = subject in {SUBJECTS.requests, SUBJECTS.plan}  # by streams, which are read
    told = name in {"decisions", "explained", "transitions", "settings_of"}  # to people alone
    assert heard or kept or told, f"nobody may subscribe to Subjects.{name}"


@pytest.mark.parametrize("name", sorted(STREAMS))
def test_every_stream_is_kept_and_read(name: str) -> None:
    stream = getattr(SUBJECTS, name)
    all_words: list[Words] = [words(role, SUBJECTS) for role in Role]
    assert any(stream in each.keeps for each in all_words)
    assert any(stream in each.reads for each in all_words)


@pytest.mark.parametrize("name", sorted(BUCKETS))
def test_every_bucket_is_somebodys(name: str) -> None:
    assert any(getattr(SUBJECTS, name) in words(role, SUBJECTS).buckets for role in Role)


def test_an_agent_speaks_for_its_own_worker_alone() -> None:
    may = words(Role.AGENT, SUBJECTS, OURS)
    for theirs in (SUBJECTS.kv(THEIRS), SUBJECTS.load(THEIRS), SUBJECTS.progress(OURS)):
        assert not any(matches(pattern, theirs) for pattern in may.publish)
    for theirs in (SUBJECTS.snapshot(THEIRS), SUBJECTS.progress(THEIRS), SUBJECTS.kv(THEIRS)):
        assert not any(matches(pattern, theirs) for pattern in may.subscribe)


def test_nobody_but_operators_hears_everything() -> None:
    for role in set(Role) - {Role.OPERATOR}:
        assert not any(pattern.endswith(">") for pattern in words(role, SUBJECTS).subscribe)


def test_an_agent_writes_its_own_record_alone() -> None:
    may = rights(Role.AGENT, KEYS, OURS)
    assert may.write == (KEYS.worker(OURS), KEYS.models)
    assert rights(Role.AGENT, KEYS).write == (KEYS.workers, KEYS.models)


@pytest.mark.parametrize("role", sorted({Role.GATEWAY, Role.ROUTER, Role.REGISTRY, Role.TRANSFER}))
def test_services_that_decide_write_nothing(role: Role) -> None:
    assert rights(role, KEYS).write == ()
