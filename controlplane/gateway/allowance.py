"""What a tenant has left: requests at once, requests a minute, tokens a minute. Pure.

Tokens are reserved when a request is admitted (its prompt, and as much answer as is expected) and
settled when it has ended, however it ended: what was not used is given back, what was used beyond
is taken. So a tenant can be in debt for a while, and is admitted again when that is paid.

A rate of n a minute is a bucket of n that refills evenly: a minute's worth may come at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.gateway.openai import ClientError
from controlplane.gateway.sessions import Session
from controlplane.gateway.tenants import Tenant

MINUTE_S = 60.0
BUSY_RETRY_S = 1.0


class Bucket:
    """`per_minute` of something, full at the start; may be overdrawn."""

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at_s = now_s

    def resize(self, per_minute: int) -> None:
        """Another rate from now on; as full as it was, or as deep in debt, for its size."""
        self._level *= per_minute / self.per_minute
        self.per_minute = per_minute

    def wait_s(self, amount: int, now_s: float) -> float:
        """How long until `amount` can be taken; 0: now."""
        self._refill(now_s)
        return max(0.0, amount - self._level) / self.per_minute * MINUTE_S

    def take(self, amount: int) -> None:
        """Take it, even where it is not there; less than nothing gives back."""
        self._level = min(float(self.per_minute), self._level - amount)

    def _refill(self, now_s: float) -> None:
        gained = max(0.0, now_s - self._at_s) / MINUTE_S * self.per_minute
        self._level = min(float(self.per_minute), self._level + gained)
        self._at_s = now_s


@dataclass
class Reservation:
    """An admitted request, until it is settled."""

    tokens: int
    settled: bool = False
    session: Session | None = None
    """Which it belongs to, where those are limited."""


class Allowance:
    """One tenant's, in one gateway process: each process keeps its own count."""

    def __init__(self, tenant: Tenant, now_s: float) -> None:
        self._tenant = tenant
        self.in_flight = 0
        self._requests = _bucket(tenant.requests_per_minute, now_s)
        self._tokens = _bucket(tenant.tokens_per_minute, now_s)

    def adopt(self, tenant: Tenant, now_s: float) -> None:
        """Its limits may have changed; what is under way counts on."""
        if tenant is self._tenant:
            return
        self._tenant = tenant
        self._requests = _resized(self._requests, tenant.requests_per_minute, now_s)
        self._tokens = _resized(self._tokens, tenant.tokens_per_minute, now_s)

    def reserve(self, tokens: int, now_s: float, session: Session | None = None) -> Reservation:
        """Admit a request of so many tokens, or raise `ClientError`: 429 with when to come again,
        400 if it could never be admitted."""
        tenant = self._tenant
        if tenant.concurrent_max is not None and self.in_flight >= tenant.concurrent_max:
            raise _refused(f"{tenant.concurrent_max} requests at once", BUSY_RETRY_S)
        if self._tokens is not None and tokens > self._tokens.per_minute:
            raise ClientError(
                400,
                f"the request may need {tokens} tokens, and tenant {tenant.name} has "
                f"{self._tokens.per_minute} a minute; ask for fewer with max_tokens",
                code="request_too_large",
            )
        if self._requests is not None and (wait_s := self._requests.wait_s(1, now_s)):
            raise _refused(f"{self._requests.per_minute} requests a minute", wait_s)
        if self._tokens is not None and (wait_s := self._tokens.wait_s(tokens, now_s)):
            raise _refused(f"{self._tokens.per_minute} tokens a minute", wait_s)
        if self._requests is not None:
            self._requests.take(1)
        if self._tokens is not None:
            self._tokens.take(tokens)
        if session is not None:
            session.requests += 1
            session.tokens += tokens
        self.in_flight += 1
        return Reservation(tokens, session=session)

    def settle(self, reservation: Reservation, used_tokens: int) -> None:
        """The request has ended; a second settlement changes nothing."""
        if reservation.settled:
            return
        reservation.settled = True
        self.in_flight -= 1
        beyond = used_tokens - reservation.tokens
        if reservation.session is not None:
            reservation.session.tokens += beyond
        if self._tokens is not None:
            self._tokens.take(beyond)


def _bucket(per_minute: int | None, now_s: float) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute, now_s)


def _resized(bucket: Bucket | None, per_minute: int | None, now_s: float) -> Bucket | None:
    if bucket is None or per_minute is None:
        return _bucket(per_minute, now_s)
    bucket.resize(per_minute)
    return bucket


def _refused(limit: str, retry_after_s: float) -> ClientError:
    return ClientError(
        429,
        f"this key's limit is {limit}",
        code="rate_limit_exceeded",
        retry_after_s=retry_after_s,
    )
