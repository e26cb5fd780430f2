"""Budgets of sessions (GW17): what stops one, what it is told, and what is forgotten."""

from __future__ import annotations

import pytest

from controlplane.gateway.allowance import Allowance, Reservation
from controlplane.gateway.openai import ClientError
from controlplane.gateway.sessions import Sessions
from controlplane.gateway.tenants import ANONYMOUS, Tenant


class Door:
    """A tenant's, as `Admission` has it."""

    def __init__(self, tenant: Tenant, sessions: Sessions | None = None) -> None:
        self.tenant = tenant
        self.sessions = sessions or Sessions()
        self.allowance = Allowance(tenant, 0.0)

    def reserve(self, session: str, tokens: int = 10, now_s: float = 0.0) -> Reservation:
        known = self.sessions.admit(self.tenant, session, tokens, now_s)
        return self.allowance.reserve(tokens, now_s, known)

    def stopped(self, session: str, tokens: int = 10, now_s: float = 0.0) -> str:
        with pytest.raises(ClientError) as refused:
            self.reserve(session, tokens, now_s)
        assert refused.value.status == 403 and refused.value.retry_after_s is None
        return refused.value.code


def test_gw17_a_session_ends_after_so_many_requests_and_others_go_on() -> None:
    door = Door(Tenant(session_requests_max=2))
    door.reserve("loop")
    door.reserve("loop")
    assert door.stopped("loop") == "session_requests_spent"
    door.reserve("another")


def test_gw17_tokens_are_reserved_and_settled() -> None:
    door = Door(Tenant(session_tokens_max=100))
    first = door.reserve("s", tokens=90)
    assert door.stopped("s", tokens=20) == "session_tokens_spent"
    door.allowance.settle(first, used_tokens=50)
    door.reserve("s", tokens=50)
    assert door.stopped("s", tokens=1) == "session_tokens_spent"


def test_gw17_time_runs_from_the_first_request() -> None:
    door = Door(Tenant(session_seconds_max=60.0))
    door.reserve("s", now_s=100.0)
    door.reserve("s", now_s=160.0)
    assert door.stopped("s", now_s=160.1) == "session_time_spent"


def test_what_is_refused_by_the_tenants_limits_costs_the_session_nothing() -> None:
    door = Door(Tenant(concurrent_max=1, session_requests_max=2))
    under_way = door.reserve("s")
    with pytest.raises(ClientError, match="at once"):
        door.reserve("s")
    door.allowance.settle(under_way, 10)
    door.reserve("s")


def test_without_limits_or_a_name_nothing_is_remembered() -> None:
    sessions = Sessions()
    assert sessions.admit(ANONYMOUS, "s", 1 << 40, 0.0) is None
    assert sessions.admit(Tenant(session_tokens_max=1), "", 1 << 40, 0.0) is None


def test_the_one_that_has_asked_for_nothing_for_longest_is_forgotten() -> None:
    door = Door(Tenant(session_requests_max=1), Sessions(sessions_max=2))
    for name in ("old", "kept", "new"):
        door.reserve(name)
    door.reserve("old")
    assert door.stopped("new") == "session_requests_spent"


def test_two_tenants_may_call_their_sessions_alike() -> None:
    sessions = Sessions()
    for name in ("acme", "globex"):
        Door(Tenant(name=name, session_requests_max=1), sessions).reserve("s")
