"""Allowances: what is admitted, what is given back, and what a refusal says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.gateway.admission import Admission
from controlplane.gateway.allowance import Allowance
from controlplane.gateway.openai import ClientError
from controlplane.gateway.settings import GatewaySettings
from controlplane.gateway.tenants import ANONYMOUS, Tenant


def refusal(allowance: Allowance, tokens: int, now_s: float) -> ClientError:
    with pytest.raises(ClientError) as refused:
        allowance.reserve(tokens, now_s)
    return refused.value


def test_without_limits_everything_is_admitted() -> None:
    allowance = Allowance(ANONYMOUS, 0.0)
    for _ in range(1_000):
        allowance.reserve(1_000_000, 0.0)
    assert allowance.in_flight == 1_000


def test_requests_at_once() -> None:
    allowance = Allowance(Tenant(concurrent_max=2), 0.0)
    first, _ = allowance.reserve(1, 0.0), allowance.reserve(1, 0.0)
    assert refusal(allowance, 1, 0.0).status == 429
    allowance.settle(first, 1)
    allowance.reserve(1, 0.0)


def test_tokens_not_used_are_given_back_also_when_nothing_was() -> None:
    allowance = Allowance(Tenant(tokens_per_minute=600), 0.0)
    reserved = allowance.reserve(600, 0.0)
    assert refusal(allowance, 300, 0.0).retry_after_s == pytest.approx(30.0)
    allowance.settle(reserved, 0)
    allowance.reserve(600, 0.0)


def test_an_answer_longer_than_reserved_is_paid_later() -> None:
    allowance = Allowance(Tenant(tokens_per_minute=600), 0.0)
    allowance.settle(allowance.reserve(100, 0.0), 1_200)
    assert refusal(allowance, 1, 0.0).retry_after_s == pytest.approx(60.1)
    allowance.reserve(1, 60.2)


def test_settling_twice_gives_back_once() -> None:
    allowance = Allowance(Tenant(tokens_per_minute=600, concurrent_max=9), 0.0)
    reserved = allowance.reserve(400, 0.0)
    allowance.settle(reserved, 0)
    allowance.settle(reserved, 0)
    assert allowance.in_flight == 0
    allowance.reserve(600, 0.0)
    assert refusal(allowance, 1, 0.0).code == "rate_limit_exceeded"


def test_requests_a_minute_refill_evenly() -> None:
    allowance = Allowance(Tenant(requests_per_minute=2), 0.0)
    allowance.reserve(1, 0.0), allowance.reserve(1, 0.0)
    assert refusal(allowance, 1, 0.0).retry_after_s == pytest.approx(30.0)
    allowance.reserve(1, 30.0)
    assert refusal(allowance, 1, 30.0).status == 429


def test_what_could_never_be_admitted_is_the_clients_mistake() -> None:
    error = refusal(Allowance(Tenant(tokens_per_minute=100), 0.0), 101, 0.0)
    assert (error.status, error.retry_after_s) == (400, None)


def test_a_refused_request_costs_nothing() -> None:
    allowance = Allowance(Tenant(tokens_per_minute=100, requests_per_minute=1_000), 0.0)
    allowance.reserve(100, 0.0)
    for _ in range(10):
        refusal(allowance, 100, 0.0)
    allowance.reserve(100, 60.0)
    assert allowance.in_flight == 2


def test_requests_under_way_count_on_when_limits_change() -> None:
    admission = Admission(GatewaySettings(), b"k", lambda: 0.0)
    old = Tenant(name="t", concurrent_max=3, tokens_per_minute=1_000)
    new = Tenant(name="t", concurrent_max=4, tokens_per_minute=2_000)
    under_way = [admission.reserve(old, 200) for _ in range(3)]
    last = admission.reserve(new, 200)
    for more in (new, old):
        with pytest.raises(ClientError, match="requests at once"):
            admission.reserve(more, 200)
    for reservation in under_way:
        admission.settle(old, reservation, 200)
    with pytest.raises(ClientError, match="2000 tokens a minute"):
        admission.reserve(new, 601)  # 800 of 2,000 are left as 400 of 1,000 were, less 200
    again = [admission.reserve(new, 1) for _ in range(3)]
    with pytest.raises(ClientError, match="requests at once"):
        admission.reserve(new, 1)
    for reservation in (last, *again):
        admission.settle(new, reservation, 1)
    for _ in range(4):
        admission.reserve(new, 1)


def test_a_limit_may_come_and_go_while_requests_run() -> None:
    admission = Admission(GatewaySettings(), b"k", lambda: 0.0)
    free = Tenant(name="t")
    limited = Tenant(name="t", requests_per_minute=1)
    first = admission.reserve(free, 10)
    admission.settle(free, admission.reserve(limited, 10), 10)
    with pytest.raises(ClientError, match="requests a minute"):
        admission.reserve(limited, 10)
    admission.settle(free, first, 10)
    admission.reserve(free, 10)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.floats(0, 20)), max_size=60))
def test_nobody_uses_more_than_a_burst_and_the_rate(asks: list[tuple[int, int, float]]) -> None:
    """Whatever is asked for: what is *reserved* never exceeds one minute's worth and the refill."""
    allowance, now_s, spent = Allowance(Tenant(tokens_per_minute=300), 0.0), 0.0, 0
    for tokens, used, pause_s in asks:
        now_s += pause_s
        try:
            reservation = allowance.reserve(tokens, now_s)
        except ClientError:
            continue
        allowance.settle(reservation, min(used, tokens))
        spent += min(used, tokens)
        assert spent <= 300 + now_s * 5 + 1e-6
